"""GHM-R: d = input - target, g = |d| / sqrt(d^2 + mu^2), ASL1(d) = sqrt(d^2 + mu^2) - mu (eq. 15, 17)."""

import functools

import torch
from torch import Tensor

from ..options import Options
from ..population import Level
from .levels import ElementLevel


def measure_ghmr(level: Level, options: Options) -> ElementLevel:
    """Count the elements of a level per slot."""
    return ElementLevel(level, options, functools.partial(_asl1_terms, mu=options.mu))


def _asl1_terms(x: Tensor, t: Tensor, mu: float) -> tuple[Tensor, Tensor, Tensor]:
    """Return (gradient norm, ASL1(d), its derivative d / sqrt(d^2 + mu^2))."""
    d = x - t
    square = d * d
    root = (square + mu * mu).sqrt_()
    slope = d / root.clamp_(min=1e-37)
    loss = square.div_(root.add_(mu))
    if not bool(square.max() < 1e30):  # where d^2 overflows, sqrt(d^2 + mu^2) is |d|; a NaN takes this branch too
        huge = d.abs() > 1e15
        slope, loss = torch.where(huge, d.sign(), slope), torch.where(huge, d.abs() - mu, loss)
    return slope.abs(), loss, slope
