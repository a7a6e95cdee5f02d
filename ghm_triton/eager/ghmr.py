"""GHM-R: d = input - target, g = |d| / sqrt(d^2 + mu^2), ASL1(d) = sqrt(d^2 + mu^2) - mu (eq. 15, 17)."""

import torch
from torch import Tensor

from ..options import Options
from ..population import Level
from .levels import Chunk, ElementLevel, part


class BoxLevel(ElementLevel):
    """A level of box coordinates, all of which are hard."""

    def __init__(self, level: Level, options: Options):
        self.mu = options.mu
        super().__init__(level, options)

    def measure(self, input: Tensor, target: Tensor, ignored: Tensor | None, elements: slice) -> Chunk:
        """Count a chunk, and compute its losses and residuals."""
        d = input.to(self.dtype) - target.to(self.dtype)
        if ignored is not None:
            d.view(len(ignored), -1).masked_fill_(ignored, 0.0)
        losses, slopes = _asl1_terms(d, self.mu, part(self.residuals, elements))
        return self.keep(elements, None, self.slots_of(slopes.abs()), losses, slopes)


def _asl1_terms(d: Tensor, mu: float, output: Tensor) -> tuple[Tensor, Tensor]:
    """Return (ASL1(d), its derivative d / sqrt(d^2 + mu^2) in `output`)."""
    square = d * d
    root = (square + mu * mu).sqrt_()
    slope = torch.div(d, root.clamp_(min=1e-37), out=output)
    finite = bool(square.max() < 1e30)
    loss = square.div_(root.add_(mu))
    if not finite:  # where d^2 overflows, sqrt(d^2 + mu^2) is |d|; a NaN takes this branch too
        huge = d.abs() > 1e15
        slope.copy_(torch.where(huge, d.sign(), slope))
        loss = torch.where(huge, d.abs() - mu, loss)
    return loss, slope
