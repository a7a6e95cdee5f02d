"""GHM cross entropy: the gradient norm, loss and residual of a row of logits z with the target distribution y.

    p = softmax(z),  CE = -sum_c y_c log p_c,  g = 1/2 sum_c |p_c - y_c|,  d CE / d z_c = p_c - y_c

For a class index g is 1 - p_y. Where y does not sum to 1, its sum multiplies p, as in the derivative of CE.
"""

from collections.abc import Iterator

import torch
from torch import Tensor

from ..conventions import Level
from ..options import Options
from .levels import MeasuredLevel, lookup


class CrossEntropyLevel(MeasuredLevel):
    """Rows of C logits in the layout [A, C, S]: S is 1 where the classes are contiguous.

    The gradient starts as the residuals, which replace the probabilities in place.
    """

    chunk = 1 << 17

    def __init__(self, level: Level, options: Options):
        super().__init__(level, options)
        outer, self.classes = self.shape[:2]
        inner = self.shape[2:].numel()
        self.logits = level.input.reshape(outer, self.classes, inner)
        self.ignore_index, self.smoothing = options.ignore_index, options.label_smoothing
        self.class_index = level.class_index
        self.target = level.target.reshape((outer, inner) if self.class_index else self.logits.shape)
        device = level.input.device
        self.grads = torch.empty(self.logits.shape, dtype=self.dtype, device=device) if self.grad else None
        self.losses = torch.empty(outer, inner, dtype=self.dtype, device=device) if self.unreduced else None
        kept = self.grad or self.unreduced
        self.slots = torch.empty(outer, inner, dtype=torch.int32, device=device) if kept else None
        for outer_part, inner_part in self._parts():
            self._measure(outer_part, inner_part)

    def _parts(self) -> Iterator[tuple[slice, slice]]:
        """Parts of the first and the last dimension that stay in the cache."""
        outer, classes, inner = self.logits.shape
        most = max(1, self.chunk // max(1, classes))  # rows
        inners = max(1, min(inner, most))
        outers = max(1, most // inners)
        for first in range(0, outer, outers):
            for start in range(0, inner, inners):
                yield slice(first, first + outers), slice(start, start + inners)

    def _measure(self, outer: slice, inner: slice) -> None:
        logits = self.logits[outer, :, inner].to(self.dtype)
        log_p = torch.log_softmax(logits, 1)
        target = self.target[outer, inner] if self.class_index else self.target[outer, :, inner].to(self.dtype)
        if self.class_index:
            target, ignored = self._check(target.long())
            norm, loss, residual = self._index_terms(log_p, target.unsqueeze(1))
        else:
            ignored = None
            norm, loss, residual = self._distribution_terms(log_p, target)
        slots = self.slots_of(norm)
        if ignored is not None:
            slots.masked_fill_(ignored, self.ignored)
            loss.masked_fill_(ignored, 0.0)
            residual.masked_fill_(ignored.unsqueeze(1), 0.0)
        self.add(slots, loss)
        if self.slots is not None:
            self.slots[outer, inner] = slots
        if self.losses is not None:
            self.losses[outer, inner] = loss
        if self.grads is not None:
            self.grads[outer, :, inner] = residual

    def _check(self, target: Tensor) -> tuple[Tensor, Tensor | None]:
        """(class indices, which of them are ignored or None); the ignored ones become 0."""
        inside = (target >= 0) & (target < self.classes)
        ignored = target == self.ignore_index
        wrong = ~(inside | ignored)
        if wrong.any():
            raise IndexError(
                f"target must hold class indices from 0 to {self.classes - 1} or ignore_index ({self.ignore_index}), "
                f"got {target[wrong][0].item()}"
            )
        if not ignored.any():
            return target, None
        return target.masked_fill(ignored, 0), ignored

    def _index_terms(self, log_p: Tensor, index: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        log_p_y = log_p.gather(1, index)
        residual_y = log_p_y.expm1()  # p_y - 1 without its cancellation at p_y = 1
        if self.smoothing == 0:
            residual = log_p.exp_().scatter_(1, index, residual_y)
            return residual_y.squeeze(1).neg(), log_p_y.squeeze(1).neg(), residual
        each = self.smoothing / self.classes
        loss = log_p_y.squeeze(1).mul(self.smoothing - 1).sub_(log_p.sum(1), alpha=each)
        residual = log_p.exp_().scatter_(1, index, residual_y + self.smoothing).sub_(each)
        return residual.abs().sum(1).div_(2), loss, residual

    def _distribution_terms(self, log_p: Tensor, target: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        if self.smoothing != 0:
            target = target * (1 - self.smoothing) + self.smoothing / self.classes
        loss = (target * log_p).masked_fill_(target == 0, 0.0).sum(1).neg_()
        residual = log_p.exp_().mul_(target.sum(1, keepdim=True)).sub_(target)
        return residual.abs().sum(1).div_(2), loss, residual

    def weigh(self, coefficients: Tensor) -> tuple[Tensor, Tensor | None]:
        if self.slots is not None:
            for outer, inner in self._parts():
                coefficient = lookup(coefficients, self.slots[outer, inner])
                if self.grads is not None:
                    self.grads[outer, :, inner] *= coefficient.unsqueeze(1)
                if self.losses is not None:
                    self.losses[outer, inner] *= coefficient
        grads = None if self.grads is None else self.grads.view(self.shape)
        if self.losses is None:
            return self.total(coefficients), grads
        return self.losses.view(self.shape[:1] + self.shape[2:]), grads
