"""GHM-C in the criterion of a model of Ultralytics.

The criterion of a YOLO model computes the binary cross entropy of all class scores with its module `bce`, adds up the
values, and divides the sum by the sum of the target scores. :class:`ghm_triton.HarmonizedBCELoss` replaces this module.
The criterion of RT-DETR has two modules, `vfl` (varifocal loss) and `fl` (focal loss, for images without objects). They
return the total that the replacement keeps. Class weights, divisors, and gains stay.

A classifier and a model for semantic segmentation have a softmax over the classes. Their cross entropy is replaced by
:class:`ghm_triton.GHMCrossEntropyLoss`, scaled in the same way.
"""

import torch
from torch import Tensor, nn
from ultralytics.models.utils.loss import RTDETRDetectionLoss
from ultralytics.utils import LOGGER
from ultralytics.utils.loss import SemanticSegmentationLoss, v8ClassificationLoss, v8DetectionLoss

from ghm_triton import GHMCrossEntropyLoss, HarmonizedBCELoss
from ghm_triton.losses.base import HarmonizedLoss

BRANCHES = ("one2many", "one2one")  # of the criterion of an end-to-end model


class HarmonizedFocal(nn.Module):
    """A focal or varifocal loss of Ultralytics whose gradient is distributed as :class:`HarmonizedBCELoss` does it.

    Args:
        plain: The loss: (logits, target, ...) to a scalar, the total over a factor of its own.
        bce: The harmonized loss, which several modules may share.
    """

    def __init__(self, plain: nn.Module, bce: HarmonizedBCELoss):
        super().__init__()
        self.plain, self.bce = plain, bce

    def forward(self, logits: Tensor, target: Tensor, *more: Tensor) -> Tensor:
        """Compute the loss, a scalar. `target` has the shape of `logits` and values in [0, 1]."""
        value = self.plain(logits, target, *more)
        return self.bce(logits, target, value).sum() if torch.is_grad_enabled() else value


class HarmonizedSoftmax(nn.Module):
    """GHM cross entropy of class indices, scaled like :class:`HarmonizedBCELoss`. Without gradients, cross entropy.

    Args:
        plain: Cross entropy: (logits [N, C], class indices [N]) to a scalar.
        preserve: "value", or "gradient", the L1 norm of the gradient with respect to the logits.
        options: As for :class:`GHMCrossEntropyLoss`.
    """

    weight = None  # of the classes, which Ultralytics reads

    def __init__(self, plain: nn.CrossEntropyLoss, *, preserve: str = "value", **options):
        super().__init__()
        self.preserve, self.plain = preserve, plain
        self.loss = GHMCrossEntropyLoss(ignore_index=plain.ignore_index, **options)

    def forward(self, logits: Tensor, target: Tensor) -> Tensor:
        """Compute the loss, a scalar."""
        value = self.plain(logits, target)
        if not torch.is_grad_enabled():
            return value
        loss = self.loss(logits, target)
        wanted, given = value.detach(), loss.detach()
        if self.preserve == "gradient":
            slopes = (torch.autograd.grad(each, logits, retain_graph=True)[0] for each in (value, loss))
            wanted, given = (slope.float().abs().sum() for slope in slopes)
        return loss * (wanted / given.clamp(min=torch.finfo(given.dtype).tiny))


class HarmonizedClassificationLoss(v8ClassificationLoss):
    """The criterion of a classifier. Args: those of :class:`HarmonizedSoftmax`."""

    def __init__(self, **options):
        self.softmax = HarmonizedSoftmax(nn.CrossEntropyLoss(), **options)

    def __call__(self, preds, batch):
        """Compute the loss, and the dict that Ultralytics logs."""
        loss = self.softmax(preds[1] if isinstance(preds, (list, tuple)) else preds, batch["cls"])
        return loss, {"loss": loss.detach()}


def harmonize_criterion(criterion, **options):
    """Replace the classification loss by a harmonized one, with its own density for each branch.

    Args:
        criterion: The result of `init_criterion` of a model that detects, segments instances or pixels, finds oriented
            boxes, estimates poses, or classifies, or of RT-DETR. It is changed and returned; for a classifier, its
            replacement is.
        options: As for :class:`HarmonizedBCELoss`. RT-DETR has one density per process.

    Raises:
        TypeError: `criterion` is that of another model.
    """
    if isinstance(criterion, RTDETRDetectionLoss):
        # A process without objects has no denoising queries and calls less often: the others would wait for it.
        bce = HarmonizedBCELoss(**options | {"process_group": None})
        criterion.vfl, criterion.fl = HarmonizedFocal(criterion.vfl, bce), HarmonizedFocal(criterion.fl, bce)
        return criterion
    if isinstance(criterion, v8ClassificationLoss):
        return HarmonizedClassificationLoss(**options)
    if isinstance(criterion, SemanticSegmentationLoss) and criterion.nc == 1:
        criterion.ce = HarmonizedFocal(criterion.ce, HarmonizedBCELoss(**options))
        return criterion
    if isinstance(criterion, SemanticSegmentationLoss):
        if criterion.ce.weight is not None:
            LOGGER.warning("The class weights are not used: the density replaces them.")
        criterion.ce = HarmonizedSoftmax(nn.CrossEntropyLoss(ignore_index=255, reduction="sum"), **options)
        return criterion
    for branch in _branches(criterion).values():
        branch.bce = HarmonizedBCELoss(**options).to(branch.device)
    return criterion


def losses_of_branches(criterion) -> dict[str, HarmonizedLoss]:
    """Return the losses that hold the densities, by the branch: "one2many" and "one2one", or the task if there is one.

    For all tasks with boxes, this is "detect".
    """
    if isinstance(criterion, HarmonizedClassificationLoss):
        return {"classify": criterion.softmax.loss}
    if isinstance(criterion, SemanticSegmentationLoss):
        return {"semantic": criterion.ce.bce if criterion.nc == 1 else criterion.ce.loss}
    if isinstance(criterion, RTDETRDetectionLoss):
        return {"detect": criterion.fl.bce}
    return {name: branch.bce for name, branch in _branches(criterion).items()}


def _branches(criterion) -> dict[str, v8DetectionLoss]:
    branches = {name: getattr(criterion, name) for name in BRANCHES if hasattr(criterion, name)}
    branches = branches or {"detect": criterion}
    for branch in branches.values():
        if not isinstance(branch, v8DetectionLoss):
            raise TypeError(
                "criterion must be that of a model that detects, segments, finds oriented boxes, estimates poses, or "
                f"classifies, got {type(branch).__name__}"
            )
    return branches
