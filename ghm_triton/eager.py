"""GHM-C and GHM-R in plain PyTorch: the CPU path.

Two passes: counts by region, then losses and gradients weighed by the coefficients that the counts give. `inputs`,
`targets`, `weights` are lists, one tensor a level; `weights` may be empty. Arguments are taken as checked.
"""

import torch

from .eager_levels import ClassIndexLevel, DenseLevel, RegressionLevel, compute_dtype


def _harmonize(counts, total, running_counts, *, bins, momentum, loss_weight, mmdet, mean, update):
    """Coefficients [bins + 2] in fp64: the regions, then the slots of NaN and of ignored elements.

    counts: int64 [bins + 2], elements in these slots. total: fp64 [], the number of elements N, at least 1.
    The equations stand in kernels/harmonize.py.
    """
    density = counts[:bins].double()
    valid = counts[: bins + 1].sum()
    smooth = density
    if running_counts is not None:
        old = running_counts[:bins].double()
        new = momentum * old + (1 - momentum) * density
        if mmdet:
            state = smooth = torch.where(density > 0, new, old)
        else:
            age = running_counts[bins].double()
            grown = momentum * age + (1 - momentum)
            smooth = new / grown if update else torch.where(old > 0, old / age, density)
            state = torch.where(valid > 0, torch.cat([new, grown[None]]), running_counts.double())
        if update:
            running_counts.copy_(state)
    scale = torch.full_like(total, loss_weight) if mean else loss_weight * total
    if mean and mmdet:
        scale = scale * total / (total + torch.finfo(torch.float32).eps)
    divisor = (density > 0).sum() if mmdet else bins
    coefficients = torch.where(density > 0, scale / (smooth * divisor), 0.0)
    return torch.cat([coefficients, scale[None], torch.zeros_like(scale)[None]])


def _evaluate(levels, total, running_counts, *, bins, reduction, grad, **options):
    counts = sum(level.count() for level in levels)
    if total is None:
        total = counts[: bins + 1].sum().double()
    coefficients = _harmonize(
        counts, total.clamp(min=1), running_counts, bins=bins, mean=reduction == "mean", **options
    ).to(levels[0].dtype)
    results = [level.finish(coefficients, grad=grad, unreduced=reduction == "none") for level in levels]
    losses = [loss for loss, _ in results]
    if reduction != "none":
        losses = [sum(losses).to(levels[0].dtype)]
    return losses, [gradient for _, gradient in results]


def ghmc(
    inputs, targets, weights, running_counts, *, bins, momentum, loss_weight, mmdet, reduction, update, grad
) -> tuple[list[torch.Tensor], list[torch.Tensor | None]]:
    """([loss], or the losses of each level for "none"; d loss / d input of each level, None unless `grad`).

    Both in fp32, or fp64 for fp64 inputs. `running_counts` (or None) is updated in place if `update`.
    """
    kind = DenseLevel if targets[0].dim() == inputs[0].dim() else ClassIndexLevel
    levels = [
        kind(input, target, weights[i] if weights else None, bins)
        for i, (input, target) in enumerate(zip(inputs, targets))
    ]
    return _evaluate(
        levels,
        None,
        running_counts,
        bins=bins,
        momentum=momentum,
        loss_weight=loss_weight,
        mmdet=mmdet,
        reduction=reduction,
        update=update,
        grad=grad,
    )


def ghmr(
    inputs, targets, weights, running_counts, *, mu, bins, momentum, loss_weight, mmdet, reduction, update, grad
) -> tuple[list[torch.Tensor], list[torch.Tensor | None]]:
    """As ghmc; "mmdet" takes the sum of the weights for the number of elements."""
    levels = [
        RegressionLevel(input, target, weights[i] if weights else None, bins, mu)
        for i, (input, target) in enumerate(zip(inputs, targets))
    ]
    total = None
    if mmdet and weights:
        shares = [input.numel() // max(1, weight.numel()) for input, weight in zip(inputs, weights)]
        total = sum(weight.sum(dtype=torch.float64) * share for weight, share in zip(weights, shares))
    return _evaluate(
        levels,
        total,
        running_counts,
        bins=bins,
        momentum=momentum,
        loss_weight=loss_weight,
        mmdet=mmdet,
        reduction=reduction,
        update=update,
        grad=grad,
    )
