"""GHM-C and GHM-R in the head of a torchvision RetinaNet."""

import torch
from torch import Tensor
from torchvision.models.detection._utils import Matcher
from torchvision.models.detection.retinanet import RetinaNetHead

from ghm_triton.losses.calls import call_loss

from .base import HarmonizedLosses, match_labels, positive_deltas


class HarmonizedRetinaNetHead(HarmonizedLosses, RetinaNetHead):
    """A RetinaNetHead with other losses.

    Args:
        classification_head, regression_head: The parts of torchvision's RetinaNetHead.
        classification_loss, regression_loss: As for :func:`ghm_triton.detection.harmonize`. None: the loss of the part.
    """

    def compute_loss(
        self,
        targets: list[dict[str, Tensor]],
        head_outputs: dict[str, Tensor],
        anchors: list[Tensor],
        matched_idxs: list[Tensor],
    ) -> dict[str, Tensor]:
        """Return the losses "classification" and "bbox_regression". RetinaNet calls this with its matches."""
        if self.classification_loss is None:
            classification = self.classification_head.compute_loss(targets, head_outputs, matched_idxs)
        else:
            classification = self._classification(targets, head_outputs["cls_logits"], torch.stack(matched_idxs))
        if self.regression_loss is None:
            boxes = self.regression_head.compute_loss(targets, head_outputs, anchors, matched_idxs)
        else:
            boxes = self._boxes(targets, head_outputs["bbox_regression"], anchors, torch.stack(matched_idxs))
        return {"classification": classification, "bbox_regression": boxes}

    def _classification(self, targets, logits, matches):
        labels = match_labels(targets, matches, logits.shape[-1])
        return call_loss(self.classification_loss, logits, labels, matches != Matcher.BETWEEN_THRESHOLDS)

    def _boxes(self, targets, deltas, anchors, matches):
        positive = positive_deltas(self.regression_head.box_coder, targets, deltas, anchors, matches)
        return call_loss(self.regression_loss, *positive)
