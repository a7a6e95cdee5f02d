"""The formulas of softmax classifiers in float64, and the errors of an implementation. See reference.py."""

from collections.abc import Iterator

import torch
from torch import Tensor

from .reference import CHUNK, Reference


class SoftmaxReference(Reference):
    """Regions and weights are those of rows. Gradients, which have all classes, are computed anew for each check."""

    def __init__(self, case, data):
        self.case, self.data = case, data
        label_log_p = [
            logits.log_softmax(1).gather(1, label.unsqueeze(1)).squeeze(1) for _, logits, label in self._chunks()
        ]
        places = [self._place(-log_p.expm1()) for log_p in label_log_p]
        self._count(places)
        # (region, whether close to an edge, cross entropy) of each chunk
        self._of_rows = [(region, near, -log_p) for (region, near, _), log_p in zip(places, label_log_p)]

    def _chunks(self) -> Iterator[tuple[slice, Tensor, Tensor]]:
        """(index into the first dimension, logits [rows, classes], labels [rows])."""
        input, step = self.data.input.detach(), max(1, CHUNK // max(1, self.data.input[0].numel()))
        for first in range(0, len(input), step):
            at = slice(first, first + step)
            logits = input[at].double().movedim(1, -1).reshape(-1, self.case.columns)
            yield at, logits, self.data.target[at].reshape(-1)

    def _weights(self, formula: str, region: Tensor) -> Tensor:
        if formula == "cross_entropy":
            return torch.full_like(region, 1 / self.case.rows, dtype=torch.float64)
        return super()._weights(formula, region)

    def _loss(self, formula: str) -> Tensor:
        return sum((self._weights(formula, region) * losses).sum() for region, _, losses in self._of_rows)

    def _gradients(self, formula: str, gradient: Tensor) -> Iterator[tuple[Tensor, Tensor, Tensor, Tensor]]:
        for (at, logits, label), (region, near, _) in zip(self._chunks(), self._of_rows):
            expected = logits.softmax(1)
            expected[torch.arange(len(label), device=label.device), label] -= 1
            expected *= (self._weights(formula, region) * self.data.scale).unsqueeze(1)
            error = (gradient[at].double().movedim(1, -1).reshape(expected.shape) - expected).abs()
            yield error.amax(1), expected.abs().amax(1), region, near
