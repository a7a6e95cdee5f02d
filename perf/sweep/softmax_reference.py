"""The formulas of softmax classifiers in float64, and the errors of an implementation. See reference.py."""

from collections.abc import Iterator

import torch
import torch.nn.functional as F
from torch import Tensor

from .reference import CHUNK, NEAR, Reference


class SoftmaxReference(Reference):
    """Regions and weights are those of rows. Each chunk is computed anew: its gradient has all classes."""

    def __init__(self, case, data):
        self.case, self.data = case, data
        self.counts = torch.zeros(case.bins, dtype=torch.float64, device=data.input.device)
        at_edges = torch.zeros_like(self.counts)
        for _, logits, label in self._chunks():
            region, near = self._regions(logits, label)
            self.counts += region.bincount(minlength=case.bins)
            for shift in (-1, 1):  # the regions on both sides of the edge
                beside = ((1 - _probability(logits, label) + shift * NEAR) * case.bins).long().clamp_(0, case.bins - 1)
                at_edges += beside[near].bincount(minlength=case.bins)
        self.slack = (at_edges / self.counts.clamp(min=1)).max().item()

    def _chunks(self) -> Iterator[tuple[slice, Tensor, Tensor]]:
        """(index into the first dimension, logits [rows, classes], labels [rows])."""
        input, step = self.data.input.detach(), max(1, CHUNK // max(1, self.data.input[0].numel()))
        for first in range(0, len(input), step):
            at = slice(first, first + step)
            logits = input[at].double().movedim(1, -1).reshape(-1, self.case.columns)
            yield at, logits, self.data.target[at].reshape(-1)

    def _regions(self, logits: Tensor, label: Tensor) -> tuple[Tensor, Tensor]:
        """(region, whether close to an edge inside [0, 1]) of each row."""
        scaled = (1 - _probability(logits, label)) * self.case.bins
        edge = scaled.round()
        near = ((scaled - edge).abs() < NEAR * self.case.bins) & (edge > 0) & (edge < self.case.bins)
        return scaled.long().clamp_(max=self.case.bins - 1), near

    def _weights(self, formula: str, region: Tensor) -> Tensor:
        if formula == "cross_entropy":
            return torch.full_like(region, 1 / self.case.rows, dtype=torch.float64)
        regions = (self.counts > 0).sum() if formula == "ghm_mmdet" else self.case.bins
        return (1 / (self.counts * regions))[region]

    def loss_error(self, formula: str, loss: Tensor) -> float:
        expected = 0.0
        for _, logits, label in self._chunks():
            weight = self._weights(formula, self._regions(logits, label)[0])
            expected += (F.cross_entropy(logits, label, reduction="none") * weight).sum()
        return ((loss.double() - expected).abs() / expected.abs()).item()

    def gradient_error(self, formula: str, gradient: Tensor) -> float:
        info = torch.finfo(gradient.dtype)
        worst, largest = torch.zeros(2, self.case.bins, dtype=torch.float64, device=gradient.device)
        for at, logits, label in self._chunks():
            region, near = self._regions(logits, label)
            expected = logits.softmax(1)
            expected[torch.arange(len(label), device=label.device), label] -= 1
            expected *= (self._weights(formula, region) * self.data.scale).unsqueeze(1)
            error = (gradient[at].double().movedim(1, -1).reshape(expected.shape) - expected).abs().amax(1)
            error = (error - info.tiny * info.eps).clamp_(min=0).masked_fill_(near, 0)
            worst.scatter_reduce_(0, region, error, "amax")
            largest.scatter_reduce_(0, region, expected.abs().amax(1), "amax")
        return torch.where(worst > 0, worst / largest, 0.0).max().item()


def _probability(logits: Tensor, label: Tensor) -> Tensor:
    return logits.softmax(1).gather(1, label.unsqueeze(1)).squeeze(1)
