"""Operations on a tile of ROWS rows of logits: where they lie, their class indices, blocks of BLOCK of their classes.

A row holds the COLUMNS classes of an example. CONSECUTIVE: they lie one after another. Otherwise they are `space`
elements apart, and each index of the first dimension has `space` rows (the pixels of an image).
"""

import triton
import triton.language as tl


@triton.jit
def rows_of(tile, n, space, COLUMNS: tl.constexpr, CONSECUTIVE: tl.constexpr, ROWS: tl.constexpr):
    """Return (index, offset of class 0, whether it exists) of the ROWS rows of a tile, which belong to one image."""
    lane = tl.arange(0, ROWS)
    if CONSECUTIVE:
        row = tl.cast(tile, tl.int64) * ROWS + lane
        return row, row * COLUMNS, row < n
    tiles = tl.cdiv(space, ROWS)
    outer = tl.cast(tile // tiles, tl.int64)
    inner = (tile % tiles) * ROWS + lane
    return outer * space + inner, outer * space * COLUMNS + inner, inner < space


@triton.jit
def block_at(offset, inside, first, space, COLUMNS: tl.constexpr, BLOCK: tl.constexpr):
    """(offsets, mask) of the classes first .. first + BLOCK - 1 of the rows, [ROWS, BLOCK]. space: between classes."""
    column = first + tl.arange(0, BLOCK)
    mask = inside[:, None]
    if COLUMNS % BLOCK != 0:
        mask = mask & (column < COLUMNS)[None, :]
    return offset[:, None] + (column.to(tl.int64) * space)[None, :], mask


@triton.jit
def load_block(pointer, offset, inside, first, space, OTHER, COLUMNS: tl.constexpr, BLOCK: tl.constexpr):
    """Load the logits, or the probabilities, of a block, fp32; OTHER where there is none."""
    at, mask = block_at(offset, inside, first, space, COLUMNS, BLOCK)
    return tl.load(pointer + at, mask=mask, other=OTHER).to(tl.float32)


@triton.jit
def load_target_block(
    target_ptr,
    offset,
    inside,
    label,
    first,
    space,
    smoothing,
    COLUMNS: tl.constexpr,
    CLASS_INDEX: tl.constexpr,
    BLOCK: tl.constexpr,
):
    """Load y of a block of classes."""
    column = first + tl.arange(0, BLOCK)
    if CLASS_INDEX:
        y = tl.where(column[None, :] == label[:, None], 1.0, 0.0)
    else:
        y = load_block(target_ptr, offset, inside, first, space, 0.0, COLUMNS, BLOCK)
    y = y * (1.0 - smoothing) + smoothing / COLUMNS
    return tl.where((column < COLUMNS)[None, :], y, 0.0)


@triton.jit
def load_labels(target_ptr, row, inside, ignore_index, COLUMNS: tl.constexpr, CLASS_INDEX: tl.constexpr):
    """(class index int32, whether the row counts). An index outside 0 .. COLUMNS - 1 does not count."""
    if CLASS_INDEX:
        label = tl.load(target_ptr + row, mask=inside, other=-1).to(tl.int64)
        counted = inside & (label != ignore_index) & (label >= 0) & (label < COLUMNS)
        return tl.where(counted, label, 0).to(tl.int32), counted
    return tl.zeros_like(row).to(tl.int32), inside
