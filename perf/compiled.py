"""What the compilers make of every kernel, and what would bound it: no GPU needed.

    python -m perf.compiled [--targets sm_80 sm_89 sm_90 sm_100 gfx942] [--out FILE.csv]

One row a target, kernel and configuration: registers, spills, shared memory, widths of global accesses, occupancy, and
the instructions an element by class on the shortest way (an easy tile) and on the longest; "special" are those of the
unit for exp2, reciprocals, conversions and counting bits. Also printed: which resource bounds each elementwise kernel on
a device of the target, and how long it takes relative to moving its bytes (1: as fast as the memory). A bound, not a
measurement: every unit is taken to work at its peak rate, all the time.
"""

import argparse
from pathlib import Path
from typing import NamedTuple

import pandas
import torch
from tqdm import tqdm

from .ahead import TARGETS, Launch, collect, compile_launch, configurations
from .machine_code import CLASSES, MachineCode, read


class Device(NamedTuple):
    """Vendor's figures. Rates are lanes a clock and multiprocessor (compute unit), without AMD's scalar unit.

    What a unit holds at most: warps, programs, bytes of shared memory.
    """

    name: str
    units: int
    ghz: float
    gbs: float
    issue: int = 128
    fp32: int = 128
    integer: int = 64
    special: int = 16
    memory: int = 32
    warps: int = 64
    programs: int = 32
    shared: int = 228 * 1024


DEVICES = {
    "sm_80": Device("A100", 108, 1.41, 2039, fp32=64, shared=164 * 1024),
    "sm_89": Device("L4", 58, 2.04, 300, warps=48, programs=24, shared=100 * 1024),
    "sm_90": Device("H100", 132, 1.755, 3350),
    "sm_100": Device("B200", 148, 1.9, 8000),
    "gfx942": Device("MI300X", 304, 2.1, 5300, issue=64, fp32=64, memory=16, warps=32, shared=64 * 1024),
}
SIMDS, WAVES, LANE_REGISTERS = 4, 8, 512  # of a compute unit, and at most on each SIMD
REGISTERS = 65536  # of a multiprocessor


def bytes_an_element(launched: Launch) -> float:
    """Bytes that an elementwise kernel must move for each element of its input."""
    tensors = {name: value for name, value in launched.arguments.items() if isinstance(value, torch.Tensor)}
    moved = [tensors[name] for name in ("input_ptr", "target_ptr", "weight_ptr", "output_ptr") if name in tensors]
    grad = tensors.get("grad_ptr")
    if launched.arguments.get("ELEMENT_GRAD") and grad is not None:
        moved.append(grad)
    return sum(tensor.numel() * tensor.element_size() for tensor in moved) / launched.arguments["input_ptr"].numel()


def occupancy(code: MachineCode, warps: int, device: Device, hip: bool) -> float:
    """Resident warps (waves) of a multiprocessor over its most, by registers, shared memory, programs and warps."""
    if hip:
        by_registers = SIMDS * min(WAVES, LANE_REGISTERS // (-(-code.registers // 8) * 8)) // warps
        by_shared = device.shared // max(1, code.shared)
    else:
        by_registers = REGISTERS // (warps * (-(-code.registers * 32 // 256) * 256))
        by_shared = device.shared // (code.shared + 1024)  # the driver keeps 1 KB a program
    return min(by_registers, by_shared, device.programs, device.warps // warps) * warps / device.warps


def bounds(row: dict, device: Device, way: str, hip: bool) -> tuple[str, float]:
    """(resource, time relative to moving the bytes) of a kernel that takes one way with all its tiles."""
    per_second = device.units * device.ghz * 1e9
    floor = row["bytes_an_element"] / (device.gbs * 1e9)
    total = sum(row[f"{way}_{name}"] for name in CLASSES if not (hip and name == "other"))
    times = {
        "memory": floor,
        "issue": total / device.issue / per_second,
        "fp32": row[f"{way}_fp32"] / device.fp32 / per_second,
        "integer": row[f"{way}_integer"] / device.integer / per_second,
        "special": row[f"{way}_special"] / device.special / per_second,
        "load/store": (row[f"{way}_memory"] + row[f"{way}_shared"]) / device.memory / per_second,
    }
    bound = max(times, key=times.get)
    return bound, times[bound] / floor


def describe(target_name: str, configuration: str, launched: Launch, launches: int) -> dict:
    """A row of the report."""
    target, device = TARGETS[target_name], DEVICES[target_name]
    hip = target.backend == "hip"
    code = read(compile_launch(launched, target))
    warps = launched.options["num_warps"]
    row = dict(
        target=target_name,
        device=device.name,
        kernel=launched.name,
        configuration=configuration,
        launches_of_the_call=launches,
        block=launched.arguments.get("BLOCK"),
        warps=warps,
        registers=code.registers,
        spills=code.spills,
        shared=code.shared,
        load_bytes=code.load,
        store_bytes=code.store,
        atomics=code.atomics,
        occupancy=occupancy(code, warps, device, hip),
        part="loop" if code.in_loop else "kernel",
    )
    if row["block"]:
        row["bytes_an_element"] = bytes_an_element(launched)
        lanes = warps * target.warp_size / row["block"]  # threads an element
        for way, counts in (("easy", code.shortest), ("hard", code.longest)):
            row |= {f"{way}_{name}": counts[name] * lanes for name in CLASSES}
        for way in ("easy", "hard"):
            row[f"{way}_bound"], row[f"{way}_over_memory"] = bounds(row, device, way, hip)
    return row


def report(targets: list[str]) -> pandas.DataFrame:
    """All rows; a kernel that several configurations share appears under the first."""
    rows = []
    for target_name in targets:
        seen = set()
        calls = [(name, collect(call, TARGETS[target_name])) for name, call in configurations()]
        progress = tqdm([(name, x, len(xs)) for name, xs in calls for x in xs], desc=target_name, leave=False)
        for name, launched, launches in progress:
            if launched.variant not in seen:
                seen.add(launched.variant)
                rows.append(describe(target_name, name, launched, launches))
    return pandas.DataFrame(rows)


def print_bounds(frame: pandas.DataFrame) -> None:
    for row in frame[frame.block.notna()].to_dict("records"):
        print(
            f"{row['device']:7}{row['kernel']:26}{row['configuration']:46}"
            f"easy {row['easy_over_memory']:5.2f} x floor ({row['easy_bound']})   "
            f"hard {row['hard_over_memory']:5.2f} x floor ({row['hard_bound']})"
        )


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--targets", nargs="+", choices=TARGETS, default=list(TARGETS))
    parser.add_argument("--out", type=Path, default=Path("perf/results/compiled.csv"))
    options = parser.parse_args(arguments)
    frame = report(options.targets)
    options.out.parent.mkdir(parents=True, exist_ok=True)
    frame.round(3).to_csv(options.out, index=False)
    print_bounds(frame)
    print(f"{len(frame)} kernels, {int((frame.spills > 0).sum())} with spills; written to {options.out}")


if __name__ == "__main__":
    main()
