"""GHM-C: counts and loss sums per unit region, gradient, and the unreduced loss.

For logit x, target t, p = sigmoid(x):

    g        = |p - t|                               gradient norm (eq. 3)
    j        = unit region of g
    R_j, L_j = number of elements, sum of CE(x, t), over region j
    loss     = sum_j coefficient_j * L_j             coefficients: kernels/harmonize.py (eq. 8 to 13)
    dx       = coefficient_j * (p - t) * grad        coefficients are constants of the step

Slots of a row: 0..BINS-1 the regions, BINS for NaN (counted, in no region), the last for ignored elements.
"""

import functools
import math

import torch
import triton
import triton.language as tl

from ..options import Options
from ..population import Level
from . import grids
from .numerics import (
    add_log1p_small,
    cross_entropy_terms,
    exp_nonpositive,
    log1p_unit,
    negative_terms,
    reciprocal,
    reciprocal_small,
    sigmoid_pair,
    unit_region,
)
from .tiles import add_by_region, add_compensated, is_plain, load_fp32, load_target, load_tile, load_weight, store_tile

FLUSH = 16  # tiles added in plain fp32 before the compensated sum takes them


@triton.jit
def _region_of(residual, weight, BINS: tl.constexpr, SLOTS: tl.constexpr, AT_EDGES: tl.constexpr):
    region = unit_region(tl.abs(residual), BINS, AT_EDGES)
    region = tl.where(residual == residual, region, BINS)
    return tl.where(weight > 0, region, SLOTS - 1)


@triton.jit(do_not_specialize=["n", "easy_below"])
def _ghmc_accumulate_kernel(
    input_ptr,
    target_ptr,
    weight_ptr,
    counts_ptr,
    sums_ptr,
    n,
    easy_below,
    COLUMNS: tl.constexpr,
    BINS: tl.constexpr,
    SLOTS: tl.constexpr,
    AT_EDGES: tl.constexpr,
    CLASS_INDEX: tl.constexpr,
    ANCHOR_WEIGHT: tl.constexpr,
    ELEMENT_WEIGHT: tl.constexpr,
    BLOCK: tl.constexpr,
    ANCHORS: tl.constexpr,
    FLUSH: tl.constexpr,
):
    """Row program_id of counts [programs, SLOTS] int32 and sums [programs, SLOTS] fp32; tiles in stride programs.

    A tile of counted negatives with x < easy_below lies in region 0 as a whole: no label, region or mask is formed.
    """
    program = tl.program_id(0)
    programs = tl.num_programs(0)
    tiles = (n - 1) // BLOCK + 1
    lane = tl.arange(0, BLOCK)
    slot = tl.arange(0, SLOTS)
    VECTOR: tl.constexpr = 128 // input_ptr.dtype.element_ty.primitive_bitwidth
    counts = tl.zeros([SLOTS], tl.int32)
    total = tl.zeros([SLOTS], tl.float32)
    error = tl.zeros([SLOTS], tl.float32)
    for first in range(program, tiles, programs * FLUSH):
        easy_loss = tl.zeros([BLOCK], tl.float32)
        easy_count = 0
        sums = tl.zeros([SLOTS], tl.float32)
        for tile in range(first, tl.minimum(first + programs * FLUSH, tiles), programs):
            x = load_fp32(input_ptr, tile, n, lane)
            plain = is_plain(
                target_ptr, weight_ptr, tile, n, lane, COLUMNS, ANCHORS, CLASS_INDEX, ANCHOR_WEIGHT, ELEMENT_WEIGHT
            )
            outside = tl.max(tl.where(x < easy_below, 0, 1))
            if plain & (outside == 0):
                if BINS >= 29:
                    easy_loss = add_log1p_small(easy_loss, exp_nonpositive(x))
                else:
                    easy_loss += log1p_unit(exp_nonpositive(x))
                easy_count += BLOCK
            else:
                if plain:
                    loss, norm = negative_terms(x)
                    region = tl.where(x == x, unit_region(norm, BINS, AT_EDGES), BINS)
                else:
                    weight = load_weight(weight_ptr, tile, n, lane, COLUMNS, ANCHOR_WEIGHT, ELEMENT_WEIGHT)
                    target = load_target(target_ptr, tile, n, lane, COLUMNS, CLASS_INDEX)
                    loss, residual = cross_entropy_terms(x, target)
                    region = _region_of(residual, weight, BINS, SLOTS, AT_EDGES)
                easy_loss += tl.where(region == 0, loss, 0.0)
                counts, sums = add_by_region(region, loss, counts, sums, BINS, SLOTS, 1, VECTOR)
        counts += tl.where(slot == 0, easy_count, 0)
        sums += tl.where(slot == 0, tl.sum(easy_loss), 0.0)
        total, error = add_compensated(total, error, sums)
    row = program.to(tl.int64) * SLOTS
    tl.store(counts_ptr + row + slot, counts)
    tl.store(sums_ptr + row + slot, total)


@triton.jit(do_not_specialize=["n", "easy_below"])
def _ghmc_gradient_kernel(
    input_ptr,
    target_ptr,
    weight_ptr,
    coefficients_ptr,
    grad_ptr,
    output_ptr,
    n,
    easy_below,
    COLUMNS: tl.constexpr,
    BINS: tl.constexpr,
    AT_EDGES: tl.constexpr,
    CLASS_INDEX: tl.constexpr,
    ANCHOR_WEIGHT: tl.constexpr,
    ELEMENT_WEIGHT: tl.constexpr,
    ELEMENT_GRAD: tl.constexpr,
    BLOCK: tl.constexpr,
    ANCHORS: tl.constexpr,
):
    """Write coefficient_j * (p - t) * grad, one tile per program. grad: one number, or one per element."""
    lane = tl.arange(0, BLOCK)
    if not ELEMENT_GRAD:
        grad = tl.load(grad_ptr)
    tile = tl.program_id(0)
    x = load_fp32(input_ptr, tile, n, lane)
    plain = is_plain(
        target_ptr, weight_ptr, tile, n, lane, COLUMNS, ANCHORS, CLASS_INDEX, ANCHOR_WEIGHT, ELEMENT_WEIGHT
    )
    if ELEMENT_GRAD:
        grad = load_tile(grad_ptr, tile, n, lane)
    if plain & (tl.max(tl.where(x < easy_below, 0, 1)) == 0):
        e = exp_nonpositive(x)
        if BINS >= 29:
            residual = e * reciprocal_small(e)
        else:
            residual = e * reciprocal(1.0 + e)
        output = residual * (tl.load(coefficients_ptr) * grad)
    else:
        p, q, _ = sigmoid_pair(x)
        residual = p
        if not plain:
            weight = load_weight(weight_ptr, tile, n, lane, COLUMNS, ANCHOR_WEIGHT, ELEMENT_WEIGHT)
            target = load_target(target_ptr, tile, n, lane, COLUMNS, CLASS_INDEX)
            residual = (1.0 - target) * p - target * q
            residual = tl.where(weight > 0, residual, 0.0)
        coefficient = tl.load(coefficients_ptr + unit_region(tl.abs(residual), BINS, AT_EDGES))
        output = residual * coefficient * grad
    if ELEMENT_GRAD:  # that of an ignored element may be inf or NaN
        output = tl.where(residual != 0, output, 0.0)
    store_tile(output_ptr, tile, n, lane, output)


@triton.jit(do_not_specialize=["n"])
def _ghmc_scale_kernel(
    input_ptr,
    target_ptr,
    weight_ptr,
    coefficients_ptr,
    output_ptr,
    n,
    COLUMNS: tl.constexpr,
    BINS: tl.constexpr,
    SLOTS: tl.constexpr,
    AT_EDGES: tl.constexpr,
    CLASS_INDEX: tl.constexpr,
    ANCHOR_WEIGHT: tl.constexpr,
    ELEMENT_WEIGHT: tl.constexpr,
    BLOCK: tl.constexpr,
):
    """Write coefficient_j * CE(x, t), fp32, 0 where ignored: the loss before its reduction."""
    tile = tl.program_id(0)
    lane = tl.arange(0, BLOCK)
    x = load_fp32(input_ptr, tile, n, lane)
    weight = load_weight(weight_ptr, tile, n, lane, COLUMNS, ANCHOR_WEIGHT, ELEMENT_WEIGHT)
    target = load_target(target_ptr, tile, n, lane, COLUMNS, CLASS_INDEX)
    loss, residual = cross_entropy_terms(x, target)
    region = _region_of(residual, weight, BINS, SLOTS, AT_EDGES)
    coefficient = tl.load(coefficients_ptr + region)
    store_tile(output_ptr, tile, n, lane, tl.where((weight > 0) & (loss != 0), coefficient * loss, 0.0))


@functools.cache
def _easy_below(bins: int) -> float:
    """Return a logit, at most 0, below which the sigmoid lies in region 0 with any rounding."""
    if bins < 3:
        return -1e-5
    logit = -math.log(bins - 1)
    return logit - 1e-5 * max(1.0, -logit)


programs = grids.accumulate_programs


def buffers(level: Level, options: Options) -> list[torch.Tensor]:
    """Return nothing: the other kernels find the region of an element again."""
    return []


def accumulate(
    level: Level, buffers: list[torch.Tensor], counts: torch.Tensor, sums: torch.Tensor, options: Options
) -> None:
    """Write all rows of counts and sums, one per program."""
    _ghmc_accumulate_kernel[(len(counts),)](
        level.input,
        level.target,
        level.weight,
        counts,
        sums,
        level.input.numel(),
        _easy_below(options.bins),
        SLOTS=counts.shape[1],
        CLASS_INDEX=level.class_index,
        ANCHORS=grids.touched_anchors(level, grids.ACCUMULATE, grids.LANES),
        FLUSH=FLUSH,
        **grids.specialize(level, options, grids.ACCUMULATE),
    )


def gradient(
    level: Level, kept: list[torch.Tensor], grad: torch.Tensor, output: torch.Tensor, options: Options
) -> None:
    """Write `output`, of the shape of the input. grad: one number, or one per element. kept: the coefficients."""
    (coefficients,) = kept
    _ghmc_gradient_kernel[grids.ACCUMULATE.grid(level)](
        level.input,
        level.target,
        level.weight,
        coefficients,
        grad,
        output,
        level.input.numel(),
        _easy_below(options.bins),
        CLASS_INDEX=level.class_index,
        ELEMENT_GRAD=grad.shape == level.input.shape,
        ANCHORS=grids.touched_anchors(level, grids.ACCUMULATE, 1),
        **grids.specialize(level, options, grids.ACCUMULATE),
    )


def scale(level: Level, buffers: list[torch.Tensor], coefficients: torch.Tensor, options: Options) -> torch.Tensor:
    """Return the losses of the elements times their coefficients, fp32, of the shape of the input."""
    output = torch.empty_like(level.input, dtype=torch.float32)
    if not output.numel():
        return output
    _ghmc_scale_kernel[grids.ELEMENTWISE.grid(level)](
        level.input,
        level.target,
        level.weight,
        coefficients,
        output,
        level.input.numel(),
        SLOTS=len(coefficients),
        CLASS_INDEX=level.class_index,
        **grids.specialize(level, options, grids.ELEMENTWISE),
    )
    return output
