"""The implementations of the operators: which kernels run, in which order. ghm_triton.eager has the same layout.

Tensors are contiguous and arguments already checked. On the CPU the kernels run in Triton's interpreter.

The module of a loss has the same functions with the same arguments for each loss:

    programs(level, options)                              how many programs accumulate a level
    buffers(level, options)                               tensors for what accumulate finds for each row, or none
    accumulate(level, buffers, counts, sums, options)     counts and loss sums, one row per program
    scale(level, buffers, coefficients, options)          the losses before their reduction
    gradient(level, kept, grad, output, options)
"""

import itertools

import torch

from ..options import Options
from ..population import Population, kept_by_kernels
from . import cross_entropy, ghmc, ghmr, grids
from .harmonize import Rows, launch_harmonize

_LOSSES = {"ghmc": ghmc, "ghmr": ghmr, "cross_entropy": cross_entropy}


def launch_loss(population: Population, running_counts: torch.Tensor | None, options: Options) -> list[torch.Tensor]:
    """[loss], or the losses of each level for "none"; what the gradient needs; new running_counts if any and `update`.

    Losses and coefficients are fp32. For GHM-R in "mmdet" the sum of the weights replaces the number of elements.
    `grad` is not used: the gradient needs the coefficients, and for cross entropy the buffers after them.
    """
    loss, levels = _LOSSES[options.loss], population.levels()
    sum_weights = options.mmdet and options.loss == "ghmr" and bool(population.weights)
    with grids.on_device(population.inputs[0].device):
        buffers = [loss.buffers(level, options) for level in levels]
        rows = accumulate(population, buffers, options)
        total, coefficients, state = launch_harmonize(rows, running_counts, options, sum_weights=sum_weights)
        losses = [total]
        if options.unreduced:
            losses = [loss.scale(level, found, coefficients, options) for level, found in zip(levels, buffers)]
    kept = [coefficients, *itertools.chain(*buffers)][: kept_by_kernels(options)]
    return losses + kept + ([] if state is None else [state])


def accumulate(population: Population, buffers: list[list[torch.Tensor]], options: Options) -> Rows:
    """Return counts and loss sums per region of all levels, one row per program. buffers: those of each level."""
    loss, levels = _LOSSES[options.loss], population.levels()
    programs = [loss.programs(level, options) for level in levels]
    rows = Rows(population.inputs[0], programs, options.bins)
    for index, level in enumerate(levels):
        if programs[index]:
            loss.accumulate(level, buffers[index], *rows.from_level(index), options)
    return rows


def launch_gradient(
    grads: list[torch.Tensor], population: Population, kept: list[torch.Tensor], options: Options
) -> list[torch.Tensor]:
    """Gradients of the inputs, in their dtypes; those of GHM-R's targets are their negatives.

    grads: one number [], or one tensor per level, of the shape of its losses. kept: from the forward pass.
    """
    outputs = [torch.empty_like(input) for input in population.inputs]
    grads = grads if options.unreduced else grads * len(outputs)
    with grids.on_device(outputs[0].device):
        for level, grad, output in zip(population.levels(), grads, outputs):
            if output.numel():
                _LOSSES[options.loss].gradient(level, kept, grad, output, options)
    return outputs
