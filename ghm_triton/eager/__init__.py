"""The losses in plain PyTorch: the CPU path, and the operator `ghm_triton::eager_loss`.

    ghmc.py, ghmr.py, cross_entropy.py   norm, loss and residual; counts per region
    harmonize.py                         coefficients and moving average from the counts
    levels.py                            the parts that the levels of all losses share

There are two passes. The first counts the elements of each region. The counts of all levels give one coefficient per
region, by which the second pass multiplies losses and gradients. ghm_triton.kernels has the same layout. The arguments
are already checked.
"""

import array

import torch
from torch import Tensor

from ..distributed import all_reduce
from ..options import Options
from ..population import Population, compute_dtype
from .cross_entropy import CrossEntropyLevel
from .ghmc import measure_ghmc
from .ghmr import BoxLevel
from .harmonize import compute_coefficients
from .targets import check_population as check_population

_LEVELS = {"ghmc": measure_ghmc, "ghmr": BoxLevel, "cross_entropy": CrossEntropyLevel}


def compute_loss(population: Population, running_counts: Tensor | None, options: Options) -> list[Tensor]:
    """Compute [loss], or the losses of each level for "none".

    If `grad`, d loss / d input of each level follows. If there are running_counts and `update`, the new ones are last.
    Losses and gradients are fp32, or fp64 for fp64 inputs.
    """
    device, dtype = population.inputs[0].device, compute_dtype(population.inputs[0].dtype)
    levels = [_LEVELS[options.loss](level, options) for level in population.levels()]
    counts = levels[0].counts
    for level in levels[1:]:
        counts = [a + b for a, b in zip(counts, level.counts)]
    density, total = counts[: options.bins], sum(counts[: options.bins + 1])
    if options.mmdet and options.loss == "ghmr" and population.weights:
        total = _sum_of_weights(population)
    if options.group is not None:
        numbers = torch.tensor([*density, total], dtype=torch.float64, device=device)
        *density, total = all_reduce(numbers, options.group).tolist()
    coefficients, state = compute_coefficients(density, total, running_counts, options)
    numbers = array.array("d" if dtype == torch.float64 else "f", coefficients)
    table = torch.frombuffer(numbers, dtype=dtype).to(device)  # faster than torch.tensor
    results = [level.scale(table) for level in levels]
    losses = [loss for loss, _ in results]
    if options.unreduced:
        losses = [torch.empty_like(loss).copy_(loss) for loss in losses]  # views could not be changed in place
    else:
        losses = [torch.full((), sum(losses), dtype=dtype, device=device)]
    grads = [grad for _, grad in results] if options.grad else []
    return losses + grads + ([] if state is None else [state])


def _sum_of_weights(population: Population) -> float:
    columns = [level.input.numel() // max(1, level.weight.numel()) for level in population.levels()]
    return sum(weight.double().nansum().item() * each for weight, each in zip(population.weights, columns))
