"""Which resource bounds a kernel on a device, if every unit works at its peak rate all the time. Not a measurement."""

from typing import NamedTuple

import torch

from .ahead_of_time import Launch
from .machine_code import CLASSES, MachineCode


class Device(NamedTuple):
    """Figures of the vendor, without AMD's scalar unit.

    Attributes:
        units: Multiprocessors (compute units).
        ghz, gbs: Clock in GHz, memory bandwidth in GB/s.
        issue, fp32, integer, special, memory: Lanes per clock of a multiprocessor.
        warps, programs, shared: Resident warps, programs and bytes of shared memory per multiprocessor, at most.
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
SIMDS, WAVES, LANE_REGISTERS = 4, 8, 512  # of a compute unit; waves and registers per lane at most on each SIMD
REGISTERS = 65536  # of a multiprocessor


def tile_elements(launched: Launch, depth: int) -> int | None:
    """Elements of a tile: BLOCK, or of a softmax the classes of ROWS rows, or BLOCK of these classes.

    depth: How many loops the counted code is in. Compilers unroll the loop over the classes if there are few.
    """
    block, rows, columns = (launched.arguments.get(name) for name in ("BLOCK", "ROWS", "COLUMNS"))
    if not block or rows is None:
        return block
    over_tiles = "tiles" in launched.arguments
    whole = launched.arguments.get("PARTS", 1) == 1 and depth == over_tiles
    return rows * (columns if whole else min(block, columns))


def bytes_per_element(launched: Launch) -> float:
    """Bytes that an elementwise kernel must move for each element of its input."""
    tensors = {name: value for name, value in launched.arguments.items() if isinstance(value, torch.Tensor)}
    names = ("input_ptr", "target_ptr", "weight_ptr", "output_ptr", "slot_ptr")
    moved = [tensors[name] for name in names if name in tensors]
    grad = tensors.get("grad_ptr")
    if launched.arguments.get("ELEMENT_GRAD") and grad is not None:
        moved.append(grad)
    elements = tensors.get("input_ptr")
    if elements is None:  # the losses of the rows, which are scaled in place
        elements = tensors["loss_ptr"]
        moved += [elements, elements]
    return sum(tensor.numel() * tensor.element_size() for tensor in moved) / elements.numel()


def occupancy(code: MachineCode, warps: int, device: Device, hip: bool) -> float:
    """Resident warps (waves) per multiprocessor over the most that it holds, by all its limits."""
    if hip:
        by_registers = SIMDS * min(WAVES, LANE_REGISTERS // (-(-code.registers // 8) * 8)) // warps
        by_shared = device.shared // max(1, code.shared)
    else:
        by_registers = REGISTERS // (warps * (-(-code.registers * 32 // 256) * 256))
        by_shared = device.shared // (code.shared + 1024)  # the driver keeps 1 KB per program
    return min(by_registers, by_shared, device.programs, device.warps // warps) * warps / device.warps


def bounds(row: dict, device: Device, way: str, hip: bool) -> tuple[str, float]:
    """(resource, time relative to moving the bytes) of a kernel whose tiles all take one way, "easy" or "hard"."""
    per_second = device.units * device.ghz * 1e9
    floor = row["bytes_per_element"] / (device.gbs * 1e9)
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
