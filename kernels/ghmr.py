"""GHM-R: counts and loss sums per unit region, gradient, and the unreduced loss.

For d = input - target:

    g        = |d| / sqrt(d^2 + mu^2)                gradient norm (eq. 17)
    j        = unit region of g
    R_j, L_j = number of elements, sum of ASL1(d), over region j
    loss     = sum_j coefficient_j * L_j             coefficients: kernels/harmonize.py (eq. 18)
    dinput   = coefficient_j * d / sqrt(d^2 + mu^2) * grad

Slots of a row as in ghmc.py; the last one's sum holds the sum of the weights where the variant asks for it.
"""

import torch
import triton
import triton.language as tl

from ..options import Options
from ..population import Level
from . import grids
from .numerics import asl1_terms, unit_region
from .tiles import add_by_region, add_compensated, load_fp32, load_tile, load_weight, store_tile


@triton.jit
def _load_terms(input_ptr, target_ptr, tile, n, lane, mu, mu_squared):
    difference = load_fp32(input_ptr, tile, n, lane) - load_fp32(target_ptr, tile, n, lane)
    return asl1_terms(difference, mu, mu_squared)


@triton.jit(do_not_specialize=["n"])
def _ghmr_accumulate_kernel(
    input_ptr,
    target_ptr,
    weight_ptr,
    counts_ptr,
    sums_ptr,
    n,
    mu,
    mu_squared,
    COLUMNS: tl.constexpr,
    BINS: tl.constexpr,
    SLOTS: tl.constexpr,
    AT_EDGES: tl.constexpr,
    ANCHOR_WEIGHT: tl.constexpr,
    ELEMENT_WEIGHT: tl.constexpr,
    SUM_WEIGHTS: tl.constexpr,
    BLOCK: tl.constexpr,
):
    """Row program_id of counts [programs, SLOTS] int32 and sums [programs, SLOTS] fp32; tiles in stride programs.

    A tile without counted elements is not read. Most tiles are such where few anchors have a box.
    """
    program = tl.program_id(0)
    lane = tl.arange(0, BLOCK)
    slot = tl.arange(0, SLOTS)
    VECTOR: tl.constexpr = 128 // input_ptr.dtype.element_ty.primitive_bitwidth
    counts = tl.zeros([SLOTS], tl.int32)
    total = tl.zeros([SLOTS], tl.float32)
    error = tl.zeros([SLOTS], tl.float32)
    for tile in range(program, (n - 1) // BLOCK + 1, tl.num_programs(0)):
        weight = load_weight(weight_ptr, tile, n, lane, COLUMNS, ANCHOR_WEIGHT, ELEMENT_WEIGHT)
        sums = tl.zeros([SLOTS], tl.float32)
        if SUM_WEIGHTS:
            sums += tl.where(slot == SLOTS - 1, tl.sum(tl.where(weight == weight, weight, 0.0)), 0.0)
        if tl.max(tl.where(weight > 0, 1, 0)) > 0:
            loss, slope = _load_terms(input_ptr, target_ptr, tile, n, lane, mu, mu_squared)
            region = unit_region(tl.abs(slope), BINS, AT_EDGES)
            region = tl.where(slope == slope, region, BINS)
            region = tl.where(weight > 0, region, SLOTS - 1)
            counts, sums = add_by_region(region, loss, counts, sums, BINS, SLOTS, 0, VECTOR)
        total, error = add_compensated(total, error, sums)
    row = program.to(tl.int64) * SLOTS
    tl.store(counts_ptr + row + slot, counts)
    tl.store(sums_ptr + row + slot, total)


@triton.jit(do_not_specialize=["n"])
def _ghmr_gradient_kernel(
    input_ptr,
    target_ptr,
    weight_ptr,
    coefficients_ptr,
    grad_ptr,
    output_ptr,
    n,
    mu,
    mu_squared,
    COLUMNS: tl.constexpr,
    BINS: tl.constexpr,
    AT_EDGES: tl.constexpr,
    ANCHOR_WEIGHT: tl.constexpr,
    ELEMENT_WEIGHT: tl.constexpr,
    ELEMENT_GRAD: tl.constexpr,
    BLOCK: tl.constexpr,
):
    """Write coefficient_j * d / sqrt(d^2 + mu^2) * grad, one tile per program. grad: one number, or one each."""
    tile = tl.program_id(0)
    lane = tl.arange(0, BLOCK)
    weight = load_weight(weight_ptr, tile, n, lane, COLUMNS, ANCHOR_WEIGHT, ELEMENT_WEIGHT)
    output = tl.zeros([BLOCK], tl.float32)
    if tl.max(tl.where(weight > 0, 1, 0)) > 0:
        _, slope = _load_terms(input_ptr, target_ptr, tile, n, lane, mu, mu_squared)
        coefficient = tl.load(coefficients_ptr + unit_region(tl.abs(slope), BINS, AT_EDGES))
        if ELEMENT_GRAD:
            grad = load_tile(grad_ptr, tile, n, lane)
        else:
            grad = tl.load(grad_ptr)
        output = tl.where((weight > 0) & (slope != 0), slope * coefficient * grad, 0.0)
    store_tile(output_ptr, tile, n, lane, output)


@triton.jit(do_not_specialize=["n"])
def _ghmr_scale_kernel(
    input_ptr,
    target_ptr,
    weight_ptr,
    coefficients_ptr,
    output_ptr,
    n,
    mu,
    mu_squared,
    COLUMNS: tl.constexpr,
    BINS: tl.constexpr,
    AT_EDGES: tl.constexpr,
    ANCHOR_WEIGHT: tl.constexpr,
    ELEMENT_WEIGHT: tl.constexpr,
    BLOCK: tl.constexpr,
):
    """Write coefficient_j * ASL1(d), fp32, 0 where ignored: the loss before its reduction."""
    tile = tl.program_id(0)
    lane = tl.arange(0, BLOCK)
    weight = load_weight(weight_ptr, tile, n, lane, COLUMNS, ANCHOR_WEIGHT, ELEMENT_WEIGHT)
    loss, slope = _load_terms(input_ptr, target_ptr, tile, n, lane, mu, mu_squared)
    coefficient = tl.load(coefficients_ptr + unit_region(tl.abs(slope), BINS, AT_EDGES))
    store_tile(output_ptr, tile, n, lane, tl.where((weight > 0) & (loss != 0), coefficient * loss, 0.0))


programs = grids.accumulate_programs


def buffers(level: Level, options: Options) -> list[torch.Tensor]:
    """Return nothing: the other kernels find the region of an element again."""
    return []


def accumulate(
    level: Level, buffers: list[torch.Tensor], counts: torch.Tensor, sums: torch.Tensor, options: Options
) -> None:
    """Write all rows of counts and sums, one per program."""
    _ghmr_accumulate_kernel[(len(counts),)](
        level.input,
        level.target,
        level.weight,
        counts,
        sums,
        level.input.numel(),
        options.mu,
        options.mu * options.mu,
        SLOTS=counts.shape[1],
        SUM_WEIGHTS=options.mmdet and level.weight is not None,
        **grids.specialize(level, options, grids.ACCUMULATE),
    )


def gradient(
    level: Level, kept: list[torch.Tensor], grad: torch.Tensor, output: torch.Tensor, options: Options
) -> None:
    """Write `output`, of the shape of the input. grad: one number, or one per element. kept: the coefficients."""
    (coefficients,) = kept
    _ghmr_gradient_kernel[grids.ELEMENTWISE.grid(level)](
        level.input,
        level.target,
        level.weight,
        coefficients,
        grad,
        output,
        level.input.numel(),
        options.mu,
        options.mu * options.mu,
        ELEMENT_GRAD=grad.shape == level.input.shape,
        **grids.specialize(level, options, grids.ELEMENTWISE),
    )


def scale(level: Level, buffers: list[torch.Tensor], coefficients: torch.Tensor, options: Options) -> torch.Tensor:
    """Return the losses of the elements times their coefficients, fp32, of the shape of the input."""
    output = torch.empty_like(level.input, dtype=torch.float32)
    if not output.numel():
        return output
    _ghmr_scale_kernel[grids.ELEMENTWISE.grid(level)](
        level.input,
        level.target,
        level.weight,
        coefficients,
        output,
        level.input.numel(),
        options.mu,
        options.mu * options.mu,
        **grids.specialize(level, options, grids.ELEMENTWISE),
    )
    return output
