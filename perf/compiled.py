"""What the compilers make of every kernel, and what would bound it: no GPU needed.

    python -m perf.compiled [--targets sm_80 sm_90 sm_100 gfx942] [--out FILE.csv]

One row a target, kernel and configuration: registers, spills, shared memory, widths of global accesses, occupancy, and the
instructions an element by class on the shortest way (an easy tile) and on the longest. Printed: which resource bounds each
elementwise kernel on known devices, and how long it takes relative to moving its bytes. A bound, not a measurement: every unit
is taken to work at its peak rate, all the time.
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
    """Vendor's figures. Rates are lanes a clock and multiprocessor (compute unit)."""

    target: str
    units: int
    ghz: float
    gbs: float
    issue: int = 128
    fp32: int = 128
    integer: int = 64
    special: int = 16
    memory: int = 32


DEVICES = {
    "A100": Device("sm_80", 108, 1.41, 2039, fp32=64),
    "H100": Device("sm_90", 132, 1.755, 3350),
    "B200": Device("sm_100", 148, 1.9, 8000),
    "L4": Device("sm_80", 58, 2.04, 300),
    "MI300X": Device("gfx942", 304, 2.1, 5300, issue=64, fp32=64, integer=64, special=16, memory=16),
}


def bytes_an_element(launched: Launch) -> float:
    """Bytes that an elementwise kernel must move for each element of its input."""
    tensors = {name: value for name, value in launched.arguments.items() if isinstance(value, torch.Tensor)}
    moved = [tensors[name] for name in ("input_ptr", "target_ptr", "weight_ptr", "output_ptr") if name in tensors]
    grad = tensors.get("grad_ptr")
    if launched.arguments.get("ELEMENT_GRAD") and grad is not None:
        moved.append(grad)
    return sum(tensor.numel() * tensor.element_size() for tensor in moved) / launched.arguments["input_ptr"].numel()


def occupancy(code: MachineCode, warps: int, hip: bool) -> float:
    """Resident warps a multiprocessor over its most (64; 32 waves of a compute unit), by registers and programs."""
    if hip:
        return min(8, 512 // (-(-code.registers // 8) * 8)) / 8
    a_program = warps * (-(-code.registers * 32 // 256) * 256)
    shared = 228 * 1024 // max(1, code.shared + 1024)
    return min(65536 // a_program, 32, shared, 64 // warps) * warps / 64


def bounds(row: dict, device: Device, way: str) -> tuple[str, float]:
    """(resource, time relative to moving the bytes) of a kernel that takes one way with all its tiles."""
    per_second = device.units * device.ghz * 1e9
    floor = row["bytes_an_element"] / (device.gbs * 1e9)
    total = sum(row[f"{way}_{name}"] for name in CLASSES)
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
    target = TARGETS[target_name]
    code = read(compile_launch(launched, target))
    warps = launched.options["num_warps"]
    row = dict(
        target=target_name,
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
        occupancy=occupancy(code, warps, target.backend == "hip"),
        part="loop" if code.in_loop else "kernel",
    )
    if row["block"]:
        row["bytes_an_element"] = bytes_an_element(launched)
        lanes = warps * target.warp_size / row["block"]  # threads an element
        for way, counts in (("easy", code.shortest), ("hard", code.longest)):
            row |= {f"{way}_{name}": counts[name] * lanes for name in CLASSES}
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
    for name, device in DEVICES.items():
        rows = frame[(frame.target == device.target) & frame.block.notna()]
        for row in rows.to_dict("records"):
            easy, hard = (bounds(row, device, way) for way in ("easy", "hard"))
            print(
                f"{name:7}{row['kernel']:26}{row['configuration']:46}"
                f"easy {easy[1]:5.2f} x floor ({easy[0]})   hard {hard[1]:5.2f} x floor ({hard[0]})"
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
