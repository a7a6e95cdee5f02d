"""The loss and the coefficients of the gradient from counts and loss sums per region.

    R_j, L_j  number of elements and sum of losses of region j; N = sum_j R_j, or the sum of the weights
    S_j       R_j, or its moving average a * S_j + (1 - a) * R_j (eq. 12)
    rho       the exponent: 1 in the paper, where K is BINS, or the number of regions with R_j > 0 ("mmdet")
    K         sum_k S_k^(1 - rho), over all regions, or those with R_k > 0 ("mmdet"); 0^0 is 1
    c_j       scale / (S_j^rho * K), the harmonizing weight beta_j / N (eq. 10, 13)
    loss      sum_j c_j * L_j

with scale = loss_weight * F / N for the mean and loss_weight * F otherwise. F is N without NaN ("mmdet": with it).
"paper" averages the constant 1 beside the counts and divides S by it, which is 1 - a^t after t steps; "mmdet" averages
only the regions with R_j > 0, as they are.
"""

import torch
import triton
import triton.language as tl

from ..distributed import all_reduce
from ..options import Options
from ..regions import FORGOTTEN, slots_of_kernels
from .tiles import add_compensated

FOLD_TILE = 2048  # rows * slots that one program adds at once


@triton.jit(do_not_specialize=["rows"])
def _fold_kernel(
    counts_ptr, sums_ptr, folded_counts_ptr, folded_sums_ptr, rows, SLOTS: tl.constexpr, ROWS: tl.constexpr
):
    """Row program_id (int64, fp32): every num_programs-th row added up, ROWS at a time, always in the same order."""
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


@triton.jit(do_not_specialize=["rows", "momentum", "complement", "loss_weight", "exponent"])
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
    exponent,
    BINS: tl.constexpr,
    SLOTS: tl.constexpr,
    ROWS: tl.constexpr,
    MMDET: tl.constexpr,
    MEAN: tl.constexpr,
    SUM_WEIGHTS: tl.constexpr,
    HAS_STATE: tl.constexpr,
    UPDATE: tl.constexpr,
    TEMPERED: tl.constexpr,
    FORGOTTEN: tl.constexpr,
):
    """One program: rows <= ROWS of counts and sums; writes coefficients [SLOTS], the loss, and the new state.

    TEMPERED: whether the exponent is not 1. complement: 1 - momentum, rounded once.
    running: [BINS + 1] ("paper", the average of 1 last) or [BINS] ("mmdet").
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
        weights = tl.sum(tl.where(slot == SLOTS - 1, sums, 0.0))
        size = tl.where(weights < 1, 1.0, weights)  # NaN stays NaN
    else:
        size = tl.maximum(valid, 1).to(tl.float32)
    finite = tl.sum(tl.where(slot < BINS, counts, 0)).to(tl.float32)

    smooth = density
    if HAS_STATE:
        new = momentum * old + complement * density
        if not UPDATE:
            known = (old >= FORGOTTEN) | ((old > 0) & (density == 0))
            smooth = tl.where(known, old if MMDET else old / age, density)
        elif MMDET:
            smooth = tl.where(present, new, old)
            tl.store(new_running_ptr + slot, smooth, mask=slot < BINS)
        else:
            grown = momentum * age + complement
            smooth = new / grown
            tl.store(new_running_ptr + slot, tl.where(valid > 0, new, old), mask=slot < BINS)
            tl.store(new_running_ptr + BINS, tl.where(valid > 0, grown, age))

    power = smooth
    if TEMPERED:
        empty = smooth == 0
        logarithm = tl.log2(tl.where(empty, 1.0, smooth))  # NaN stays NaN
        power = tl.exp2(exponent * logarithm)
        share = tl.where(empty, 0.0, tl.exp2((1.0 - exponent) * logarithm))
        divisor = tl.sum(tl.where(present, share, 0.0) if MMDET else share)
    elif MMDET:
        divisor = tl.sum(present.to(tl.float32))
    else:
        divisor = BINS * 1.0
    if not MEAN:
        scale = loss_weight * (size if MMDET else finite)
    elif MMDET:
        scale = loss_weight * (size / (size + 1.1920928955078125e-07))
    else:
        scale = loss_weight * tl.div_rn(finite, size)  # exactly loss_weight without NaN
    coefficient = tl.where(present, scale / tl.where(present, power * divisor, 1.0), 0.0)
    coefficient = tl.where(slot == BINS, scale, coefficient)  # the slot of NaN carries it to the loss
    tl.store(coefficients_ptr + slot, coefficient)
    found = (slot <= BINS) & (counts > 0)
    tl.store(loss_ptr, tl.sum(tl.where(found, coefficient * sums, 0.0)))


class Rows:
    """Counts int32 and loss sums fp32, both [programs of all levels, slots]. Each program writes its own row."""

    def __init__(self, input: torch.Tensor, programs: list[int], bins: int):
        self.counts = input.new_empty(sum(programs), slots_of_kernels(bins), dtype=torch.int32)
        self.sums = torch.empty_like(self.counts, dtype=torch.float32)
        self._programs = programs

    def from_level(self, index: int) -> tuple[torch.Tensor, torch.Tensor]:
        """Return the rows of one level."""
        first = sum(self._programs[:index])
        rows = slice(first, first + self._programs[index])
        return self.counts[rows], self.sums[rows]


def launch_harmonize(
    rows: Rows, running_counts: torch.Tensor | None, options: Options, *, sum_weights: bool
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor | None]:
    """(loss [], coefficients [slots], both fp32; new running_counts if there are any and `update`).

    sum_weights: whether N is the sum of the weights, which the last slot of the sums holds.
    """
    counts, sums, slots = rows.counts, rows.sums, rows.counts.shape[1]
    limit = max(1, FOLD_TILE // slots)
    if len(counts) > limit:
        counts, sums = _fold(counts, sums, limit, limit)
    if options.group is not None:
        counts, sums = _fold(counts, sums, 1, limit)
        _share(counts, sums, options, sum_weights)
    loss, coefficients = sums.new_empty(()), sums.new_empty(slots)
    state = torch.empty_like(running_counts) if running_counts is not None and options.update else None
    _harmonize_kernel[(1,)](
        counts,
        sums,
        running_counts,
        coefficients,
        loss,
        state,
        len(counts),
        options.momentum,
        1.0 - options.momentum,
        options.loss_weight,
        options.exponent,
        BINS=options.bins,
        SLOTS=slots,
        ROWS=limit,
        MMDET=options.mmdet,
        MEAN=options.mean,
        SUM_WEIGHTS=sum_weights,
        HAS_STATE=running_counts is not None,
        UPDATE=options.update,
        TEMPERED=options.exponent != 1,
        FORGOTTEN=FORGOTTEN,
        num_warps=4,
    )
    return loss, coefficients, state


def _fold(counts: torch.Tensor, sums: torch.Tensor, programs: int, limit: int) -> tuple[torch.Tensor, torch.Tensor]:
    """One row per program, int64 and fp32; each program adds up to `limit` rows at once."""
    slots = counts.shape[1]
    folded_counts, folded_sums = counts.new_empty(programs, slots, dtype=torch.int64), sums.new_empty(programs, slots)
    _fold_kernel[(programs,)](
        counts, sums, folded_counts, folded_sums, len(counts), SLOTS=slots, ROWS=limit, num_warps=4
    )
    return folded_counts, folded_sums


def _share(counts: torch.Tensor, sums: torch.Tensor, options: Options, sum_weights: bool) -> None:
    """Write the counts of all processes, and N, into the only row of `counts` and `sums`."""
    bins = options.bins
    own = counts[0].double()
    total = sums[0, -1:].double() if sum_weights else own[: bins + 1].sum(0, keepdim=True)
    density, total = all_reduce(torch.cat([own[:bins], total]), options.group).split([bins, 1])
    counts[0, :bins] = density
    if sum_weights:
        sums[0, -1:] = total
    else:
        counts[0, bins : bins + 1] = total - density.sum()  # NaN, which is in no region
