"""Coefficients and moving average from the counts per region. The equations are in kernels/harmonize.py."""

import torch
from torch import Tensor

from ..options import Options
from ..regions import FORGOTTEN


def compute_coefficients(
    density: Tensor, total: Tensor, running_counts: Tensor | None, options: Options
) -> tuple[Tensor, Tensor | None]:
    """Compute the coefficients [bins + 2] by slot, fp64, and the new running_counts if there are any and `update`.

    density: fp64 [bins], elements in the regions. total: fp64 [], the number of elements N.
    """
    size = total.clamp(min=1)
    weighted = size if options.mmdet else density.sum()  # NaN is in no region
    smooth, state = _average(density, total, running_counts, options)
    if not options.mean:
        scale = options.loss_weight * weighted
    elif options.mmdet:
        scale = options.loss_weight * size / (size + torch.finfo(torch.float32).eps)
    else:
        scale = options.loss_weight * (weighted / size)
    present = density > 0
    shared = smooth ** (1 - options.exponent)
    total_share = torch.where(present, shared, 0.0).sum() if options.mmdet else shared.sum()
    coefficients = torch.where(present, scale / (smooth**options.exponent * total_share), 0.0)
    return torch.cat([coefficients, scale[None], torch.zeros_like(scale)[None]]), state


def _average(
    density: Tensor, total: Tensor, running_counts: Tensor | None, options: Options
) -> tuple[Tensor, Tensor | None]:
    """Return (the density that gives the weights, the new state or None)."""
    if running_counts is None:
        return density, None
    momentum = options.momentum
    old = running_counts[: options.bins].double()
    age = 1.0 if options.mmdet else running_counts[-1].double()
    if not options.update:
        known = (old >= FORGOTTEN) | ((old > 0) & (density == 0))
        return torch.where(known, old / age, density), None
    new = (momentum * old + (1 - momentum) * density).to(running_counts.dtype)  # rounded as later calls read it
    if options.mmdet:
        state = torch.where(density > 0, new, running_counts)
        return state.double(), state
    grown = (momentum * age + (1 - momentum)).to(running_counts.dtype)
    state = torch.where(total > 0, torch.cat([new, grown[None]]), running_counts)
    return new.double() / grown.double(), state
