"""GHM-C and GHM-R in the heads of a torchvision RetinaNet, and GHM-C in those of an FCOS."""

import torch
from torch import Tensor, nn
from torchvision.models.detection import FCOS, RetinaNet
from torchvision.models.detection._utils import Matcher
from torchvision.models.detection.fcos import FCOSHead
from torchvision.models.detection.retinanet import RetinaNetHead

from ghm_triton import GHMCLoss, GHMRLoss

from .fcos import HarmonizedFCOSHead
from .heads import HarmonizedLosses, match_labels, object_index


def harmonize(
    model: RetinaNet | FCOS,
    *,
    bins: int | None = 30,
    box_bins: int | None = 10,
    momentum: float = 0.75,
    mu: float = 0.02,
    class_loss_weight: float = 1.0,
    box_loss_weight: float = 1.0,
    exponent: float = 1.0,
    variant: str = "paper",
    backend: str | None = None,
    sync: bool = False,
) -> RetinaNet | FCOS:
    """Make the heads of `model` compute GHM-C and GHM-R; the defaults are the paper's.

    The model is changed and returned. Its parameters keep their names, and a checkpoint of the plain model loads. Its
    `state_dict` gains the running counts under `head.classification_loss` and `head.regression_loss`. Do this before
    the model is moved to a device or wrapped for several processes; harmonizing again starts with fresh counts.

    An FCOS gets GHM-C over all its locations and keeps its own box losses: it regresses boxes by their generalized IoU,
    and a centerness by cross entropy. GHM-R is made for differences of box deltas and has no meaning for either, so that
    `box_bins`, `mu` and `box_loss_weight` are not used.

    Args:
        model: a RetinaNet of torchvision, `retinanet_resnet50_fpn` or built by hand, with a `RetinaNetHead`; or an
            FCOS with an `FCOSHead`.
        bins: unit regions of GHM-C. 1 is plain cross entropy; None leaves the model's own classification loss.
        box_bins: unit regions of GHM-R. 1 is plain ASL1; None leaves the model's own box loss.
        momentum: of the moving averages of both densities.
        mu: of ASL1, in units of the encoded box deltas.
        class_loss_weight, box_loss_weight: factors of the two losses.
        exponent: of the tempered densities of both losses. 1 is the paper; with small models or batches take 0.5.
        variant, backend: as for :func:`ghm_triton.ghmc_loss`.
        sync: take the densities over all processes of torch.distributed. The losses are scaled so that the mean of the
            processes' gradients, which DistributedDataParallel takes, is that of one process with the whole batch.

    Raises:
        TypeError: `model` is no RetinaNet or FCOS, or its head not torchvision's.
        ValueError: an option is out of range.

    Example:
        >>> model = harmonize(torchvision.models.detection.retinanet_resnet50_fpn(num_classes=91))
        >>> losses = model(images, targets)  # "classification" and "bbox_regression", as before
    """
    harmonize_boxes = box_bins is not None and not isinstance(model, FCOS)
    common = {"momentum": momentum, "exponent": exponent, "variant": variant, "backend": backend, "sync": sync}
    return set_losses(
        model,
        None if bins is None else GHMCLoss(bins=bins, loss_weight=class_loss_weight, **common),
        GHMRLoss(mu=mu, bins=box_bins, loss_weight=box_loss_weight, **common) if harmonize_boxes else None,
    )


def set_losses(
    model: RetinaNet | FCOS, classification_loss: nn.Module | None, regression_loss: nn.Module | None
) -> RetinaNet | FCOS:
    """Give the head of `model` these losses, called as :class:`HarmonizedHead` describes; None: the model's own.

    Raises:
        TypeError: `model` is no RetinaNet or FCOS, or its head not torchvision's.
    """
    for kind, of_head, harmonized in (
        (RetinaNet, RetinaNetHead, HarmonizedHead),
        (FCOS, FCOSHead, HarmonizedFCOSHead),
    ):
        if isinstance(model, kind):
            if not isinstance(model.head, of_head):
                got = type(model.head).__name__
                raise TypeError(f"model.head: expected a torchvision {of_head.__name__}, got {got}")
            heads = model.head.classification_head, model.head.regression_head
            model.head = harmonized(*heads, classification_loss, regression_loss).train(model.training)
            return model
    raise TypeError(f"model: expected a torchvision RetinaNet or FCOS, got {type(model).__name__}")


class HarmonizedHead(HarmonizedLosses, RetinaNetHead):
    """A RetinaNetHead around existing heads whose losses take one density over the batch and all levels.

    Args:
        classification_head, regression_head: as torchvision's RetinaNetHead has them.
        classification_loss: takes logits [images, anchors, classes], labels and weights [images, anchors]; None for
            the loss of `classification_head`.
        regression_loss: takes deltas and their targets, [positive anchors, 4]; None for the loss of `regression_head`.
    """

    def compute_loss(
        self,
        targets: list[dict[str, Tensor]],
        head_outputs: dict[str, Tensor],
        anchors: list[Tensor],
        matched_idxs: list[Tensor],
    ) -> dict[str, Tensor]:
        """The losses "classification" and "bbox_regression", called by RetinaNet with the matches of each anchor."""
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
        return self.classification_loss(logits, labels, matches != Matcher.BETWEEN_THRESHOLDS)

    def _boxes(self, targets, deltas, anchors, matches):
        positive = matches >= 0
        boxes = torch.cat([target["boxes"] for target in targets])[object_index(targets, matches)[positive]]
        wanted = self.regression_head.box_coder.encode_single(boxes, torch.stack(anchors)[positive])
        return self.regression_loss(deltas[positive], wanted)
