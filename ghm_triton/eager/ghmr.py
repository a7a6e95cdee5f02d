"""GHM-R: d = input - target, g = |d| / sqrt(d^2 + mu^2), ASL1(d) = sqrt(d^2 + mu^2) - mu (eq. 15, 17)."""

import torch
from torch import Tensor

from ..options import Options
from ..population import Level
from .levels import Chunk, ElementLevel, part


class BoxLevel(ElementLevel):
    """A level of box coordinates."""

    can_be_easy = False

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
    slope = torch.div(d, root, out=output)
    if square.max().item() < 1e30:
        return square.div_(root.add_(mu)), slope
    huge = d.abs() > 1e15  # where d^2 overflows, sqrt(d^2 + mu^2) is |d|; a NaN takes this branch too
    slope.copy_(torch.where(huge, d.sign(), slope))
    return torch.where(huge, d.abs() - mu, square.div_(root.add_(mu))), slope
