"""Conventions that both backends share: edges of the unit regions, slots of the counts, anchors, dtypes.

The unit regions are M intervals of [0, 1], the range of the gradient norm, with the fp32 edges i / M. Counts and sums
have one slot per region, then one for NaN, and the last one for ignored elements.
"""

import functools
from typing import NamedTuple

import torch
from torch import Tensor

FORGOTTEN = 1e-6  # elements: in evaluation, a smaller average counts as that of a region never seen


class Level(NamedTuple):
    """The tensors of one level of a feature pyramid.

    An anchor is a row of the input: the elements along its last dimension (the classes, or the box coordinates). A
    tensor with one dimension less than the input holds one number per anchor: class indices, or anchor weights.
    """

    input: Tensor
    target: Tensor
    weight: Tensor | None

    @property
    def class_index(self) -> bool:
        return self.target.dim() < self.input.dim()

    @property
    def anchor_weight(self) -> bool:
        return self.weight is not None and self.weight.dim() < self.input.dim()

    @property
    def element_weight(self) -> bool:
        return self.weight is not None and not self.anchor_weight

    @property
    def columns(self) -> int:
        """Elements per anchor, or 1 if no tensor holds one number per anchor."""
        return self.input.shape[-1] if self.class_index or self.anchor_weight else 1


class Population(NamedTuple):
    """The elements that share one gradient density. Each list holds one tensor per level; `weights` may be empty."""

    inputs: list[Tensor]
    targets: list[Tensor]
    weights: list[Tensor]

    def levels(self) -> list[Level]:
        weights = self.weights or [None] * len(self.inputs)
        return [Level(*level) for level in zip(self.inputs, self.targets, weights)]


def state_size(bins: int, variant: str) -> int:
    """Size of running_counts: one moving average per region, followed by that of the constant 1 for "paper"."""
    return bins + 1 if variant == "paper" else bins


def slots_of_kernels(bins: int) -> int:
    """Slots per row of counts in the kernels: the next power of two from bins + 2, which `tl.histogram` requires."""
    return 1 << (bins + 1).bit_length()


def compute_dtype(dtype: torch.dtype) -> torch.dtype:
    """The dtype of norms and losses, and of eager gradients before rounding to the dtype of the input."""
    return torch.float64 if dtype == torch.float64 else torch.float32


def region_edges(bins: int, device: torch.device | str | None = None) -> Tensor:
    """The edges i / bins, i = 0..bins, rounded to fp32. Shape [bins + 1]."""
    return torch.arange(bins + 1, dtype=torch.float32, device=device) / bins


@functools.cache
def floor_misses_edges(bins: int) -> bool:
    """Whether floor(fp32(g * bins)) differs from the last i with g >= fp32(i / bins) for some fp32 g in [0, 1].

    The two agree for 10 and 30 bins, and differ by one beside an edge for 11, 12, 19, 20, 25, 50, 100 and others. The
    product is monotonic in g, so the edges and the numbers just below them decide.
    """
    edge = region_edges(bins, "cpu")[1:bins]
    index = torch.arange(1, bins, device="cpu")
    below = torch.nextafter(edge, torch.zeros_like(edge))
    return bool(((edge * bins).floor() != index).any() or ((below * bins).floor() != index - 1).any())
