"""Operations on a tile of BLOCK consecutive elements: loads, labels and weights of its anchors, sums per region.

An anchor is a row of the input: COLUMNS consecutive elements (the classes, or the box coordinates). Labels and
per-anchor weights are read once for the anchors of a tile and only spread over the elements where a tile needs it.
"""

import triton
import triton.language as tl

from .numerics import INTERPRETED


@triton.jit
def anchor_of(start, lane, COLUMNS: tl.constexpr):
    """(first anchor of the tile, anchor of each element relative to it, column of each element)."""
    first = start // COLUMNS
    local = (start - first * COLUMNS).to(tl.int32) + lane
    anchor = local // COLUMNS
    return first, anchor, local - anchor * COLUMNS


@triton.jit
def load_tile(pointer, start, n, lane):
    """BLOCK consecutive elements, 0 past the end. A full tile needs no mask, so its loads are 16 bytes wide."""
    if start + lane.shape[0] <= n:
        tile = tl.load(pointer + start + lane)
    else:
        tile = tl.load(pointer + start + lane, mask=start + lane < n, other=0)
    return tile


@triton.jit
def store_tile(pointer, start, n, lane, tile):
    """Writes the part of the fp32 tile before the end, rounded to the type of the pointer."""
    if INTERPRETED and pointer.dtype.element_ty == tl.bfloat16:
        tile = _round_to_bfloat16(tile)
    if start + lane.shape[0] <= n:
        tl.store(pointer + start + lane, tile.to(pointer.dtype.element_ty))
    else:
        tl.store(pointer + start + lane, tile.to(pointer.dtype.element_ty), mask=start + lane < n)


@triton.jit
def _round_to_bfloat16(tile):
    """The nearest bfloat16, ties to even, as fp32. A cast on a GPU rounds so; the interpreter truncates."""
    bits = tile.to(tl.int32, bitcast=True)
    rounded = ((bits + 0x7FFF + ((bits >> 16) & 1)) & -65536).to(tl.float32, bitcast=True)
    return tl.where(tile == tile, rounded, tile)


@triton.jit
def is_plain(
    target_ptr,
    weight_ptr,
    start,
    n,
    lane,
    COLUMNS: tl.constexpr,
    ANCHORS: tl.constexpr,
    CLASS_INDEX: tl.constexpr,
    ANCHOR_WEIGHT: tl.constexpr,
    ELEMENT_WEIGHT: tl.constexpr,
):
    """True if the tile is full and each of its elements is a counted negative (target 0, weight > 0).

    ANCHORS: a power of two, at least the number of anchors that a tile touches.
    """
    special = (start + lane.shape[0] > n).to(tl.int32)
    if CLASS_INDEX or ANCHOR_WEIGHT:
        first = start // COLUMNS
        anchor = first + tl.arange(0, ANCHORS)
        in_tile = (anchor * COLUMNS < start + lane.shape[0]) & (anchor * COLUMNS < n)
        if CLASS_INDEX:
            label = tl.load(target_ptr + anchor, mask=in_tile, other=COLUMNS).to(tl.int64)
            special |= tl.max(((label >= 0) & (label < COLUMNS)).to(tl.int32))
        if ANCHOR_WEIGHT:
            weight = tl.load(weight_ptr + anchor, mask=in_tile, other=1)
            special |= tl.max(tl.where(weight > 0, 0, 1))
    if not CLASS_INDEX:
        special |= tl.max(tl.where(load_tile(target_ptr, start, n, lane) == 0, 0, 1))
    if ELEMENT_WEIGHT:
        special |= tl.max(tl.where(load_tile(weight_ptr, start, n, lane) > 0, 0, 1))
    return special == 0


@triton.jit
def _positive_as_it_was(weight):
    """The weight as fp32, positive where it was positive: a tiny fp64 would round to 0."""
    rounded = weight.to(tl.float32)
    return tl.where((weight > 0) & (rounded == 0), 1e-38, rounded)


@triton.jit
def load_weight(
    weight_ptr, start, n, lane, COLUMNS: tl.constexpr, ANCHOR_WEIGHT: tl.constexpr, ELEMENT_WEIGHT: tl.constexpr
):
    """The weight of each element: fp32, 1 where none was given, 0 past the end."""
    inside = start + lane < n
    if ANCHOR_WEIGHT:
        first, anchor, _ = anchor_of(start, lane, COLUMNS)
        weight = _positive_as_it_was(tl.load(weight_ptr + first + anchor, mask=inside, other=0))
    elif ELEMENT_WEIGHT:
        weight = _positive_as_it_was(load_tile(weight_ptr, start, n, lane))
    else:
        weight = tl.where(inside, 1.0, 0.0)
    return weight


@triton.jit
def load_target(target_ptr, start, n, lane, COLUMNS: tl.constexpr, CLASS_INDEX: tl.constexpr):
    """The fp32 target of each element. A class index gives 1 in the column that it names and 0 elsewhere."""
    if CLASS_INDEX:
        first, anchor, column = anchor_of(start, lane, COLUMNS)
        label = tl.load(target_ptr + first + anchor, mask=start + lane < n, other=-1).to(tl.int64)
        target = tl.where(label == column, 1.0, 0.0)
    else:
        target = load_tile(target_ptr, start, n, lane).to(tl.float32)
    return target


@triton.jit
def add_by_region(region, loss, counts, sums, BINS: tl.constexpr, SLOTS: tl.constexpr, FIRST: tl.constexpr):
    """Adds a tile to counts (all SLOTS) and its losses of the regions FIRST..BINS to sums, present regions in order.

    The loop runs once per region in the tile: a handful beyond region 0 for a trained classifier.
    """
    slot = tl.arange(0, SLOTS)
    found = tl.histogram(region, SLOTS)
    counts += found
    candidate = tl.where((found > 0) & (slot <= BINS), slot, SLOTS)
    current = tl.min(tl.where(slot >= FIRST, candidate, SLOTS))
    while current < SLOTS:
        total = tl.sum(tl.where(region == current, loss, 0.0))
        sums = tl.where(slot == current, sums + total, sums)
        current = tl.min(tl.where(slot > current, candidate, SLOTS))
    return counts, sums


@triton.jit
def add_compensated(total, error, value):
    """total + value with the rounding error kept apart (Kahan), for sums of many equal terms."""
    corrected = value - error
    after = total + corrected
    lost = (after - total) - corrected
    return after, tl.where(lost == lost, lost, 0.0)  # an infinite total stays infinite
