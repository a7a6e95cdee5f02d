"""The losses of the comparison, by name. Each is made for the numbers of training images of the classes."""

from collections.abc import Callable

import torch
from torch import Tensor
from torch.nn import CrossEntropyLoss
from torch.nn.functional import cross_entropy

from ghm_triton import GHMCrossEntropyLoss

EXPONENTS = (0.25, 0.5, 0.75, 1.0)
FOCUS = 2.0  # gamma of the focal loss
SMOOTHING = 0.1
TRUNCATION = 0.7  # q of the generalized cross entropy, as in its paper

Loss = Callable[[Tensor, Tensor], Tensor]


def focal_loss(input: Tensor, target: Tensor) -> Tensor:
    """Return the mean of (1 - p_y)^gamma CE, the focal loss of a softmax classifier."""
    losses = cross_entropy(input, target, reduction="none")
    return ((1 - (-losses).exp()) ** FOCUS * losses).mean()


def generalized_cross_entropy(input: Tensor, target: Tensor) -> Tensor:
    """Return the mean of (1 - p_y^q) / q (Zhang and Sabuncu, NeurIPS 2018, eq. 6), made for wrong labels."""
    losses = cross_entropy(input, target, reduction="none")
    return ((1 - (-TRUNCATION * losses).exp()) / TRUNCATION).mean()


def weighted_by_class(counts: Tensor) -> Loss:
    """Return cross entropy with the weight sum(counts) / (C * count) for each class."""
    return CrossEntropyLoss(weight=counts.sum() / (len(counts) * counts))


def adjusted(loss: Loss, counts: Tensor) -> Loss:
    """Return `loss` of the logits plus the logarithm of the class frequencies (Menon et al., ICLR 2021, eq. 10)."""
    log_prior = (counts / counts.sum()).log()
    return lambda input, target: loss(input + log_prior, target)


RIVALS: dict[str, Callable[[Tensor], Loss]] = {
    "cross entropy": lambda counts: CrossEntropyLoss(),
    "focal": lambda counts: focal_loss,
    "label smoothing": lambda counts: CrossEntropyLoss(label_smoothing=SMOOTHING),
    "class weights": weighted_by_class,
    "logit adjustment": lambda counts: adjusted(cross_entropy, counts),
    "generalized CE": lambda counts: generalized_cross_entropy,
}
LOSSES: dict[str, Callable[[Tensor], Loss]] = {
    **RIVALS,
    **{f"GHM {rho:g}": lambda counts, rho=rho: GHMCrossEntropyLoss(exponent=rho) for rho in EXPONENTS},
    "GHM 0.5 adjusted": lambda counts: adjusted(GHMCrossEntropyLoss(exponent=0.5), counts),
}


def class_counts(labels: Tensor, classes: int) -> Tensor:
    """Return how many of the labels name each class, as float32 and at least 1."""
    return torch.bincount(labels, minlength=classes).clamp(min=1).float()
