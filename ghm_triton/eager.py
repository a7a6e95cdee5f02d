"""GHM-C and GHM-R in plain PyTorch: the CPU path, and the operator `ghm_triton::eager`.

Two passes: counts by region, then losses and gradients weighed by the coefficients that the counts give. `inputs`,
`targets`, `weights` are lists, one tensor a level; `weights` may be empty. Arguments are taken as checked.
"""

import torch
from torch import Tensor

from .distributed import all_reduce
from .eager_levels import ClassIndexLevel, DenseLevel, RegressionLevel


def _harmonize(density, total, running_counts, *, momentum, loss_weight, max_weight, mmdet, mean, update):
    """(coefficients, new state or None), fp64: of the regions, then of the slots of NaN and of ignored elements.

    density: fp64 [bins], elements in the regions. total: fp64 [], the number of elements N.
    The equations stand in kernels/harmonize.py.
    """
    size = total.clamp(min=1)
    smooth, state = density, None
    if running_counts is not None:
        old = running_counts[: len(density)].double()
        new = momentum * old + (1 - momentum) * density
        if mmdet:
            state = smooth = torch.where(density > 0, new, old)
        else:
            age = running_counts[-1].double()
            grown = momentum * age + (1 - momentum)
            smooth = new / grown if update else torch.where(old > 0, old / age, density)
            state = torch.where(total > 0, torch.cat([new, grown[None]]), running_counts.double())
    scale = torch.full_like(size, loss_weight) if mean else loss_weight * size
    if mean and mmdet:
        scale = scale * size / (size + torch.finfo(torch.float32).eps)
    divisor = (density > 0).sum() if mmdet else len(density)
    least = 0 if max_weight is None else size / max_weight
    coefficients = torch.where(density > 0, scale / (smooth * divisor).clamp(min=least), 0.0)
    return torch.cat([coefficients, scale[None], torch.zeros_like(scale)[None]]), state


def _levels(inputs, targets, weights, mu, bins, **wanted):
    for i, (input, target) in enumerate(zip(inputs, targets)):
        weight = weights[i] if weights else None
        if mu is not None:
            yield RegressionLevel(input, target, weight, bins, mu, **wanted)
        else:
            kind = DenseLevel if target.dim() == input.dim() else ClassIndexLevel
            yield kind(input, target, weight, bins, **wanted)


def _sum_of_weights(inputs, weights) -> Tensor:
    shares = [input.numel() // max(1, weight.numel()) for input, weight in zip(inputs, weights)]
    return sum(weight.sum(dtype=torch.float64) * share for weight, share in zip(weights, shares))


@torch.no_grad()
def compute(
    inputs: list[Tensor],
    targets: list[Tensor],
    weights: list[Tensor],
    running_counts: Tensor | None,
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
) -> list[Tensor]:
    """GHM-C (mu None) or GHM-R: [loss], or the losses of each level for "none"; then d loss / d input of each level if
    `grad`; then the new running_counts if there are any and `update`.

    Losses and gradients in fp32, or fp64 for fp64 inputs. group: name of the process group that shares the density.
    """
    levels = list(_levels(inputs, targets, weights, mu, bins, grad=grad, unreduced=reduction == "none"))
    counts = sum(level.count() for level in levels).double()
    by_weight = mmdet and mu is not None and weights
    total = _sum_of_weights(inputs, weights) if by_weight else counts[: bins + 1].sum()
    density, total = all_reduce(torch.cat([counts[:bins], total[None]]), group).split([bins, 1])
    coefficients, state = _harmonize(
        density,
        total[0],
        running_counts,
        momentum=momentum,
        loss_weight=loss_weight,
        max_weight=max_weight,
        mmdet=mmdet,
        mean=reduction == "mean",
        update=update,
    )
    coefficients = coefficients.to(levels[0].dtype)
    results = [level.finish(coefficients) for level in levels]
    losses = [loss for loss, _ in results]
    if reduction == "none":
        losses = [torch.empty_like(loss).copy_(loss) for loss in losses]  # views could not be changed in place
    else:
        losses = [sum(losses).to(levels[0].dtype)]
    grads = [gradient for _, gradient in results] if grad else []
    return losses + grads + ([state.to(running_counts.dtype)] if update and state is not None else [])
