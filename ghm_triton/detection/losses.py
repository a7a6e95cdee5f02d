"""The losses of a detector by name: the harmonized ones, and those they are compared with."""

import dataclasses

import torch
from torch import Tensor, nn
from torch.nn import functional
from torchvision.models.detection import FCOS, RetinaNet
from torchvision.models.detection.ssd import SSD
from torchvision.ops import sigmoid_focal_loss

from ghm_triton import GHMCLoss, GHMCrossEntropyLoss, GHMRLoss
from ghm_triton.distributed import world

from .heads import harmonize

LOSSES = ("ghm", "ghmc", "focal", "ce", "model")
BOX_LOSSES = ("model", "smooth_l1", "asl1", "ghmr")
NORMALIZE = ("batch", "image")


class _OverPositives(nn.Module):
    """A sum over anchors and classes, divided by the number of positive anchors, at least 1.

    Subclasses compute the loss of each logit.

    Args:
        normalize: "batch" divides the sum over the batch by the positives of the batch, as in the focal loss paper,
            Detectron2, and mmdetection. "image" divides the sum over each image by the positives of that image, and
            takes the mean over the images, as torchvision does: an image with few or no objects then outweighs all
            others.
        loss_weight: Factor of the loss.

    Raises:
        ValueError: `normalize` is neither.
    """

    def __init__(self, normalize: str = "batch", loss_weight: float = 1.0):
        super().__init__()
        if normalize not in NORMALIZE:
            raise ValueError(f"normalize must be one of {NORMALIZE}, got {normalize!r}")
        self.normalize, self.loss_weight = normalize, loss_weight

    def forward(self, logits: Tensor, labels: Tensor, counted: Tensor) -> Tensor:
        """Return the loss, a scalar. Shapes and dtypes as for :func:`ghm_triton.detection.harmonize`."""
        positive = labels >= 0
        target = functional.one_hot(labels.clamp(min=0), logits.shape[-1]) * positive[..., None]
        losses = self._losses(logits.float(), target.float())
        totals = torch.where(counted.bool()[..., None], losses, 0).sum(dim=(1, 2))
        positives = positive.sum(dim=1)
        if self.normalize == "batch":
            totals, positives = totals.sum(), positives.sum()
        return self.loss_weight * (totals / positives.clamp(min=1)).mean()

    def _losses(self, logits: Tensor, target: Tensor) -> Tensor:
        raise NotImplementedError


class CrossEntropyLoss(_OverPositives):
    """Binary cross entropy over the positive anchors of the batch, or of each image.

    Args:
        normalize, loss_weight: "batch" or "image", and a factor.

    Example:
        >>> CrossEntropyLoss()(torch.randn(2, 50, 4), torch.randint(-1, 4, (2, 50)), torch.ones(2, 50))
    """

    def _losses(self, logits: Tensor, target: Tensor) -> Tensor:
        return functional.binary_cross_entropy_with_logits(logits, target, reduction="none")


class FocalLoss(_OverPositives):
    """Focal loss (Lin et al., ICCV 2017) with alpha 0.25 and gamma 2, over the positives of the batch or of each image.

    Args:
        normalize, loss_weight: "batch" or "image", and a factor. "image" is torchvision's own loss.

    Example:
        >>> FocalLoss()(torch.randn(2, 50, 4), torch.randint(-1, 4, (2, 50)), torch.ones(2, 50))
    """

    def _losses(self, logits: Tensor, target: Tensor) -> Tensor:
        return sigmoid_focal_loss(logits, target, reduction="none")


class SmoothL1Loss(nn.Module):
    """Smooth L1: the mean over the coordinates of all positive anchors of the batch, and 0 without any.

    Args:
        beta: Where the loss changes from quadratic to linear, in units of the encoded box deltas. 1/9 as in Detectron.
        loss_weight: Factor of the loss.
    """

    def __init__(self, beta: float = 1 / 9, loss_weight: float = 1.0):
        super().__init__()
        self.beta, self.loss_weight = beta, loss_weight

    def forward(self, deltas: Tensor, target: Tensor) -> Tensor:
        """Return the loss, a scalar, for two tensors [positive anchors, 4]."""
        total = functional.smooth_l1_loss(deltas.float(), target.float(), beta=self.beta, reduction="sum")
        return self.loss_weight * total / max(deltas.numel(), 1)


@dataclasses.dataclass(frozen=True)
class LossOptions:
    """The losses of a detector by name, and their settings.

    Attributes:
        loss: "ghm" (GHM-C, and GHM-R as the box loss), "ghmc", "focal", "ce", or "model" (the model's own: focal loss
            over the positives of each image, or for an SSD cross entropy with hard negative mining). For an SSD, "ghm"
            and "ghmc" mean GHM cross entropy over the softmax.
        box_loss: "ghmr", "asl1", "smooth_l1" or "model" (the model's own). None: "ghmr" for "ghm", else "model". An
            FCOS keeps its own box losses.
        bins, box_bins: Unit regions of GHM-C and GHM-R.
        momentum, mu, exponent: As for :class:`ghm_triton.GHMCLoss` and :class:`ghm_triton.GHMRLoss`.
        class_loss_weight, box_loss_weight: Factors of the two losses. The model's own losses have none.
        normalize: "batch" or "image": "focal" and "ce" divide by the positives of the batch, or of each image.

    Raises:
        ValueError: A name is unknown, or a factor is given for one of the model's own losses.
    """

    loss: str = "ghm"
    box_loss: str | None = None
    bins: int = 30
    box_bins: int = 10
    momentum: float = 0.75
    mu: float = 0.02
    exponent: float = 0.5
    class_loss_weight: float = 1.0
    box_loss_weight: float = 1.0
    normalize: str = "batch"

    def __post_init__(self):
        if self.loss not in LOSSES:
            raise ValueError(f"loss must be one of {LOSSES}, got {self.loss!r}")
        if self.box_loss not in (None, *BOX_LOSSES):
            raise ValueError(f"box_loss must be one of {BOX_LOSSES} or None, got {self.box_loss!r}")
        if self.normalize not in NORMALIZE:
            raise ValueError(f"normalize must be one of {NORMALIZE}, got {self.normalize!r}")
        own = self.box_loss == "model" or (self.box_loss is None and self.loss != "ghm")
        for name, owned in (("class_loss_weight", self.loss == "model"), ("box_loss_weight", own)):
            if owned and getattr(self, name) != 1:
                raise ValueError(f"{name} must be 1 for the model's own loss, got {getattr(self, name)!r}")


def stored_options(stored: dict) -> LossOptions:
    """Return the options stored in a checkpoint. Those of early versions include `variant`, which no longer exists."""
    return LossOptions(**{name: value for name, value in stored.items() if name != "variant"})


def use_losses(model: RetinaNet | FCOS | SSD, options: LossOptions, *, sync: bool = False) -> RetinaNet | FCOS | SSD:
    """Make `model` train with the losses that `options` names. The model is changed and returned.

    Args:
        model: A RetinaNet, FCOS or SSD of torchvision.
        options: The losses.
        sync: Take the densities over all processes of torch.distributed, which must be initialized first. The losses
            are scaled so that the mean of the gradients over the processes, which DistributedDataParallel computes,
            equals the gradient of one process with the whole batch.

    Raises:
        ValueError: A box loss or its factor is given for an FCOS, or "focal" or "ce" for an SSD.

    Example:
        >>> model = use_losses(small_retinanet(10), LossOptions("focal", "smooth_l1", box_loss_weight=2.0))
    """
    fcos = isinstance(model, FCOS)
    for name, usual in (("box_loss", (None, "model")), ("box_loss_weight", (1,))):
        value = getattr(options, name)
        if fcos and value not in usual:
            raise ValueError(
                f"{name} must be left out for an FCOS, which regresses boxes by their overlap, got {value!r}"
            )
    classification = _softmax_loss if isinstance(model, SSD) else _classification_loss
    losses = classification(options, sync), None if fcos else _regression_loss(options, sync)
    return model if losses == (None, None) else harmonize(model, *losses)


def _classification_loss(options: LossOptions, sync: bool) -> nn.Module | None:
    if options.loss == "model":
        return None
    if options.loss in ("focal", "ce"):
        kind = FocalLoss if options.loss == "focal" else CrossEntropyLoss
        return kind(options.normalize, options.class_loss_weight)
    return GHMCLoss(
        bins=options.bins,
        momentum=options.momentum,
        exponent=options.exponent,
        loss_weight=options.class_loss_weight,
        process_group=world() if sync else None,
    )


def _softmax_loss(options: LossOptions, sync: bool) -> nn.Module | None:
    """Return the classification loss of an SSD."""
    if options.loss in ("focal", "ce"):
        raise ValueError(f"loss must be 'ghm', 'ghmc' or 'model' for an SSD, got {options.loss!r}")
    if options.loss == "model":
        return None
    return GHMCrossEntropyLoss(
        bins=options.bins,
        momentum=options.momentum,
        exponent=options.exponent,
        loss_weight=options.class_loss_weight,
        process_group=world() if sync else None,
    )


def _regression_loss(options: LossOptions, sync: bool) -> nn.Module | None:
    name = options.box_loss or ("ghmr" if options.loss == "ghm" else "model")
    if name == "model":
        return None
    if name == "smooth_l1":
        return SmoothL1Loss(loss_weight=options.box_loss_weight)
    plain = name == "asl1"  # one region: every weight is 1
    return GHMRLoss(
        mu=options.mu,
        bins=1 if plain else options.box_bins,
        momentum=0.0 if plain else options.momentum,
        exponent=options.exponent,
        loss_weight=options.box_loss_weight,
        process_group=world() if sync else None,
    )
