"""The implementations of the operators: which kernels run, in which order. ghm_triton.eager has the same layout.

Tensors are contiguous and arguments already checked. On the CPU the kernels run in Triton's interpreter.
"""

import torch

from ..conventions import Population
from ..options import Options
from . import grids
from .ghmc import accumulate_ghmc, gradient_ghmc, weigh_ghmc
from .ghmr import accumulate_ghmr, gradient_ghmr, weigh_ghmr
from .harmonize import Rows, harmonize


def launch_loss(population: Population, running_counts: torch.Tensor | None, options: Options) -> list[torch.Tensor]:
    """[loss], or the losses of each level for "none"; coefficients [slots]; new running_counts if any and `update`.

    Losses and coefficients are fp32. For GHM-R in "mmdet" the sum of the weights replaces the number of elements.
    `grad` is not used, because the gradient needs no more than the coefficients.
    """
    sum_weights = options.mmdet and options.mu is not None and bool(population.weights)
    with grids.on_device(population.inputs[0].device):
        rows = accumulate(population, options)
        loss, coefficients, state = harmonize(rows, running_counts, options, sum_weights=sum_weights)
        losses = _weigh(population, coefficients, options) if options.unreduced else [loss]
    return losses + [coefficients] + ([] if state is None else [state])


def accumulate(population: Population, options: Options) -> Rows:
    """Counts and loss sums per region of all levels, one row per program."""
    launch = accumulate_ghmc if options.mu is None else accumulate_ghmr
    levels = population.levels()
    programs = [grids.accumulate_programs(level) for level in levels]
    rows = Rows(population.inputs[0], programs, options.bins)
    for index, level in enumerate(levels):
        if programs[index]:
            launch(level, *rows.from_level(index), programs[index], options)
    return rows


def _weigh(population: Population, coefficients: torch.Tensor, options: Options) -> list[torch.Tensor]:
    """The losses of the elements, fp32, in the shapes of the inputs."""
    launch = weigh_ghmc if options.mu is None else weigh_ghmr
    outputs = [torch.empty_like(input, dtype=torch.float32) for input in population.inputs]
    for level, output in zip(population.levels(), outputs):
        if output.numel():
            launch(level, coefficients, output, options)
    return outputs


def launch_gradient(
    grads: list[torch.Tensor], population: Population, coefficients: torch.Tensor, options: Options
) -> list[torch.Tensor]:
    """Gradients of the inputs, in their dtypes; those of GHM-R's targets are their negatives.

    grads: one number [], or one tensor per level, of the shape of the input.
    """
    launch = gradient_ghmc if options.mu is None else gradient_ghmr
    outputs = [torch.empty_like(input) for input in population.inputs]
    grads = grads if options.unreduced else grads * len(outputs)
    with grids.on_device(outputs[0].device):
        for level, grad, output in zip(population.levels(), grads, outputs):
            if output.numel():
                launch(level, coefficients, grad, output, options)
    return outputs
