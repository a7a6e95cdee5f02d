"""GHM cross entropy: the gradient norm, loss and residual of a row of logits z with the target distribution y.

    p = softmax(z),  CE = -sum_c y_c log p_c,  g = 1/2 sum_c |p_c - y_c|,  d CE / d z_c = p_c - y_c

For a class index g is 1 - p_y. Where y does not sum to 1, its sum multiplies p, as in the derivative of CE.
"""

from collections.abc import Iterator
from typing import NamedTuple

import torch
from torch import Tensor

from ..options import Options
from ..population import Level, loss_shape
from .levels import MeasuredLevel, lookup, total_of
from .targets import check_classes, check_probabilities


class _Shifted(NamedTuple):
    """Logits and their maxima per row: log p = values - top - log_sum keeps its digits at any offset."""

    values: Tensor
    top: Tensor

    def all(self) -> Tensor:
        return self.values - self.top.unsqueeze(1)


class CrossEntropyLevel(MeasuredLevel):
    """Logits [A, C] or [A, C, S].

    The gradient starts as the residuals, which replace the probabilities in place.
    """

    chunk = 1 << 22  # elements: enough for 128 threads; smaller ones, in the cache, are no faster with one thread

    def __init__(self, level: Level, options: Options):
        super().__init__(level, options)
        self.logits, self.target, self.class_index = level.input, level.target, level.class_index
        self.classes = self.shape[1]
        self.ignore_index, self.smoothing = options.ignore_index, options.label_smoothing
        rows, new_empty = loss_shape(level.input, options), level.input.new_empty
        self.grads = new_empty(self.shape, dtype=self.dtype) if self.grad else None
        self.losses = new_empty(rows, dtype=self.dtype)
        self.slots = new_empty(rows, dtype=torch.int32)
        for part in self._parts():
            self._measure(*part)

    def _parts(self) -> Iterator[tuple[tuple[slice, ...], tuple[slice, ...]]]:
        """Yield (index into the logits, index into the rows) of parts, so that temporaries stay small."""
        outer, inner = self.shape[0], self.shape[2:].numel()
        most = max(1, self.chunk // self.classes)  # rows
        inners = max(1, min(inner, most))
        outers = max(1, most // inners)
        for first in range(0, outer, outers):
            rows = slice(first, first + outers)
            if len(self.shape) == 2:
                yield (rows,), (rows,)
                continue
            for start in range(0, inner, inners):
                part = slice(start, start + inners)
                yield (rows, slice(None), part), (rows, part)

    def _measure(self, at: tuple[slice, ...], rows: tuple[slice, ...]) -> None:
        logits = self.logits[at].to(self.dtype)
        grads = None if self.grads is None else self.grads[at]
        p = torch.softmax(logits, 1, out=grads)
        log_sum = p.amax(1).log_().neg_()
        logits = _Shifted(logits, logits.amax(1))
        ignored = None
        if self.class_index:
            index, ignored = self._check(self.target[rows].long())
            norm, loss = self._replace_by_index(p, index.unsqueeze(1), logits, log_sum)
        else:
            check_probabilities(self.target[at])
            norm, loss = self._replace_by_distribution(p, self.target[at].to(self.dtype), logits, log_sum)
        slots = self.slots_of(norm)
        if ignored is not None:
            slots.masked_fill_(ignored, self.bins + 1)
            loss.masked_fill_(ignored, 0.0)
            p.masked_fill_(ignored.unsqueeze(1), 0.0)
        self.count(slots)
        self.slots[rows] = slots
        self.losses[rows] = loss

    def _check(self, target: Tensor) -> tuple[Tensor, Tensor | None]:
        """Return (class indices, which of them are ignored, or None if none is). The ignored ones become 0."""
        ignored = check_classes(target, self.classes, self.ignore_index)
        return target if ignored is None else target.masked_fill(ignored, 0), ignored

    def _replace_by_index(self, p: Tensor, index: Tensor, logits: "_Shifted", log_sum: Tensor) -> tuple[Tensor, Tensor]:
        """Return (gradient norm, loss) of class indices. p becomes the residual p - y."""
        p_y = p.gather(1, index)
        below = logits.values.gather(1, index).squeeze(1).sub_(logits.top)
        if self.smoothing == 0:
            p.scatter_(1, index, p_y - 1)
            return 1 - p_y.squeeze(1), log_sum.sub_(below)
        each = self.smoothing / self.classes
        loss = log_sum - below.mul_(1 - self.smoothing) - logits.all().sum(1) * each
        p.scatter_(1, index, p_y - (1 - self.smoothing)).sub_(each)
        return p.abs().sum(1).div_(2), loss

    def _replace_by_distribution(
        self, p: Tensor, y: Tensor, logits: "_Shifted", log_sum: Tensor
    ) -> tuple[Tensor, Tensor]:
        """Return (gradient norm, loss) of the distributions y. p becomes the residual p sum(y) - y."""
        if self.smoothing != 0:
            y = y * (1 - self.smoothing) + self.smoothing / self.classes
        mass = y.sum(1)
        loss = mass * log_sum - (logits.all() * y).masked_fill_(y == 0, 0.0).sum(1)
        p.mul_(mass.unsqueeze(1)).sub_(y)
        return p.abs().sum(1).div_(2), loss

    def scale(self, coefficients: Tensor) -> tuple[float | Tensor, Tensor | None]:
        """Return the loss and the gradient."""
        total = 0.0
        for at, rows in self._parts():
            coefficient = lookup(coefficients, self.slots[rows])
            losses = self.losses[rows].mul_(coefficient)
            if not self.unreduced:
                total += total_of(losses.reshape(-1))
            if self.grads is not None:
                self.grads[at] *= coefficient.unsqueeze(1)
        return self.losses if self.unreduced else total, self.grads
