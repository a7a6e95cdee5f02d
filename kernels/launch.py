"""The implementations of the operators: which kernels run, in which order. ghm_triton.eager has the same layout.

Tensors are contiguous and arguments already checked. On the CPU the kernels run in Triton's interpreter.
"""

import torch

from ..options import Options
from ..population import Level, Population
from . import grids
from .cross_entropy import CrossEntropyRows, accumulate_cross_entropy, gradient_cross_entropy, weigh_cross_entropy
from .ghmc import accumulate_ghmc, gradient_ghmc, weigh_ghmc
from .ghmr import accumulate_ghmr, gradient_ghmr, weigh_ghmr
from .harmonize import Rows, launch_harmonize

_ACCUMULATE = {"ghmc": accumulate_ghmc, "ghmr": accumulate_ghmr}
_WEIGH = {"ghmc": weigh_ghmc, "ghmr": weigh_ghmr}
_GRADIENT = {"ghmc": gradient_ghmc, "ghmr": gradient_ghmr, "cross_entropy": gradient_cross_entropy}


def launch_loss(population: Population, running_counts: torch.Tensor | None, options: Options) -> list[torch.Tensor]:
    """[loss], or the losses of each level for "none"; what the gradient needs; new running_counts if any and `update`.

    Losses and coefficients are fp32. For GHM-R in "mmdet" the sum of the weights replaces the number of elements.
    `grad` is not used: the gradient needs the coefficients, and for cross entropy `CrossEntropyRows.kept` after them.
    """
    sum_weights = options.mmdet and options.loss == "ghmr" and bool(population.weights)
    with grids.on_device(population.inputs[0].device):
        if options.loss == "cross_entropy":
            return _launch_cross_entropy(*population.levels(), running_counts, options)
        rows = accumulate(population, options)
        loss, coefficients, state = launch_harmonize(rows, running_counts, options, sum_weights=sum_weights)
        losses = _weigh(population, coefficients, options) if options.unreduced else [loss]
    return losses + [coefficients] + ([] if state is None else [state])


def _launch_cross_entropy(level: Level, running_counts: torch.Tensor | None, options: Options) -> list[torch.Tensor]:
    of_rows = CrossEntropyRows(level, options)
    programs = grids.row_programs(level, options)
    rows = Rows(level.input, [programs], options.bins)
    if programs:
        accumulate_cross_entropy(level, of_rows, rows.counts, rows.sums, options)
    loss, coefficients, state = launch_harmonize(rows, running_counts, options, sum_weights=False)
    if options.unreduced:
        loss = weigh_cross_entropy(of_rows, coefficients)
    return [loss, coefficients, *of_rows.kept] + ([] if state is None else [state])


def accumulate(population: Population, options: Options) -> Rows:
    """Return counts and loss sums per region of all levels, one row per program."""
    launch = _ACCUMULATE[options.loss]
    levels = population.levels()
    programs = [grids.accumulate_programs(level) for level in levels]
    rows = Rows(population.inputs[0], programs, options.bins)
    for index, level in enumerate(levels):
        if programs[index]:
            launch(level, *rows.from_level(index), programs[index], options)
    return rows


def _weigh(population: Population, coefficients: torch.Tensor, options: Options) -> list[torch.Tensor]:
    """Return the losses of the elements, fp32, in the shapes of the inputs."""
    launch = _WEIGH[options.loss]
    outputs = [torch.empty_like(input, dtype=torch.float32) for input in population.inputs]
    for level, output in zip(population.levels(), outputs):
        if output.numel():
            launch(level, coefficients, output, options)
    return outputs


def launch_gradient(
    grads: list[torch.Tensor], population: Population, kept: list[torch.Tensor], options: Options
) -> list[torch.Tensor]:
    """Gradients of the inputs, in their dtypes; those of GHM-R's targets are their negatives.

    grads: one number [], or one tensor per level, of the shape of its losses. kept: from the forward pass.
    """
    launch = _GRADIENT[options.loss]
    outputs = [torch.empty_like(input) for input in population.inputs]
    grads = grads if options.unreduced else grads * len(outputs)
    with grids.on_device(outputs[0].device):
        for level, grad, output in zip(population.levels(), grads, outputs):
            if output.numel():
                launch(level, *kept, grad, output, options)
    return outputs
