"""GHM-C in the head of a torchvision FCOS."""

import torch
from torch import Tensor, nn
from torchvision.models.detection._utils import BoxLinearCoder
from torchvision.models.detection.fcos import FCOSHead

from ghm_triton.losses.calls import call_loss

from .base import HarmonizedLosses, match_labels


class HarmonizedFCOSHead(HarmonizedLosses, FCOSHead):
    """An FCOSHead with another classification loss.

    Boxes and centerness keep torchvision's losses: generalized IoU and cross entropy, over the positive locations.

    Args:
        classification_head, regression_head: The parts of torchvision's FCOSHead.
        classification_loss: As for :func:`ghm_triton.detection.harmonize`. None: torchvision's focal loss.
        regression_loss: Must be None.

    Raises:
        ValueError: `regression_loss` is given.
    """

    def __init__(
        self,
        classification_head: nn.Module,
        regression_head: nn.Module,
        classification_loss: nn.Module | None,
        regression_loss: None = None,
    ):
        if regression_loss is not None:
            raise ValueError(
                "regression_loss must be left out for an FCOS, which regresses boxes by their overlap, "
                f"got {type(regression_loss).__name__}"
            )
        super().__init__(classification_head, regression_head, classification_loss, None)
        self.box_coder = BoxLinearCoder(normalize_by_size=True)

    def compute_loss(
        self,
        targets: list[dict[str, Tensor]],
        head_outputs: dict[str, Tensor],
        anchors: list[Tensor],
        matched_idxs: list[Tensor],
    ) -> dict[str, Tensor]:
        """Return "classification", "bbox_regression" and "bbox_ctrness". FCOS calls this with its matches."""
        logits = head_outputs["cls_logits"]
        if self.classification_loss is None:
            return super().compute_loss(targets, head_outputs, anchors, matched_idxs)
        matches = torch.stack(matched_idxs)
        labels = match_labels(targets, matches, logits.shape[-1])
        # torchvision computes the three losses in one function; its focal loss is thrown away.
        losses = super().compute_loss(targets, head_outputs | {"cls_logits": logits.detach()}, anchors, matched_idxs)
        counted = torch.ones_like(labels, dtype=torch.bool)
        return losses | {"classification": call_loss(self.classification_loss, logits, labels, counted)}
