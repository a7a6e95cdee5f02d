"""The formulas of softmax classifiers in float64, and the errors of an implementation. See reference.py."""

from collections.abc import Iterator

import torch
from torch import Tensor

from .reference import CHUNK, NEAR, Reference


class SoftmaxReference(Reference):
    """Regions and weights are those of rows. Gradients, which have all classes, are computed anew for each check."""

    def __init__(self, case, data):
        self.case, self.data = case, data
        self._of_rows = []  # (region, whether close to an edge, cross entropy) of each chunk
        self.counts = torch.zeros(case.bins, dtype=torch.float64, device=data.input.device)
        at_edges = torch.zeros_like(self.counts)
        for _, logits, label in self._chunks():
            log_p = logits.log_softmax(1).gather(1, label.unsqueeze(1)).squeeze(1)
            region, near = self._regions(-log_p.expm1())
            self._of_rows.append((region, near, -log_p))
            self.counts += region.bincount(minlength=case.bins)
            for shift in (-NEAR, NEAR):  # the regions on both sides of the edge
                at_edges += self._regions(-log_p.expm1() + shift)[0][near].bincount(minlength=case.bins)
        self.slack = (at_edges / self.counts.clamp(min=1)).max().item()

    def _chunks(self) -> Iterator[tuple[slice, Tensor, Tensor]]:
        """(index into the first dimension, logits [rows, classes], labels [rows])."""
        input, step = self.data.input.detach(), max(1, CHUNK // max(1, self.data.input[0].numel()))
        for first in range(0, len(input), step):
            at = slice(first, first + step)
            logits = input[at].double().movedim(1, -1).reshape(-1, self.case.columns)
            yield at, logits, self.data.target[at].reshape(-1)

    def _regions(self, norm: Tensor) -> tuple[Tensor, Tensor]:
        """(region, whether close to an edge inside [0, 1]) of each row."""
        scaled = norm * self.case.bins
        edge = scaled.round()
        near = ((scaled - edge).abs() < NEAR * self.case.bins) & (edge > 0) & (edge < self.case.bins)
        return scaled.long().clamp_(max=self.case.bins - 1), near

    def _weights(self, formula: str, region: Tensor) -> Tensor:
        if formula == "cross_entropy":
            return torch.full_like(region, 1 / self.case.rows, dtype=torch.float64)
        regions = (self.counts > 0).sum() if formula == "ghm_mmdet" else self.case.bins
        return (1 / (self.counts * regions))[region]

    def loss_error(self, formula: str, loss: Tensor) -> float:
        expected = sum((self._weights(formula, region) * losses).sum() for region, _, losses in self._of_rows)
        return ((loss.double() - expected).abs() / expected.abs()).item()

    def gradient_error(self, formula: str, gradient: Tensor) -> float:
        info = torch.finfo(gradient.dtype)
        worst, largest = torch.zeros(2, self.case.bins, dtype=torch.float64, device=gradient.device)
        for (at, logits, label), (region, near, _) in zip(self._chunks(), self._of_rows):
            expected = logits.softmax(1)
            expected[torch.arange(len(label), device=label.device), label] -= 1
            expected *= (self._weights(formula, region) * self.data.scale).unsqueeze(1)
            error = (gradient[at].double().movedim(1, -1).reshape(expected.shape) - expected).abs().amax(1)
            error = (error - info.tiny * info.eps).clamp_(min=0).masked_fill_(near, 0)
            worst.scatter_reduce_(0, region, error, "amax")
            largest.scatter_reduce_(0, region, expected.abs().amax(1), "amax")
        return torch.where(worst > 0, worst / largest, 0.0).max().item()
