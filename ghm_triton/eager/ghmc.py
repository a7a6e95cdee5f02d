"""GHM-C: g = |p - t|, CE(x, t), p - t for p = sigmoid(x) (eq. 3)."""

import math

import torch
from torch import Tensor
from torch.nn.functional import softplus

from ..options import Options
from ..population import Level
from .levels import BLOCK, Chunk, ElementLevel, select
from .targets import check_targets

EXACT = 40.0  # from here on softplus(x) is x in float64; at PyTorch's default threshold of 20 it is off by 1e-10


def measure_ghmc(level: Level, options: Options) -> ElementLevel:
    """Count the elements of a level per slot."""
    return (ClassIndexLevel if level.class_index else DenseLevel)(level, options)


def _limits(level: Level, options: Options) -> tuple[float, float]:
    """Check the targets, and return bounds of them. The formulas of mmdetection take any target."""
    return (-math.inf, math.inf) if options.mmdet else check_targets(level)


class ClassIndexLevel(ElementLevel):
    """A level with class indices, which are never expanded. Blocks with a positive are hard.

    With z = -x at the positives and z = x elsewhere, CE(x, t) = softplus(z) and |p - t| = sigmoid(z).
    """

    def __init__(self, level: Level, options: Options):
        self.least, self.most = _limits(level, options)
        super().__init__(level, options)

    def measure(self, input: Tensor, target: Tensor, ignored: Tensor | None, elements: slice) -> Chunk:
        """Count a chunk, and compute its losses and residuals."""
        positive = self._positives(target.long(), ignored)
        x = self.padded(_filled(input.to(self.dtype), ignored, -torch.inf), -torch.inf)
        p = torch.sigmoid(x, out=self.of(elements, self.residuals))
        hard = None
        if self.by_block:
            block = positive // BLOCK
            hard = self.hard_blocks(p.view(-1, BLOCK).amax(1).index_fill_(0, block, torch.inf))
            if hard is not None:
                self.add_easy(elements, hard, p)
                positive = torch.searchsorted(hard, block).mul_(BLOCK).add_(positive % BLOCK)
        x, g = select(x, hard, elements), select(p, hard, elements)
        of_positive = x.index_select(0, positive).neg_()
        z = x.index_copy(0, positive, of_positive)
        g.index_copy_(0, positive, 1 - g.index_select(0, positive))
        slots, losses = self.slots_of(g), softplus(z, threshold=EXACT)
        residuals = g.index_copy_(0, positive, of_positive.sigmoid_().neg_())
        return self.keep(elements, hard, slots, losses, residuals)

    def _positives(self, label: Tensor, ignored: Tensor | None) -> Tensor:
        """Return the flat positions of the positives of a chunk that count."""
        if self.least >= 0:
            inside = label < self.columns
        elif self.most < self.columns:
            inside = label >= 0
        else:
            inside = (label >= 0) & (label < self.columns)
        row = inside.nonzero().view(-1)
        label = label.index_select(0, row)
        if ignored is not None:
            counted = ~ignored.expand(-1, self.columns)[row, label]
            row, label = row[counted], label[counted]
        return label.add_(row, alpha=self.columns)


class DenseLevel(ElementLevel):
    """A level with one target per element. Blocks with a target other than 0 are hard."""

    def __init__(self, level: Level, options: Options):
        _limits(level, options)
        super().__init__(level, options)

    def measure(self, input: Tensor, target: Tensor, ignored: Tensor | None, elements: slice) -> Chunk:
        """Count a chunk, and compute its losses and residuals."""
        x = self.padded(_filled(input.to(self.dtype), ignored, -torch.inf), -torch.inf)
        t = self.padded(_filled(target.to(self.dtype), ignored, 0.0), 0.0)
        p = torch.sigmoid(x, out=self.of(elements, self.residuals))
        hard = None
        if self.by_block:
            bound = torch.add(p, t.abs(), alpha=torch.finfo(self.dtype).max)
            hard = self.hard_blocks(bound.view(-1, BLOCK).amax(1))
        if hard is not None:
            self.add_easy(elements, hard, p)
        of_hard = [select(values, hard, elements) for values in (x, t, p)]
        norms, losses, residuals = _bce_terms(*of_hard)
        if hard is None:
            residuals = of_hard[2].copy_(residuals)
        return self.keep(elements, hard, self.slots_of(norms), losses, residuals)


def _filled(values: Tensor, ignored: Tensor | None, fill: float) -> Tensor:
    """Return the flat values of a chunk, with another where ignored."""
    return values if ignored is None else values.view(len(ignored), -1).masked_fill(ignored, fill).view(-1)


def _bce_terms(x: Tensor, t: Tensor, p: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Return (gradient norm, CE(x, t), p - t) for p = sigmoid(x)."""
    slope = (x >= 0).to(x.dtype) - t
    linear = (slope * x).masked_fill_(slope == 0, 0.0)  # an infinite logit on the right side costs nothing
    residual = (1 - t) * p - t * (-x).sigmoid()  # p - t without its cancellation at t = 1
    return (p - t).abs_(), x.abs().neg_().exp_().log1p_().add_(linear), residual
