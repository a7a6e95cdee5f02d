"""The operators by the kernels: which kernels are launched, in which order. ghm_triton.eager has the same layout.

Tensors are contiguous, arguments taken as checked. On the CPU the kernels run in Triton's interpreter.
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

    Losses and coefficients in fp32. GHM-R in "mmdet" takes the sum of the weights for the number of elements. `grad` is
    not used: coefficients are all that the gradient needs.
    """
    accumulate, weigh = (accumulate_ghmc, weigh_ghmc) if options.mu is None else (accumulate_ghmr, weigh_ghmr)
    first, levels = population.inputs[0], population.levels()
    with grids.on_device(first.device):
        programs = [grids.accumulate_programs(level) for level in levels]
        rows = Rows(first, programs, options.bins)
        for index, level in enumerate(levels):
            if programs[index]:
                accumulate(level, *rows.from_level(index), programs[index], options)
        sum_weights = options.mmdet and options.mu is not None and bool(population.weights)
        loss, coefficients, state = harmonize(rows, running_counts, options, sum_weights=sum_weights)
        losses = [loss]
        if options.unreduced:
            losses = [torch.empty_like(level.input, dtype=torch.float32) for level in levels]
            for level, output in zip(levels, losses):
                if output.numel():
                    weigh(level, coefficients, output, options)
    return losses + [coefficients] + ([] if state is None else [state])


def launch_gradient(
    grads: list[torch.Tensor], population: Population, coefficients: torch.Tensor, options: Options
) -> list[torch.Tensor]:
    """Gradients of the inputs, in their dtypes; those of GHM-R's targets are their negatives.

    grads: one number [], or one tensor per level, of the shape of the input.
    """
    gradient = gradient_ghmc if options.mu is None else gradient_ghmr
    outputs = [torch.empty_like(input) for input in population.inputs]
    grads = grads if options.unreduced else grads * len(outputs)
    with grids.on_device(outputs[0].device):
        for level, grad, output in zip(population.levels(), grads, outputs):
            if output.numel():
                gradient(level, coefficients, grad, output, options)
    return outputs
