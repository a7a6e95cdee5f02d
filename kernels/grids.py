"""Tiles and grids of the launches, and the constants that a kernel is compiled for."""

import contextlib
import functools
from typing import NamedTuple

import torch

from ..options import Options
from ..population import Level
from ..regions import floor_misses_edges

LANES = 64 if torch.version.hip else 32  # of a warp; 64 on CDNA
PROGRAMS_PER_SM = 16  # of 32 threads and up to 128 registers: all are resident at once


def ceil_div(a: int, b: int) -> int:
    """Return a / b rounded up. `triton.cdiv` takes 20 times as long on the host."""
    return -(-a // b)


def next_power_of_2(number: int) -> int:
    """Return the least power of two that is at least `number`."""
    return 1 << (number - 1).bit_length()


class Tile(NamedTuple):
    """The elements that a program processes at once, and its number of warps."""

    block: int
    warps: int

    def grid(self, level: Level) -> tuple[int]:
        """Return the grid of one program per tile."""
        return (ceil_div(level.input.numel(), self.block),)


ACCUMULATE = Tile(8 * LANES, 1)  # one warp: each tile leaves the fast path alone, and no warp waits at a barrier
ELEMENTWISE = Tile(2048, 4)


def accumulate_programs(level: Level, options: Options) -> int:
    """Return the number of programs that count a level: one per tile, at most as many as are resident at once."""
    return min(*ACCUMULATE.grid(level), resident_programs(level.input.device))


@functools.cache
def resident_programs(device: torch.device) -> int:
    """Return the number of programs of one warp that a device holds at once."""
    if device.type == "cuda":
        return torch.cuda.get_device_properties(device).multi_processor_count * PROGRAMS_PER_SM
    if device.type == "xpu":
        return torch.xpu.get_device_properties(device).max_compute_units * PROGRAMS_PER_SM
    return 32  # interpreter


def on_device(device: torch.device) -> contextlib.AbstractContextManager:
    """Make the device of the tensors the current one, on which Triton launches."""
    return getattr(torch, device.type).device(device) if device.type in ("cuda", "xpu") else contextlib.nullcontext()


def specialize(level: Level, options: Options, tile: Tile) -> dict:
    """Return the constants that the kernels of GHM-C and GHM-R are compiled for."""
    return dict(
        COLUMNS=level.columns,
        BINS=options.bins,
        AT_EDGES=floor_misses_edges(options.bins),
        ANCHOR_WEIGHT=level.anchor_weight,
        ELEMENT_WEIGHT=level.element_weight,
        BLOCK=tile.block,
        num_warps=tile.warps,
    )


def touched_anchors(level: Level, tile: Tile, least: int) -> int:
    """Return a power of two, at least `least` and the number of anchors that a tile can touch."""
    whole = tile.block % level.columns == 0
    return max(least, next_power_of_2((tile.block - 1) // level.columns + (1 if whole else 2)))


class RowTile(NamedTuple):
    """The rows of logits and the classes of them that a program takes at once, and its warps.

    Attributes:
        rows, block: Rows, and classes of each of them.
        parts: Programs that share the classes of the rows in the gradient, which needs no sum over them.
        warps: Of a program.
    """

    rows: int
    block: int
    parts: int
    warps: int = 1  # the rows are reduced in registers, and nothing waits at a barrier

    def count(self, level: Level) -> int:
        """Return the number of tiles of all rows. A tile has all blocks of the classes of its rows."""
        outer, inner = level.input.shape[0], level.input.shape[2:].numel()
        return ceil_div(outer, self.rows) if level.input.dim() == 2 else outer * ceil_div(inner, self.rows)


def row_tile(level: Level, options: Options) -> RowTile:
    """Return the tile for logits [A, C] or [A, C, S]."""
    columns, vector = level.input.shape[1], 16 // level.input.element_size()
    if level.input.dim() > 2:
        inner = level.input.shape[2:].numel()
        rows = min(vector * LANES, next_power_of_2(inner))
        block = 2 if reads_whole_rows(level, options) else 4  # more would spill
        return RowTile(rows, min(block, next_power_of_2(columns)), 1)
    if columns < 32:  # several rows per lane; wider blocks would repeat the work of a row in several lanes
        return RowTile(4 * LANES, min(4, next_power_of_2(columns)), 1)
    block = min(next_power_of_2(columns), 32 * LANES)
    return RowTile(32 * LANES // block, block, ceil_div(columns, block))


def reads_whole_rows(level: Level, options: Options) -> bool:
    """Whether the gradient norm of a row takes all its classes, not only that of the class index."""
    return options.label_smoothing > 0 or not level.class_index


def row_programs(level: Level, options: Options) -> int:
    """Return the number of programs that count the rows: one per tile, at most as many as are resident at once."""
    return min(row_tile(level, options).count(level), resident_programs(level.input.device))
