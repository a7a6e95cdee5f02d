"""The elements that share one gradient density, in the form that both backends take."""

from typing import NamedTuple

import torch
from torch import Tensor

from .options import Options


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
        """Whether the target holds class indices."""
        return self.target.dim() < self.input.dim()

    @property
    def anchor_weight(self) -> bool:
        """Whether there is one weight per anchor."""
        return self.weight is not None and self.weight.dim() < self.input.dim()

    @property
    def element_weight(self) -> bool:
        """Whether there is one weight per element."""
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
        """Return the levels one by one."""
        weights = self.weights or [None] * len(self.inputs)
        return [Level(*level) for level in zip(self.inputs, self.targets, weights)]


def loss_shape(input: Tensor, options: Options) -> torch.Size:
    """Return the shape of the losses of a level before reduction: one per element, or one per row of classes."""
    return input.shape[:1] + input.shape[2:] if options.loss == "cross_entropy" else input.shape


def kept_by_kernels(options: Options) -> int:
    """Return how many tensors the kernels' forward pass keeps for the gradient. The coefficients are the first."""
    return 4 if options.loss == "cross_entropy" else 1


def compute_dtype(dtype: torch.dtype) -> torch.dtype:
    """Return the dtype of norms and losses, and of eager gradients before they are rounded to the input's dtype."""
    return torch.float64 if dtype == torch.float64 else torch.float32
