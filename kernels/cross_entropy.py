"""GHM cross entropy: one harmonizing weight per row of logits.

For a row of logits z_c with target distribution y_c (a class index, smoothed or not, or probabilities):

    m, s     = max_c z_c, sum_c exp(z_c - m)         one read of the row, block by block
    Y        = sum_c y_c                             1 but for probabilities that do not sum to 1
    p_c      = exp(z_c - m) / s
    g        = 1/2 * sum_c |p_c Y - y_c|             gradient norm; 1 - p_y for a class index
    j        = unit region of g
    R_j, L_j = number of rows, sum of CE = sum_c y_c (m + log(s) - z_c), over region j
    loss     = sum_j coefficient_j * L_j             coefficients: kernels/harmonize.py
    dz_c     = coefficient_j * (p_c Y - y_c) * grad  coefficients are constants of the step

The forward pass keeps m, Y / s and the slot j of each row. The slots are those of ghmc.py: BINS for NaN, the last for
ignored rows.
The gradient norm of probabilities and of smoothed class indices takes a second read of the row, which is in the cache.
"""

import torch
import triton
import triton.language as tl

from ..options import Options
from ..population import Level, loss_shape
from ..regions import floor_misses_edges
from . import grids
from .numerics import log_from_1, unit_region
from .rows import block_at, load_block, load_labels, load_target_block, rows_of
from .tiles import add_by_region, add_compensated, load_tile, round_to, store_tile

LOG2_E = tl.constexpr(1.4426950408889634)
LOWEST = tl.constexpr(-3.4028234663852886e38)  # finite: -inf - -inf would be NaN


@triton.jit
def _online_softmax(
    input_ptr,
    target_ptr,
    offset,
    counted,
    label,
    space,
    smoothing,
    COLUMNS: tl.constexpr,
    CLASS_INDEX: tl.constexpr,
    ROWS: tl.constexpr,
    BLOCK: tl.constexpr,
):
    """(m, s, Y) of the rows in one read of the logits, block by block."""
    maximum = tl.full([ROWS], LOWEST, tl.float32)
    sum_exp = tl.zeros([ROWS], tl.float32)
    mass = tl.zeros([ROWS], tl.float32)
    for first in range(0, COLUMNS, BLOCK):
        z = load_block(input_ptr, offset, counted, first, space, float("-inf"), COLUMNS, BLOCK)
        above = tl.maximum(maximum, tl.max(z, axis=1))
        block_sum = tl.sum(tl.exp2((z - above[:, None]) * LOG2_E), axis=1)
        sum_exp = sum_exp * tl.exp2((maximum - above) * LOG2_E) + block_sum
        maximum = above
        if not CLASS_INDEX:
            y = load_target_block(target_ptr, offset, counted, label, first, space, smoothing, COLUMNS, False, BLOCK)
            mass += tl.sum(y, axis=1)
    if CLASS_INDEX:
        mass += 1.0
    return maximum, sum_exp, mass


@triton.jit
def _terms_of_rows(
    input_ptr,
    target_ptr,
    offset,
    counted,
    label,
    maximum,
    sum_exp,
    inverse,
    mass,
    space,
    smoothing,
    COLUMNS: tl.constexpr,
    CLASS_INDEX: tl.constexpr,
    WHOLE_ROW: tl.constexpr,
    ROWS: tl.constexpr,
    BLOCK: tl.constexpr,
):
    """(CE, g) of the rows. inverse: 1 / s."""
    log_sum = log_from_1(sum_exp)
    if WHOLE_ROW:
        loss = mass * log_sum
        norm = tl.zeros([ROWS], tl.float32)
        for first in range(0, COLUMNS, BLOCK):
            z = load_block(input_ptr, offset, counted, first, space, float("-inf"), COLUMNS, BLOCK)
            y = load_target_block(
                target_ptr, offset, counted, label, first, space, smoothing, COLUMNS, CLASS_INDEX, BLOCK
            )
            below = z - maximum[:, None]
            loss -= tl.sum(tl.where(y == 0, 0.0, y * below), axis=1)
            p = tl.exp2(below * LOG2_E) * (mass * inverse)[:, None]
            norm += 0.5 * tl.sum(tl.abs(p - y), axis=1)
    else:
        at_label = tl.load(input_ptr + offset + label.to(tl.int64) * space, mask=counted, other=0.0).to(tl.float32)
        below = at_label - maximum
        loss = log_sum - below
        norm = 1.0 - tl.exp2(below * LOG2_E) * inverse
    return loss, norm


@triton.jit(do_not_specialize=["n", "tiles", "ignore_index", "smoothing"])
def _cross_entropy_accumulate_kernel(
    input_ptr,
    target_ptr,
    maximum_ptr,
    factor_ptr,
    slot_ptr,
    loss_ptr,
    counts_ptr,
    sums_ptr,
    n,
    tiles,
    space,
    ignore_index,
    smoothing,
    COLUMNS: tl.constexpr,
    BINS: tl.constexpr,
    SLOTS: tl.constexpr,
    AT_EDGES: tl.constexpr,
    CLASS_INDEX: tl.constexpr,
    WHOLE_ROW: tl.constexpr,
    CONSECUTIVE: tl.constexpr,
    ROWS: tl.constexpr,
    BLOCK: tl.constexpr,
):
    """Row program_id of counts and sums [programs, SLOTS], and what each row of logits keeps; tiles in stride programs.

    WHOLE_ROW: whether g needs all classes (smoothing or probabilities), not only that of the class index.
    """
    if CONSECUTIVE:
        space = 1
    program = tl.program_id(0)
    slots = tl.arange(0, SLOTS)
    counts = tl.zeros([SLOTS], tl.int32)
    total = tl.zeros([SLOTS], tl.float32)
    error = tl.zeros([SLOTS], tl.float32)
    for tile in range(program, tiles, tl.num_programs(0)):
        row, offset, inside = rows_of(tile, n, space, COLUMNS, CONSECUTIVE, ROWS)
        label, counted = load_labels(target_ptr, row, inside, ignore_index, COLUMNS, CLASS_INDEX)
        maximum, sum_exp, mass = _online_softmax(
            input_ptr, target_ptr, offset, counted, label, space, smoothing, COLUMNS, CLASS_INDEX, ROWS, BLOCK
        )
        inverse = 1.0 / tl.where(counted, sum_exp, 1.0)
        loss, norm = _terms_of_rows(
            input_ptr,
            target_ptr,
            offset,
            counted,
            label,
            maximum,
            sum_exp,
            inverse,
            mass,
            space,
            smoothing,
            COLUMNS,
            CLASS_INDEX,
            WHOLE_ROW,
            ROWS,
            BLOCK,
        )
        region = unit_region(tl.maximum(norm, 0.0), BINS, AT_EDGES)
        region = tl.where(norm == norm, region, BINS)
        region = tl.where(counted, region, SLOTS - 1)
        loss = tl.where(counted, loss, 0.0)
        tl.store(maximum_ptr + row, tl.where(counted, maximum, 0.0), mask=inside)
        tl.store(factor_ptr + row, tl.where(counted, mass * inverse, 0.0), mask=inside)
        tl.store(slot_ptr + row, region.to(tl.int16), mask=inside)
        if loss_ptr is not None:
            tl.store(loss_ptr + row, loss, mask=inside)
        sums = tl.zeros([SLOTS], tl.float32)
        if ROWS == 1:
            hit = slots == tl.max(region, axis=0)
            counts += hit.to(tl.int32)
            sums += tl.where(hit, tl.max(loss, axis=0), 0.0)
        else:
            counts, sums = add_by_region(region, loss, counts, sums, BINS, SLOTS, 0, 0)
        total, error = add_compensated(total, error, sums)
    at = program.to(tl.int64) * SLOTS
    tl.store(counts_ptr + at + slots, counts)
    tl.store(sums_ptr + at + slots, total)


@triton.jit(do_not_specialize=["n", "smoothing"])
def _cross_entropy_gradient_kernel(
    input_ptr,
    target_ptr,
    coefficients_ptr,
    maximum_ptr,
    factor_ptr,
    slot_ptr,
    grad_ptr,
    output_ptr,
    n,
    space,
    smoothing,
    COLUMNS: tl.constexpr,
    SLOTS: tl.constexpr,
    CLASS_INDEX: tl.constexpr,
    WHOLE_ROW: tl.constexpr,
    ROW_GRAD: tl.constexpr,
    PARTS: tl.constexpr,
    CONSECUTIVE: tl.constexpr,
    ROWS: tl.constexpr,
    BLOCK: tl.constexpr,
):
    """Write coefficient_j * (p Y - y) * grad of ROWS rows: one block of BLOCK classes if PARTS > 1, or all classes.

    grad is one number, or one per row (ROW_GRAD). Rows that are not counted are not read.
    """
    if CONSECUTIVE:
        space = 1
    STEPS: tl.constexpr = 1 if PARTS > 1 else (COLUMNS + BLOCK - 1) // BLOCK
    program = tl.program_id(0)
    row, offset, inside = rows_of(program // PARTS, n, space, COLUMNS, CONSECUTIVE, ROWS)
    slot = tl.load(slot_ptr + row, mask=inside, other=SLOTS - 1).to(tl.int32)
    counted = slot < SLOTS - 1
    maximum = tl.load(maximum_ptr + row, mask=inside, other=0.0)
    factor = tl.load(factor_ptr + row, mask=inside, other=0.0)
    if ROW_GRAD:
        grad = tl.load(grad_ptr + row, mask=inside, other=0.0)
    else:
        grad = tl.load(grad_ptr)
    scale = tl.where(counted, tl.load(coefficients_ptr + slot) * grad, 0.0)
    label = tl.zeros([ROWS], tl.int32)
    if CLASS_INDEX:
        label = tl.load(target_ptr + row, mask=inside, other=-1).to(tl.int32)
    for step in range(STEPS):
        first = (program % PARTS + step) * BLOCK  # STEPS or PARTS is 1
        z = load_block(input_ptr, offset, counted, first, space, 0.0, COLUMNS, BLOCK)
        p = tl.exp2((z - maximum[:, None]) * LOG2_E)
        if WHOLE_ROW:
            y = load_target_block(
                target_ptr, offset, counted, label, first, space, smoothing, COLUMNS, CLASS_INDEX, BLOCK
            )
            output = (p * factor[:, None] - y) * scale[:, None]
        else:
            column = first + tl.arange(0, BLOCK)
            of_label = tl.where(column[None, :] == label[:, None], scale[:, None], 0.0)
            output = p * (factor * scale)[:, None] - of_label
        at, mask = block_at(offset, inside, first, space, COLUMNS, BLOCK)
        tl.store(output_ptr + at, round_to(output, output_ptr.dtype.element_ty), mask=mask)


@triton.jit(do_not_specialize=["n"])
def _cross_entropy_scale_kernel(slot_ptr, loss_ptr, coefficients_ptr, n, BLOCK: tl.constexpr):
    """Multiplies the losses of the rows by their coefficients, in place."""
    tile = tl.program_id(0)
    lane = tl.arange(0, BLOCK)
    loss = load_tile(loss_ptr, tile, n, lane)
    coefficient = tl.load(coefficients_ptr + load_tile(slot_ptr, tile, n, lane))
    store_tile(loss_ptr, tile, n, lane, tl.where(loss != 0, coefficient * loss, 0.0))


programs = grids.row_programs


def buffers(level: Level, options: Options) -> list[torch.Tensor]:
    """Return tensors for what the forward pass finds per row, in the shape of the class indices.

    The maximum and Y / s (fp32) and the slot (int16), which the gradient needs; then for "none" the loss (fp32).
    """
    types = [torch.float32, torch.float32, torch.int16] + [torch.float32] * options.unreduced
    return [level.input.new_empty(loss_shape(level.input, options), dtype=dtype) for dtype in types]


def accumulate(
    level: Level, buffers: list[torch.Tensor], counts: torch.Tensor, sums: torch.Tensor, options: Options
) -> None:
    """Write all rows of counts and sums, one per program, and `buffers`."""
    maximum, factor, slot, *losses = buffers
    tile = grids.row_tile(level, options)
    _cross_entropy_accumulate_kernel[(len(counts),)](
        level.input,
        level.target,
        maximum,
        factor,
        slot,
        losses[0] if losses else None,
        counts,
        sums,
        len(level.input),
        tile.count(level),
        level.input.shape[2:].numel(),
        -1 if options.ignore_index is None else options.ignore_index,  # no negative index counts
        options.label_smoothing,
        BINS=options.bins,
        SLOTS=counts.shape[1],
        AT_EDGES=floor_misses_edges(options.bins),
        **_constants(level, options, tile),
    )


def gradient(
    level: Level, kept: list[torch.Tensor], grad: torch.Tensor, output: torch.Tensor, options: Options
) -> None:
    """Write `output`, of the shape of the input. grad: one number, or one per row. kept: coefficients, `buffers`."""
    coefficients, maximum, factor, slot = kept
    tile = grids.row_tile(level, options)
    _cross_entropy_gradient_kernel[(tile.count(level) * tile.parts,)](
        level.input,
        level.target,
        coefficients,
        maximum,
        factor,
        slot,
        grad,
        output,
        len(level.input),
        level.input.shape[2:].numel(),
        options.label_smoothing,
        SLOTS=len(coefficients),
        ROW_GRAD=grad.dim() > 0,
        PARTS=tile.parts,
        **_constants(level, options, tile),
    )


def scale(level: Level, buffers: list[torch.Tensor], coefficients: torch.Tensor, options: Options) -> torch.Tensor:
    """Multiply the losses of the rows by their coefficients, in place, and return them."""
    _, _, slot, losses = buffers
    if losses.numel():
        tile = grids.ELEMENTWISE
        _cross_entropy_scale_kernel[(grids.ceil_div(losses.numel(), tile.block),)](
            slot, losses, coefficients, losses.numel(), BLOCK=tile.block, num_warps=tile.warps
        )
    return losses


def _constants(level: Level, options: Options, tile: grids.RowTile) -> dict:
    return dict(
        COLUMNS=level.input.shape[1],
        CLASS_INDEX=level.class_index,
        WHOLE_ROW=grids.reads_whole_rows(level, options),
        CONSECUTIVE=level.input.dim() == 2,
        ROWS=tile.rows,
        BLOCK=tile.block,
        num_warps=tile.warps,
    )
