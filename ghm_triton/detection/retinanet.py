"""GHM-C and GHM-R in the heads of a torchvision RetinaNet."""

import torch
from torch import Tensor, nn
from torchvision.models.detection import RetinaNet
from torchvision.models.detection._utils import Matcher
from torchvision.models.detection.retinanet import RetinaNetHead

from ghm_triton import GHMCLoss, GHMRLoss

_BACKGROUND = -1


def harmonize(
    model: RetinaNet,
    *,
    bins: int | None = 30,
    box_bins: int | None = 10,
    momentum: float = 0.75,
    mu: float = 0.02,
    class_loss_weight: float = 1.0,
    box_loss_weight: float = 1.0,
    variant: str = "paper",
    backend: str | None = None,
) -> RetinaNet:
    """Make the heads of `model` compute GHM-C and GHM-R; the defaults are the paper's.

    The model is changed and returned. Its parameters keep their names, and a checkpoint of the plain model loads. Its
    `state_dict` gains the running counts under `head.classification_loss` and `head.regression_loss`. Do this before
    the model is moved to a device or wrapped for several processes; harmonizing again starts with fresh counts.

    Args:
        model: a RetinaNet of torchvision, `retinanet_resnet50_fpn` or built by hand, with a `RetinaNetHead`.
        bins: unit regions of GHM-C. 1 is plain cross entropy; None leaves the model's own classification loss.
        box_bins: unit regions of GHM-R. 1 is plain ASL1; None leaves the model's own box loss.
        momentum: of the moving averages of both densities.
        mu: of ASL1, in units of the encoded box deltas.
        class_loss_weight, box_loss_weight: factors of the two losses.
        variant, backend: as for :func:`ghm_triton.ghmc_loss`.

    Raises:
        TypeError: `model` is no RetinaNet, or its head no RetinaNetHead.
        ValueError: an option is out of range.

    Example:
        >>> model = harmonize(torchvision.models.detection.retinanet_resnet50_fpn(num_classes=91))
        >>> losses = model(images, targets)  # "classification" and "bbox_regression", as before
    """
    if not isinstance(model, RetinaNet):
        raise TypeError(f"model: expected a torchvision RetinaNet, got {type(model).__name__}")
    if not isinstance(model.head, RetinaNetHead):
        raise TypeError(f"model.head: expected a torchvision RetinaNetHead, got {type(model.head).__name__}")
    common = {"momentum": momentum, "variant": variant, "backend": backend}
    model.head = HarmonizedHead(
        model.head.classification_head,
        model.head.regression_head,
        None if bins is None else GHMCLoss(bins=bins, loss_weight=class_loss_weight, **common),
        None if box_bins is None else GHMRLoss(mu=mu, bins=box_bins, loss_weight=box_loss_weight, **common),
    ).train(model.training)
    return model


class HarmonizedHead(RetinaNetHead):
    """A RetinaNetHead around existing heads whose losses take one density over the batch and all levels.

    Args:
        classification_head, regression_head: as torchvision's RetinaNetHead has them.
        classification_loss: takes logits [images, anchors, classes], labels and weights [images, anchors]; None for
            the loss of `classification_head`.
        regression_loss: takes deltas and their targets, [positive anchors, 4]; None for the loss of `regression_head`.
    """

    def __init__(
        self,
        classification_head: nn.Module,
        regression_head: nn.Module,
        classification_loss: nn.Module | None,
        regression_loss: nn.Module | None,
    ):
        nn.Module.__init__(self)  # RetinaNetHead's would build heads of its own
        self.classification_head = classification_head
        self.regression_head = regression_head
        self.classification_loss = classification_loss
        self.regression_loss = regression_loss

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
        labels = torch.cat([target["labels"] for target in targets])
        _check_labels(labels, logits.shape[-1])
        # One label more, for the anchors of images without objects to point at.
        labels = torch.cat([labels, labels.new_full((1,), _BACKGROUND)])[_object_index(targets, matches)]
        labels = torch.where(matches >= 0, labels, _BACKGROUND)
        return self.classification_loss(logits, labels, matches != Matcher.BETWEEN_THRESHOLDS)

    def _boxes(self, targets, deltas, anchors, matches):
        positive = matches >= 0
        boxes = torch.cat([target["boxes"] for target in targets])[_object_index(targets, matches)[positive]]
        wanted = self.regression_head.box_coder.encode_single(boxes, torch.stack(anchors)[positive])
        return self.regression_loss(deltas[positive], wanted)

    def _load_from_state_dict(self, state_dict, prefix, *args, **kwargs):
        """Let the losses keep the counts that they have where a checkpoint, of the plain model, holds none."""
        for name in ("classification_loss", "regression_loss"):
            loss = getattr(self, name)
            if loss is not None:
                for key, value in loss.state_dict(prefix=f"{prefix}{name}.").items():
                    state_dict.setdefault(key, value)
        super()._load_from_state_dict(state_dict, prefix, *args, **kwargs)


def _object_index(targets: list[dict[str, Tensor]], matches: Tensor) -> Tensor:
    """From each anchor to its object among those of all images, [images, anchors]; unmatched anchors to the first."""
    first, total = [], 0
    for target in targets:
        first.append(total)
        total += len(target["labels"])
    return matches.clamp(min=0) + torch.tensor(first, device=matches.device)[:, None]


def _check_labels(labels: Tensor, classes: int) -> None:
    """GHM-C would take other labels for background. This waits for the device, as torchvision's check of boxes does."""
    wrong = labels[(labels < 0) | (labels >= classes)]
    if wrong.numel():
        raise ValueError(f"targets: expected labels in 0..{classes - 1}, got {wrong[0].item()}")
