"""Losses by name, for the heads of a detector: the harmonized ones and those that they are compared with."""

import torch
from torch import Tensor, nn
from torch.nn import functional
from torchvision.models.detection import FCOS, RetinaNet

from ghm_triton import GHMCLoss, GHMRLoss

from .retinanet import set_losses

LOSSES = ("ghm", "ghmc", "focal", "ce")
BOX_LOSSES = ("model", "smooth_l1", "asl1", "ghmr")


class CrossEntropyLoss(nn.Module):
    """Binary cross entropy, normalised as torchvision's focal loss: by the positives of each image, at least 1.

    Args:
        loss_weight: factor of the loss.

    Example:
        >>> CrossEntropyLoss()(torch.randn(2, 50, 4), torch.randint(-1, 4, (2, 50)), torch.ones(2, 50))
    """

    def __init__(self, loss_weight: float = 1.0):
        super().__init__()
        self.loss_weight = loss_weight

    def forward(self, logits: Tensor, labels: Tensor, counted: Tensor) -> Tensor:
        """The mean over the images; logits [images, anchors, classes], labels (-1: background), counted alike."""
        wanted = functional.one_hot(labels.clamp(min=0), logits.shape[-1]) * (labels >= 0)[..., None]
        losses = functional.binary_cross_entropy_with_logits(logits, wanted.to(logits.dtype), reduction="none")
        totals = torch.where(counted.bool()[..., None], losses, 0).sum(dim=(1, 2))
        return self.loss_weight * (totals / (labels >= 0).sum(dim=1).clamp(min=1)).mean()


class SmoothL1Loss(nn.Module):
    """Smooth L1, the mean over the coordinates of all positive anchors of the batch; 0 where there are none.

    Args:
        beta: where it turns from quadratic to linear, in units of the encoded box deltas. 1/9 as in Detectron.
        loss_weight: factor of the loss.
    """

    def __init__(self, beta: float = 1 / 9, loss_weight: float = 1.0):
        super().__init__()
        self.beta, self.loss_weight = beta, loss_weight

    def forward(self, deltas: Tensor, wanted: Tensor) -> Tensor:
        """Both [positive anchors, 4]."""
        total = functional.smooth_l1_loss(deltas.float(), wanted.float(), beta=self.beta, reduction="sum")
        return self.loss_weight * total / max(deltas.numel(), 1)


def use_losses(
    model: RetinaNet | FCOS,
    loss: str,
    box_loss: str | None = None,
    *,
    bins: int = 30,
    box_bins: int = 10,
    momentum: float = 0.75,
    mu: float = 0.02,
    class_loss_weight: float = 1.0,
    box_loss_weight: float = 1.0,
    exponent: float = 1.0,
    variant: str = "paper",
    sync: bool = False,
) -> RetinaNet | FCOS:
    """Make `model` train with the losses of these names; it is changed and returned.

    Args:
        model: a RetinaNet or FCOS of torchvision. An FCOS keeps its own box losses.
        loss: "ghm" (GHM-C, and GHM-R as the box loss), "ghmc", "focal" (the model's own) or "ce".
        box_loss: "ghmr", "asl1", "smooth_l1" or "model" (the model's own). None: "ghmr" for "ghm", else "model".
        bins, box_bins, momentum, mu, exponent, variant, sync: as for :func:`ghm_triton.detection.harmonize`.
        class_loss_weight, box_loss_weight: factors of the two losses; those of the model itself have none.

    Raises:
        ValueError: a name is unknown, a factor is given for a loss of the model itself.

    Example:
        >>> model = use_losses(small_retinanet(10), "focal", "smooth_l1", box_loss_weight=2.0)
    """
    if loss not in LOSSES:
        raise ValueError(f"loss: expected one of {LOSSES}, got {loss!r}")
    if box_loss is None:
        box_loss = "ghmr" if loss == "ghm" and not isinstance(model, FCOS) else "model"
    if box_loss not in BOX_LOSSES:
        raise ValueError(f"box_loss: expected one of {BOX_LOSSES}, got {box_loss!r}")
    if isinstance(model, FCOS) and box_loss != "model":
        raise ValueError(
            f"box_loss: expected 'model' for an FCOS, which regresses boxes by their overlap, got {box_loss!r}"
        )
    for name, weight, own in (
        ("class_loss_weight", class_loss_weight, loss == "focal"),
        ("box_loss_weight", box_loss_weight, box_loss == "model"),
    ):
        if own and weight != 1:
            raise ValueError(f"{name}: expected 1 for the model's own loss, got {weight!r}")
    common = {"exponent": exponent, "variant": variant, "sync": sync}
    ghmc = {"bins": bins, "momentum": momentum}
    ghmr = {"bins": box_bins, "momentum": momentum}
    classification = {
        "focal": lambda: None,
        "ce": lambda: CrossEntropyLoss(class_loss_weight),
    }.get(loss, lambda: GHMCLoss(loss_weight=class_loss_weight, **ghmc, **common))
    boxes = {
        "model": lambda: None,
        "smooth_l1": lambda: SmoothL1Loss(loss_weight=box_loss_weight),
        "asl1": lambda: GHMRLoss(mu=mu, bins=1, momentum=0.0, loss_weight=box_loss_weight, **common),
        "ghmr": lambda: GHMRLoss(mu=mu, loss_weight=box_loss_weight, **ghmr, **common),
    }[box_loss]
    return set_losses(model, classification(), boxes())
