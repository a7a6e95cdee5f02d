"""Reports what the compilers make of every kernel, and what would bound it. Needs no GPU.

The table has one row per target, kernel and configuration: registers, spills, shared memory, widths of global accesses,
occupancy, and the instructions per element by class, on the shortest way (an easy tile) and on the longest. "special"
are instructions of the unit for exp2, reciprocals, conversions and counting bits.

The command prints which resource bounds each elementwise kernel, and its time relative to that of moving its bytes: 1
is as fast as the memory. This is a bound, not a measurement: every unit is taken to work at its peak rate.
"""

import os
import sys
from collections.abc import Sequence
from pathlib import Path

import pandas as pd
import triton
from tqdm import tqdm

from ghm_triton.arguments import command_parser

from .ahead_of_time import TARGETS, Launch, collect, compile_launch, configurations
from .machine_code import CLASSES, read
from .roofline import DEVICES, bounds, bytes_per_element, occupancy, tile_elements


def describe(target_name: str, configuration: str, launched: Launch, launches: int) -> dict:
    """Return a row of the table."""
    target, device = TARGETS[target_name], DEVICES[target_name]
    hip = target.backend == "hip"
    code = read(compile_launch(launched, target))
    warps = launched.options["num_warps"]
    row = dict(
        target=target_name,
        device=device.name,
        triton=triton.__version__,
        kernel=launched.name,
        configuration=configuration,
        launches_of_the_call=launches,
        block=tile_elements(launched, code.depth),
        warps=warps,
        registers=code.registers,
        spills=code.spills,
        shared=code.shared,
        load_bytes=code.load,
        store_bytes=code.store,
        atomics=code.atomics,
        occupancy=occupancy(code, warps, device, hip),
        part="loop" if code.depth else "kernel",
    )
    if row["block"]:
        row["bytes_per_element"] = bytes_per_element(launched)
        lanes = warps * target.warp_size / row["block"]  # threads per element
        for way, counts in (("easy", code.shortest), ("hard", code.longest)):
            row |= {f"{way}_{name}": counts[name] * lanes for name in CLASSES}
        for way in ("easy", "hard"):
            row[f"{way}_bound"], row[f"{way}_over_memory"] = bounds(row, device, way, hip)
    return row


def report(targets: Sequence[str]) -> pd.DataFrame:
    """All rows. A kernel that several configurations share appears with the first of them."""
    rows = []
    for target_name in targets:
        seen = set()
        calls = [(name, collect(call, TARGETS[target_name])) for name, call in configurations()]
        launches = [(name, launched, len(of_call)) for name, of_call in calls for launched in of_call]
        for name, launched, count in tqdm(launches, desc=target_name, unit="kernel", leave=False):
            if launched.variant not in seen:
                seen.add(launched.variant)
                rows.append(describe(target_name, name, launched, count))
    return pd.DataFrame(rows)


def print_bounds(table: pd.DataFrame) -> None:
    """One line per elementwise kernel."""
    for row in table[table["block"].notna()].to_dict("records"):
        print(
            f"{row['device']:6} {row['kernel']:32} {row['configuration']:61} "
            f"easy {row['easy_over_memory']:5.2f} x floor ({row['easy_bound']})   "
            f"hard {row['hard_over_memory']:5.2f} x floor ({row['hard_bound']})"
        )


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command and return its exit code."""
    parser = command_parser("perf.compiled", __doc__)
    parser.add_argument(
        "--targets", nargs="+", metavar="TARGET", choices=TARGETS, default=list(TARGETS), help="architectures"
    )
    parser.add_argument("--out", type=Path, help="CSV to write; without it, the bounds are only printed")
    options = parser.parse_args(arguments)
    if os.environ.get("TRITON_INTERPRET", "0") not in ("", "0"):
        parser.error(f"TRITON_INTERPRET must be unset, got {os.environ['TRITON_INTERPRET']!r}")
    table = report(options.targets)
    print_bounds(table)
    print(f"{len(table)} kernels, {int((table['spills'] > 0).sum())} with spills")
    if options.out:
        options.out.parent.mkdir(parents=True, exist_ok=True)
        table.round(3).to_csv(options.out, index=False)
        print(f"written to {options.out}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
