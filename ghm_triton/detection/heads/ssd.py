"""GHM for softmax classifiers, and GHM-R, in torchvision's SSD."""

import torch
from torch import Tensor, nn
from torchvision.models.detection.ssd import SSD

from ghm_triton.losses.calls import call_loss

from .base import KeepsCounts, match_labels, positive_deltas

_BACKGROUND = 0  # the background is a class, so the labels of objects start at 1


class HarmonizedSSD(KeepsCounts, SSD):
    """An SSD with other losses. torchvision computes the losses of an SSD in the model, not in its head.

    :func:`harmonize_ssd` turns a plain SSD into one. There is no hard negative mining: all anchors count.
    """

    def compute_loss(
        self,
        targets: list[dict[str, Tensor]],
        head_outputs: dict[str, Tensor],
        anchors: list[Tensor],
        matched_idxs: list[Tensor],
    ) -> dict[str, Tensor]:
        """Return the losses "classification" and "bbox_regression". SSD calls this with its matches."""
        losses = {}
        if self.classification_loss is None or self.regression_loss is None:
            losses = super().compute_loss(targets, head_outputs, anchors, matched_idxs)
        matches, logits = torch.stack(matched_idxs), head_outputs["cls_logits"]
        if self.classification_loss is not None:
            labels = match_labels(targets, matches, logits.shape[-1], _BACKGROUND)
            losses["classification"] = call_loss(self.classification_loss, logits.flatten(0, 1), labels.flatten())
        if self.regression_loss is not None:
            deltas = head_outputs["bbox_regression"]
            positive = positive_deltas(self.box_coder, targets, deltas, anchors, matches)
            losses["bbox_regression"] = call_loss(self.regression_loss, *positive)
        return losses


def harmonize_ssd(model: SSD, classification_loss: nn.Module | None, regression_loss: nn.Module | None) -> None:
    """Turn `model` into a :class:`HarmonizedSSD` in place.

    Raises:
        TypeError: `model` is of a subclass of SSD, whose own `compute_loss` would be lost.
    """
    if type(model) not in (SSD, HarmonizedSSD):
        raise TypeError(f"model must be torchvision's SSD itself, got {type(model).__name__}")
    model.__class__ = HarmonizedSSD
    model.classification_loss, model.regression_loss = classification_loss, regression_loss
