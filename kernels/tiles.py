"""Operations on a tile of BLOCK consecutive elements: loads, labels and weights of its anchors, sums per region.

An anchor is a row of the input: COLUMNS consecutive elements (the classes, or the box coordinates). Labels and
per-anchor weights are read once for the anchors of a tile and only spread over the elements where a tile needs it.
"""

import triton
import triton.language as tl

from .numerics import INTERPRETED

MANY = tl.constexpr(8)  # regions: adding all at once costs as much as about 9 in a row
DIGIT = tl.constexpr(8)


@triton.jit
def first_anchor(tile, BLOCK: tl.constexpr, COLUMNS: tl.constexpr):
    """(first anchor of the tile, int64; column of its first element), without a division in 64 bits."""
    whole = tile // COLUMNS  # every COLUMNS tiles hold BLOCK whole anchors
    rest = (tile - whole * COLUMNS) * BLOCK
    anchor = rest // COLUMNS
    return tl.cast(whole, tl.int64) * BLOCK + anchor, rest - anchor * COLUMNS


@triton.jit
def anchor_of(tile, lane, COLUMNS: tl.constexpr):
    """(first anchor of the tile, anchor of each element relative to it, column of each element)."""
    first, offset = first_anchor(tile, lane.shape[0], COLUMNS)
    local = offset + lane
    anchor = local // COLUMNS
    return first, anchor, local - anchor * COLUMNS


@triton.jit
def start_of(tile, lane):
    """Return the int64 position of the first element of a tile."""
    return tl.cast(tile, tl.int64) * lane.shape[0]


@triton.jit
def load_tile(pointer, tile, n, lane):
    """BLOCK consecutive elements, 0 past the end. A full tile needs no mask, so its loads are 16 bytes wide."""
    start = start_of(tile, lane)
    if start + lane.shape[0] <= n:
        values = tl.load(pointer + start + lane)
    else:
        values = tl.load(pointer + start + lane, mask=start + lane < n, other=0)
    return values


@triton.jit
def load_fp32(pointer, tile, n, lane):
    """:func:`load_tile` as fp32, converted before the two ways meet: there, 16-bit elements would be unpacked twice."""
    start = start_of(tile, lane)
    if start + lane.shape[0] <= n:
        values = tl.load(pointer + start + lane).to(tl.float32)
    else:
        inside = start + lane < n
        values = tl.where(inside, tl.load(pointer + start + lane, mask=inside, other=0).to(tl.float32), 0.0)
    return values


@triton.jit
def store_tile(pointer, tile, n, lane, values):
    """Store the fp32 values before the end, rounded to the type of the pointer."""
    start = start_of(tile, lane)
    values = round_to(values, pointer.dtype.element_ty)
    if start + lane.shape[0] <= n:
        tl.store(pointer + start + lane, values)
    else:
        tl.store(pointer + start + lane, values, mask=start + lane < n)


@triton.jit
def round_to(tile, TYPE: tl.constexpr):
    """Convert an fp32 tile to TYPE, rounded to nearest."""
    if INTERPRETED and TYPE == tl.bfloat16:
        tile = _round_to_bfloat16(tile)
    return tile.to(TYPE)


@triton.jit
def _round_to_bfloat16(tile):
    """Round fp32 to the nearest bfloat16, ties to even, as a cast on a GPU does. The interpreter truncates."""
    bits = tile.to(tl.int32, bitcast=True)
    rounded = ((bits + 0x7FFF + ((bits >> 16) & 1)) & -65536).to(tl.float32, bitcast=True)
    return tl.where(tile == tile, rounded, tile)


@triton.jit
def is_plain(
    target_ptr,
    weight_ptr,
    tile,
    n,
    lane,
    COLUMNS: tl.constexpr,
    ANCHORS: tl.constexpr,
    CLASS_INDEX: tl.constexpr,
    ANCHOR_WEIGHT: tl.constexpr,
    ELEMENT_WEIGHT: tl.constexpr,
):
    """Whether the tile is full and each of its elements is a counted negative (target 0, weight > 0).

    ANCHORS: a power of two, at least the number of anchors that a tile touches.
    """
    full = start_of(tile, lane) + lane.shape[0] <= n
    special = 1 - full.to(tl.int32)
    if CLASS_INDEX or ANCHOR_WEIGHT:
        first, offset = first_anchor(tile, lane.shape[0], COLUMNS)
        anchor = tl.arange(0, ANCHORS)
        in_tile = (anchor * COLUMNS < offset + lane.shape[0]) & full
        if CLASS_INDEX:
            label = tl.load(target_ptr + first + anchor, mask=in_tile, other=COLUMNS).to(tl.int64)
            special |= tl.max(((label >= 0) & (label < COLUMNS)).to(tl.int32))
        if ANCHOR_WEIGHT:
            weight = tl.load(weight_ptr + first + anchor, mask=in_tile, other=1)
            special |= tl.max(tl.where(weight > 0, 0, 1))
    if not CLASS_INDEX:
        special |= tl.max(tl.where(load_tile(target_ptr, tile, n, lane) == 0, 0, 1))
    if ELEMENT_WEIGHT:
        special |= tl.max(tl.where(load_tile(weight_ptr, tile, n, lane) > 0, 0, 1))
    return special == 0


@triton.jit
def _positive_as_it_was(weight):
    """Convert the weight to fp32, positive where it was positive: a tiny fp64 would round to 0."""
    rounded = weight.to(tl.float32)
    return tl.where((weight > 0) & (rounded == 0), 1e-38, rounded)


@triton.jit
def load_weight(
    weight_ptr, tile, n, lane, COLUMNS: tl.constexpr, ANCHOR_WEIGHT: tl.constexpr, ELEMENT_WEIGHT: tl.constexpr
):
    """Load the weight of each element: fp32, 1 where none was given, 0 past the end."""
    inside = start_of(tile, lane) + lane < n
    if ANCHOR_WEIGHT:
        first, anchor, _ = anchor_of(tile, lane, COLUMNS)
        weight = _positive_as_it_was(tl.load(weight_ptr + first + anchor, mask=inside, other=0))
    elif ELEMENT_WEIGHT:
        weight = _positive_as_it_was(load_tile(weight_ptr, tile, n, lane))
    else:
        weight = tl.where(inside, 1.0, 0.0)
    return weight


@triton.jit
def load_target(target_ptr, tile, n, lane, COLUMNS: tl.constexpr, CLASS_INDEX: tl.constexpr):
    """Load the fp32 target of each element. A class index gives 1 in the column that it names and 0 elsewhere."""
    if CLASS_INDEX:
        first, anchor, column = anchor_of(tile, lane, COLUMNS)
        label = tl.load(target_ptr + first + anchor, mask=start_of(tile, lane) + lane < n, other=-1).to(tl.int64)
        target = tl.where(label == column, 1.0, 0.0)
    else:
        target = load_fp32(target_ptr, tile, n, lane)
    return target


@triton.jit
def add_by_region(
    region, loss, counts, sums, BINS: tl.constexpr, SLOTS: tl.constexpr, FIRST: tl.constexpr, VECTOR: tl.constexpr
):
    """Add a tile to counts (all SLOTS) and its losses of the regions FIRST..BINS to sums.

    Present regions are added one after another: a handful beyond region 0 for a trained classifier. If there are more
    than MANY, all are added at once. VECTOR: consecutive elements of the tile in a lane; 0 if the tile is not that of
    `grids.ACCUMULATE`.
    """
    slot = tl.arange(0, SLOTS)
    found = tl.histogram(region, SLOTS)
    counts += found
    present = (found > 0) & (slot >= FIRST) & (slot <= BINS)
    many = False
    if VECTOR > 0 and SLOTS > MANY and SLOTS <= 32:
        many = tl.sum(present.to(tl.int32)) > MANY
        if many:
            loss = tl.where(region == SLOTS - 1, 0.0, loss)  # an ignored element may hold anything
            many = tl.max(tl.where(tl.abs(loss) < float("inf"), 0, 1)) == 0  # 0 * inf in the products would be NaN
        if many:
            sums += tl.where(present, _sums_of_slots(region, loss, SLOTS, VECTOR), 0.0)
    if not many:
        candidate = tl.where(present, slot, SLOTS)
        current = tl.min(candidate)
        while current < SLOTS:
            total = tl.sum(tl.where(region == current, loss, 0.0))
            sums = tl.where(slot == current, sums + total, sums)
            current = tl.min(tl.where(slot > current, candidate, SLOTS))
    return counts, sums


@triton.jit
def _sums_of_slots(region, loss, SLOTS: tl.constexpr, VECTOR: tl.constexpr):
    """Sum the losses of a tile by slot, [SLOTS]: first for each lane in registers, then over the lanes."""
    LANES: tl.constexpr = region.shape[0] // 8
    r0, r1, r2, r3, r4, r5, r6, r7 = _elements_of_lanes(region, VECTOR)
    l0, l1, l2, l3, l4, l5, l6, l7 = _elements_of_lanes(loss, VECTOR)
    sums = tl.zeros([SLOTS // DIGIT, DIGIT, LANES], tl.float32)
    sums = _add_one_each(sums, r0, l0)
    sums = _add_one_each(sums, r1, l1)
    sums = _add_one_each(sums, r2, l2)
    sums = _add_one_each(sums, r3, l3)
    sums = _add_one_each(sums, r4, l4)
    sums = _add_one_each(sums, r5, l5)
    sums = _add_one_each(sums, r6, l6)
    sums = _add_one_each(sums, r7, l7)
    return tl.sum(tl.trans(sums.reshape([SLOTS, LANES])), axis=0)


@triton.jit
def _elements_of_lanes(tile, VECTOR: tl.constexpr):
    """Split the eight elements of each lane into eight tensors [LANES]. Nothing moves between registers."""
    LANES: tl.constexpr = tile.shape[0] // 8
    tile = tl.permute(tl.reshape(tile, [8 // VECTOR, LANES, VECTOR]), (1, 0, 2)).reshape([LANES, 2, 2, 2])
    even, odd = tl.split(tile)
    even0, even1 = tl.split(even)
    odd0, odd1 = tl.split(odd)
    e00, e01 = tl.split(even0)
    e10, e11 = tl.split(even1)
    o00, o01 = tl.split(odd0)
    o10, o11 = tl.split(odd1)
    return e00, e01, e10, e11, o00, o01, o10, o11


@triton.jit
def _add_one_each(sums, region, loss):
    """Add one loss per lane to sums [SLOTS / DIGIT, DIGIT, LANES]: the product of the one-hots of two digits."""
    HIGH: tl.constexpr = sums.shape[0]
    high = tl.where((region // DIGIT)[None, :] == tl.arange(0, HIGH)[:, None], loss[None, :], 0.0)
    low = tl.where((region % DIGIT)[None, :] == tl.arange(0, DIGIT)[:, None], 1.0, 0.0)
    return sums + high[:, None, :] * low[None, :, :]


@triton.jit
def add_compensated(total, error, value):
    """Add value to total, and keep the rounding error apart (Kahan), for sums of many equal terms."""
    corrected = value - error
    after = total + corrected
    lost = (after - total) - corrected
    return after, tl.where(lost == lost, lost, 0.0)  # an infinite total stays infinite
