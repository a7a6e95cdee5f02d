"""Launchers: grids, block sizes and buffers for the kernels; the operators of ghm_triton.ops are these functions.

Shared by all: `inputs`, `targets`, `weights` are lists of contiguous tensors, one a level; `weights` may be empty. Arguments are taken as checked.
A target with one dimension less than its input holds class indices, a weight with one less a number an anchor.
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


@functools.lru_cache(maxsize=None)
def _easy_below(bins: int) -> float:
    """A logit, at most 0, below which sigmoid lies in region 0 whatever its rounding."""
    if bins < 3:
        return -1e-5
    logit = -math.log(bins - 1)
    return logit - 1e-5 * max(1.0, -logit)


@functools.lru_cache(maxsize=None)
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


def _harmonize(rows, running_counts, bins, momentum, loss_weight, mmdet, mean, update, sum_weights, group):
    """Adds the rows up; returns (loss [], coefficients [slots]), both fp32, and updates running_counts in place."""
    counts, sums, slots = rows.counts, rows.sums, rows.slots
    limit = max(1, FOLD_TILE // slots) if group is None else 1
    if len(counts) > limit or group is not None:
        counts, sums = counts.new_empty(limit, slots, dtype=torch.int64), sums.new_empty(limit, slots)
        _fold_kernel[(limit,)](
            rows.counts, rows.sums, counts, sums, len(rows.counts), SLOTS=slots, ROWS=limit, num_warps=4
        )
    if group is not None:
        _share(counts, sums, bins, sum_weights, group)
    loss, coefficients = sums.new_empty(()), sums.new_empty(slots)
    _harmonize_kernel[(1,)](
        counts,
        sums,
        running_counts,
        coefficients,
        loss,
        len(counts),
        momentum,
        1.0 - momentum,
        loss_weight,
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
    return loss, coefficients


def launch_ghmc_forward(
    inputs, targets, weights, running_counts, bins, momentum, loss_weight, mmdet, mean, update, group
) -> tuple[torch.Tensor, torch.Tensor]:
    """(loss [], coefficients [slots]), fp32; `running_counts` (or None) is updated in place if `update`.

    group: name of the process group that shares the density, or None.
    """
    with _on(inputs[0].device):
        rows = _Rows(inputs, bins)
        for input, target, weight, level in _levels(inputs, targets, weights):
            _ghmc_accumulate_kernel[(rows.programs[level],)](
                input,
                target,
                weight,
                *rows.of(level),
                input.numel(),
                _easy_below(bins),
                SLOTS=rows.slots,
                FLUSH=FLUSH,
                **_class_index(input, target),
                **_anchors(input, target, weight, ACCUMULATE_BLOCK),
                **_specialisation(input, target, weight, bins, ACCUMULATE_BLOCK),
            )
        return _harmonize(rows, running_counts, bins, momentum, loss_weight, mmdet, mean, update, False, group)


def launch_ghmc_backward(grads, inputs, targets, weights, coefficients, bins) -> list[torch.Tensor]:
    """Gradients of the inputs, in their dtypes; `grads` holds one number [], or a tensor like the input a level."""
    outputs = [torch.empty_like(input) for input in inputs]
    by_element = len(grads) == len(inputs) and grads[0].shape == inputs[0].shape
    with _on(inputs[0].device):
        for input, target, weight, level in _levels(inputs, targets, weights):
            _ghmc_gradient_kernel[_tiles(input, ELEMENTWISE_BLOCK)](
                input,
                target,
                weight,
                coefficients,
                grads[level if by_element else 0],
                outputs[level],
                input.numel(),
                ELEMENT_GRAD=by_element,
                **_class_index(input, target),
                **_anchors(input, target, weight, ELEMENTWISE_BLOCK),
                **_specialisation(input, target, weight, bins, ELEMENTWISE_BLOCK),
            )
    return outputs


def launch_ghmc_weigh(inputs, targets, weights, coefficients, bins) -> list[torch.Tensor]:
    """The losses of the elements, fp32, in the shapes of the inputs."""
    outputs = [torch.empty_like(input, dtype=torch.float32) for input in inputs]
    with _on(inputs[0].device):
        for input, target, weight, level in _levels(inputs, targets, weights):
            _ghmc_weigh_kernel[_tiles(input, ELEMENTWISE_BLOCK)](
                input,
                target,
                weight,
                coefficients,
                outputs[level],
                input.numel(),
                SLOTS=len(coefficients),
                **_class_index(input, target),
                **_specialisation(input, target, weight, bins, ELEMENTWISE_BLOCK),
            )
    return outputs


def launch_ghmr_forward(
    inputs, targets, weights, running_counts, mu, bins, momentum, loss_weight, mmdet, mean, update, group
) -> tuple[torch.Tensor, torch.Tensor]:
    """As launch_ghmc_forward; "mmdet" takes the sum of the weights for the number of elements."""
    sum_weights = mmdet and bool(weights)
    with _on(inputs[0].device):
        rows = _Rows(inputs, bins)
        for input, target, weight, level in _levels(inputs, targets, weights):
            _ghmr_accumulate_kernel[(rows.programs[level],)](
                input,
                target,
                weight,
                *rows.of(level),
                input.numel(),
                mu,
                mu * mu,
                SLOTS=rows.slots,
                SUM_WEIGHTS=sum_weights,
                **_specialisation(input, target, weight, bins, ACCUMULATE_BLOCK),
            )
        return _harmonize(rows, running_counts, bins, momentum, loss_weight, mmdet, mean, update, sum_weights, group)


def launch_ghmr_backward(grads, inputs, targets, weights, coefficients, mu, bins) -> list[torch.Tensor]:
    """As launch_ghmc_backward; the gradients of the targets are the negatives of these."""
    outputs = [torch.empty_like(input) for input in inputs]
    by_element = len(grads) == len(inputs) and grads[0].shape == inputs[0].shape
    with _on(inputs[0].device):
        for input, target, weight, level in _levels(inputs, targets, weights):
            _ghmr_gradient_kernel[_tiles(input, ELEMENTWISE_BLOCK)](
                input,
                target,
                weight,
                coefficients,
                grads[level if by_element else 0],
                outputs[level],
                input.numel(),
                mu,
                mu * mu,
                ELEMENT_GRAD=by_element,
                **_specialisation(input, target, weight, bins, ELEMENTWISE_BLOCK),
            )
    return outputs


def launch_ghmr_weigh(inputs, targets, weights, coefficients, mu, bins) -> list[torch.Tensor]:
    """As launch_ghmc_weigh."""
    outputs = [torch.empty_like(input, dtype=torch.float32) for input in inputs]
    with _on(inputs[0].device):
        for input, target, weight, level in _levels(inputs, targets, weights):
            _ghmr_weigh_kernel[_tiles(input, ELEMENTWISE_BLOCK)](
                input,
                target,
                weight,
                coefficients,
                outputs[level],
                input.numel(),
                mu,
                mu * mu,
                **_specialisation(input, target, weight, bins, ELEMENTWISE_BLOCK),
            )
    return outputs
