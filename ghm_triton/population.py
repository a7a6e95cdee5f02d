"""The elements that share one gradient density, as both backends take them."""

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


def loss_shape(input: Tensor, options: Options) -> torch.Size:
    """The shape of the losses of a level before their reduction: one per element, or one per row of classes."""
    return input.shape[:1] + input.shape[2:] if options.loss == "cross_entropy" else input.shape


def kept_by_kernels(options: Options) -> int:
    """The number of tensors that the kernels' forward pass keeps for the gradient, the coefficients first."""
    return 4 if options.loss == "cross_entropy" else 1


def compute_dtype(dtype: torch.dtype) -> torch.dtype:
    """The dtype of norms and losses, and of eager gradients before rounding to the dtype of the input."""
    return torch.float64 if dtype == torch.float64 else torch.float32
