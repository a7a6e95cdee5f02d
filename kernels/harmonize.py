"""From counts and loss sums by region to the loss and the coefficients of the gradient.

    R_j, L_j  number of elements and sum of losses of region j; N = sum_j R_j, or the sum of the weights
    S_j       R_j, or its moving average a * S_j + (1 - a) * R_j (eq. 12)
    K         BINS, or the number of regions with R_j > 0 ("mmdet")
    c_j       scale / max(S_j * K, floor * N), the harmonizing weight beta_j / N (eq. 10, 13), beta_j at most 1 / floor
    loss      sum_j c_j * L_j

with scale = loss_weight for the mean and loss_weight * N otherwise. "paper" averages the constant 1 beside the counts
and divides S by it, which is 1 - a^t after t steps; "mmdet" averages only the regions with R_j > 0, as they are.
"""

import triton
import triton.language as tl

from .tiles import add_compensated


@triton.jit(do_not_specialize=["rows"])
def _fold_kernel(
    counts_ptr, sums_ptr, folded_counts_ptr, folded_sums_ptr, rows, SLOTS: tl.constexpr, ROWS: tl.constexpr
):
    """Adds up every num_programs-th row, ROWS at a time and always in the same order, into row program_id (int64, fp32)."""
    program = tl.program_id(0)
    slot = tl.arange(0, SLOTS)
    counts = tl.zeros([SLOTS], tl.int64)
    sums = tl.zeros([SLOTS], tl.float32)
    error = tl.zeros([SLOTS], tl.float32)
    for first in range(program, rows, ROWS * tl.num_programs(0)):
        row = tl.cast(first, tl.int64) + tl.arange(0, ROWS) * tl.num_programs(0)
        at = row[:, None] * SLOTS + slot[None, :]
        inside = row[:, None] < rows
        counts += tl.sum(tl.load(counts_ptr + at, mask=inside, other=0).to(tl.int64), axis=0)
        sums, error = add_compensated(sums, error, tl.sum(tl.load(sums_ptr + at, mask=inside, other=0.0), axis=0))
    tl.store(folded_counts_ptr + program * SLOTS + slot, counts)
    tl.store(folded_sums_ptr + program * SLOTS + slot, sums)


@triton.jit(do_not_specialize=["rows", "momentum", "complement", "loss_weight", "floor"])
def _harmonize_kernel(
    counts_ptr,
    sums_ptr,
    running_ptr,
    coefficients_ptr,
    loss_ptr,
    new_running_ptr,
    rows,
    momentum,
    complement,
    loss_weight,
    floor,
    BINS: tl.constexpr,
    SLOTS: tl.constexpr,
    ROWS: tl.constexpr,
    MMDET: tl.constexpr,
    MEAN: tl.constexpr,
    SUM_WEIGHTS: tl.constexpr,
    HAS_STATE: tl.constexpr,
    UPDATE: tl.constexpr,
):
    """One program: rows <= ROWS of counts and sums; writes coefficients [SLOTS], the loss, and the new state.

    complement: 1 - momentum, rounded once. floor: 0 where beta has no limit. running: [BINS + 1] ("paper", the average of 1 last) or [BINS] ("mmdet").
    """
    slot = tl.arange(0, SLOTS)
    row = tl.arange(0, ROWS)
    at = row[:, None] * SLOTS + slot[None, :]
    inside = row[:, None] < rows
    if HAS_STATE:
        old = tl.load(running_ptr + slot, mask=slot < BINS, other=0.0)
        if not MMDET:
            age = tl.load(running_ptr + BINS)
    counts = tl.sum(tl.load(counts_ptr + at, mask=inside, other=0).to(tl.int64), axis=0)
    sums = tl.sum(tl.load(sums_ptr + at, mask=inside, other=0.0), axis=0)
    valid = tl.sum(tl.where(slot <= BINS, counts, 0))
    density = tl.where(slot < BINS, counts, 0).to(tl.float32)
    present = density > 0
    if SUM_WEIGHTS:
        size = tl.maximum(tl.sum(tl.where(slot == SLOTS - 1, sums, 0.0)), 1.0)
    else:
        size = tl.maximum(valid, 1).to(tl.float32)

    smooth = density
    if HAS_STATE:
        new = momentum * old + complement * density
        if MMDET:
            smooth = tl.where(present, new, old)
            if UPDATE:
                tl.store(new_running_ptr + slot, smooth, mask=slot < BINS)
        else:
            if UPDATE:
                grown = momentum * age + complement
                smooth = new / grown
                tl.store(new_running_ptr + slot, tl.where(valid > 0, new, old), mask=slot < BINS)
                tl.store(new_running_ptr + BINS, tl.where(valid > 0, grown, age))
            else:
                smooth = tl.where(old > 0, old / age, density)

    if MMDET:
        divisor = tl.sum(present.to(tl.float32))
    else:
        divisor = BINS * 1.0
    if not MEAN:
        scale = loss_weight * size
    elif MMDET:
        scale = loss_weight * (size / (size + 1.1920928955078125e-07))
    else:
        scale = loss_weight
    coefficient = tl.where(present, scale / tl.where(present, tl.maximum(smooth * divisor, floor * size), 1.0), 0.0)
    coefficient = tl.where(slot == BINS, scale, coefficient)  # the slot of NaN carries it to the loss
    tl.store(coefficients_ptr + slot, coefficient)
    found = (slot <= BINS) & (counts > 0)
    tl.store(loss_ptr, tl.sum(tl.where(found, coefficient * sums, 0.0)))
