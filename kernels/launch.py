"""Launchers: grids, block sizes and buffers for the kernels; the operators of ghm_triton.ops are launch_forward and
launch_backward.

`inputs`, `targets`, `weights` are lists of contiguous tensors, one a level; `weights` may be empty. Arguments are taken
as checked. A target with one dimension less than its input holds class indices, a weight with one less a number an
anchor. `mu` is None for GHM-C.
"""

import contextlib
import functools
import math

import torch
import triton

from ..distributed import all_reduce
from ..regions import floor_misses_edges
from .ghmc import _ghmc_accumulate_kernel, _ghmc_gradient_kernel, _ghmc_weigh_kernel
from .ghmr import _ghmr_accumulate_kernel, _ghmr_gradient_kernel, _ghmr_weigh_kernel
from .harmonize import _fold_kernel, _harmonize_kernel

LANES = 64 if torch.version.hip else 32
ACCUMULATE_BLOCK = 8 * LANES  # of one warp: a tile leaves the fast path by itself, and nothing waits at a barrier
ACCUMULATE_WARPS = 1
ELEMENTWISE_BLOCK = 2048
ELEMENTWISE_WARPS = 4
PROGRAMS_PER_SM = 20  # of 32 threads and up to 96 registers: all are resident at once
FLUSH = 16  # tiles added in plain fp32 before the compensated sum takes them
FOLD_TILE = 2048  # rows * slots that one program adds at once


@functools.cache
def _easy_below(bins: int) -> float:
    """A logit, at most 0, below which sigmoid lies in region 0 whatever its rounding."""
    if bins < 3:
        return -1e-5
    logit = -math.log(bins - 1)
    return logit - 1e-5 * max(1.0, -logit)


@functools.cache
def _resident_programs(device: torch.device) -> int:
    if device.type == "cuda":
        return torch.cuda.get_device_properties(device).multi_processor_count * PROGRAMS_PER_SM
    if device.type == "xpu":
        return torch.xpu.get_device_properties(device).max_compute_units * PROGRAMS_PER_SM
    return 32  # interpreter


def _on(device: torch.device):
    """Triton launches on the current device; make that the tensors' own."""
    return getattr(torch, device.type).device(device) if device.type in ("cuda", "xpu") else contextlib.nullcontext()


def _columns(input, target, weight) -> int:
    """Elements an anchor; 1 where nothing is given by anchor, lest a vector of each new length be compiled for."""
    by_anchor = target.dim() < input.dim() or (weight is not None and weight.dim() < input.dim())
    return input.shape[-1] if by_anchor else 1


def _specialisation(input, target, weight, bins, block) -> dict:
    """The constants that a kernel of either loss is compiled for."""
    by_anchor = weight is not None and weight.dim() < input.dim()
    return dict(
        COLUMNS=_columns(input, target, weight),
        BINS=bins,
        AT_EDGES=floor_misses_edges(bins),
        ANCHOR_WEIGHT=by_anchor,
        ELEMENT_WEIGHT=weight is not None and not by_anchor,
        BLOCK=block,
        num_warps=ACCUMULATE_WARPS if block == ACCUMULATE_BLOCK else ELEMENTWISE_WARPS,
    )


def _class_index(input, target) -> dict:
    return dict(CLASS_INDEX=target.dim() < input.dim())


def _anchors(input, target, weight, block) -> dict:
    """A power of two, at least the number of anchors that a tile of `block` elements can touch."""
    columns = _columns(input, target, weight)
    return dict(ANCHORS=triton.next_power_of_2((block - 1) // columns + (1 if block % columns == 0 else 2)))


def _tiles(input, block) -> tuple[int]:
    return (triton.cdiv(input.numel(), block),)


def _levels(inputs, targets, weights):
    """(input, target, weight or None, level) of the levels that have elements."""
    for level, (input, target) in enumerate(zip(inputs, targets)):
        if input.numel():
            yield input, target, weights[level] if weights else None, level


class _Rows:
    """Counts int32 and loss sums fp32, both [programs of all levels, slots]: every program writes a row of its own."""

    def __init__(self, inputs, bins):
        resident = _resident_programs(inputs[0].device)
        self.slots = triton.next_power_of_2(bins + 2)
        self.programs = [min(*_tiles(input, ACCUMULATE_BLOCK), resident) for input in inputs]
        self.counts = inputs[0].new_empty(sum(self.programs), self.slots, dtype=torch.int32)
        self.sums = inputs[0].new_empty(sum(self.programs), self.slots, dtype=torch.float32)

    def of(self, level):
        first = sum(self.programs[:level])
        return self.counts[first:], self.sums[first:]


def _share(counts, sums, bins, sum_weights, group):
    """Puts the counts of all processes, and N, into the only row of `counts` and `sums`."""
    own = counts[0].double()
    total = sums[0, -1:].double() if sum_weights else own[: bins + 1].sum(0, keepdim=True)
    density, total = all_reduce(torch.cat([own[:bins], total]), group).split([bins, 1])
    counts[0, :bins] = density
    if sum_weights:
        sums[0, -1:] = total
    else:
        counts[0, bins : bins + 1] = total - density.sum()  # NaN, which is in no region


def _accumulate(inputs, targets, weights, mu, bins, sum_weights) -> _Rows:
    rows = _Rows(inputs, bins)
    for input, target, weight, level in _levels(inputs, targets, weights):
        arguments = (input, target, weight, *rows.of(level), input.numel())
        constants = _specialisation(input, target, weight, bins, ACCUMULATE_BLOCK) | dict(SLOTS=rows.slots)
        grid = (rows.programs[level],)
        if mu is None:
            constants |= _class_index(input, target) | _anchors(input, target, weight, ACCUMULATE_BLOCK)
            _ghmc_accumulate_kernel[grid](*arguments, _easy_below(bins), FLUSH=FLUSH, **constants)
        else:
            _ghmr_accumulate_kernel[grid](*arguments, mu, mu * mu, SUM_WEIGHTS=sum_weights, **constants)
    return rows


def _fold(counts, sums, limit) -> tuple[torch.Tensor, torch.Tensor]:
    """`limit` rows of them, int64 and fp32."""
    slots = counts.shape[1]
    folded_counts, folded_sums = counts.new_empty(limit, slots, dtype=torch.int64), sums.new_empty(limit, slots)
    _fold_kernel[(limit,)](counts, sums, folded_counts, folded_sums, len(counts), SLOTS=slots, ROWS=limit, num_warps=4)
    return folded_counts, folded_sums


def _harmonize(rows, running_counts, bins, momentum, loss_weight, max_weight, mmdet, mean, update, sum_weights, group):
    """Adds the rows up; returns (loss [], coefficients [slots]), both fp32, and the new running_counts if `update`."""
    counts, sums, slots = rows.counts, rows.sums, rows.slots
    limit = max(1, FOLD_TILE // slots)
    if group is not None:
        counts, sums = _fold(counts, sums, 1)
        _share(counts, sums, bins, sum_weights, group)
    elif len(counts) > limit:
        counts, sums = _fold(counts, sums, limit)
    loss, coefficients = sums.new_empty(()), sums.new_empty(slots)
    state = torch.empty_like(running_counts) if running_counts is not None and update else None
    _harmonize_kernel[(1,)](
        counts,
        sums,
        running_counts,
        coefficients,
        loss,
        state,
        len(counts),
        momentum,
        1.0 - momentum,
        loss_weight,
        0.0 if max_weight is None else 1 / max_weight,
        BINS=bins,
        SLOTS=slots,
        ROWS=limit,
        MMDET=mmdet,
        MEAN=mean,
        SUM_WEIGHTS=sum_weights,
        HAS_STATE=running_counts is not None,
        UPDATE=update,
        num_warps=4,
    )
    return loss, coefficients, state


def _weigh(inputs, targets, weights, coefficients, mu, bins) -> list[torch.Tensor]:
    """The losses of the elements, fp32, in the shapes of the inputs."""
    outputs = [torch.empty_like(input, dtype=torch.float32) for input in inputs]
    for input, target, weight, level in _levels(inputs, targets, weights):
        arguments = (input, target, weight, coefficients, outputs[level], input.numel())
        constants = _specialisation(input, target, weight, bins, ELEMENTWISE_BLOCK)
        if mu is None:
            constants |= _class_index(input, target) | dict(SLOTS=len(coefficients))
            _ghmc_weigh_kernel[_tiles(input, ELEMENTWISE_BLOCK)](*arguments, **constants)
        else:
            _ghmr_weigh_kernel[_tiles(input, ELEMENTWISE_BLOCK)](*arguments, mu, mu * mu, **constants)
    return outputs


def launch_forward(
    inputs: list[torch.Tensor],
    targets: list[torch.Tensor],
    weights: list[torch.Tensor],
    running_counts: torch.Tensor | None,
    mu: float | None,
    bins: int,
    momentum: float,
    loss_weight: float,
    max_weight: float | None,
    mmdet: bool,
    reduction: str,
    update: bool,
    grad: bool,
    group: str | None,
) -> list[torch.Tensor]:
    """[loss], or the losses of each level for "none"; coefficients [slots]; new running_counts if any and `update`.

    Losses and coefficients in fp32. GHM-R in "mmdet" takes the sum of the weights for the number of elements. group: name
    of the process group that shares the density, or None. grad: not used, coefficients are all that backward needs.
    """
    sum_weights = mu is not None and mmdet and bool(weights)
    with _on(inputs[0].device):
        rows = _accumulate(inputs, targets, weights, mu, bins, sum_weights)
        mean = reduction == "mean"
        loss, coefficients, state = _harmonize(
            rows, running_counts, bins, momentum, loss_weight, max_weight, mmdet, mean, update, sum_weights, group
        )
        losses = [loss] if reduction != "none" else _weigh(inputs, targets, weights, coefficients, mu, bins)
    return losses + [coefficients] + ([] if state is None else [state])


def launch_backward(
    grads: list[torch.Tensor],
    inputs: list[torch.Tensor],
    targets: list[torch.Tensor],
    weights: list[torch.Tensor],
    coefficients: torch.Tensor,
    mu: float | None,
    bins: int,
) -> list[torch.Tensor]:
    """Gradients of the inputs, in their dtypes; those of GHM-R's targets are their negatives.

    grads: one number [], or a tensor like the input a level.
    """
    outputs = [torch.empty_like(input) for input in inputs]
    by_element = len(grads) == len(inputs) and grads[0].shape == inputs[0].shape
    with _on(inputs[0].device):
        for input, target, weight, level in _levels(inputs, targets, weights):
            grad = grads[level if by_element else 0]
            arguments = (input, target, weight, coefficients, grad, outputs[level], input.numel())
            constants = _specialisation(input, target, weight, bins, ELEMENTWISE_BLOCK) | dict(ELEMENT_GRAD=by_element)
            grid = _tiles(input, ELEMENTWISE_BLOCK)
            if mu is None:
                constants |= _class_index(input, target) | _anchors(input, target, weight, ELEMENTWISE_BLOCK)
                _ghmc_gradient_kernel[grid](*arguments, **constants)
            else:
                _ghmr_gradient_kernel[grid](*arguments, mu, mu * mu, **constants)
    return outputs
