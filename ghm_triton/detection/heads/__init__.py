"""GHM-C and GHM-R in the heads of torchvision's detectors."""

from torch import nn
from torchvision.models.detection import FCOS, RetinaNet
from torchvision.models.detection.fcos import FCOSHead
from torchvision.models.detection.retinanet import RetinaNetHead

from ghm_triton import GHMCLoss, GHMRLoss

from .fcos import HarmonizedFCOSHead
from .retinanet import HarmonizedRetinaNetHead

__all__ = ["harmonize"]

_HEADS = (  # (detector, its head, the head that replaces it)
    (RetinaNet, RetinaNetHead, HarmonizedRetinaNetHead),
    (FCOS, FCOSHead, HarmonizedFCOSHead),
)


def harmonize(
    model: RetinaNet | FCOS,
    classification_loss: nn.Module | None = None,
    regression_loss: nn.Module | None = None,
) -> RetinaNet | FCOS:
    """Make `model` train with these losses, each of which takes one density over the batch and all levels.

    Without losses, both are the paper's: `GHMCLoss()` and `GHMRLoss()`. With one loss, the model keeps its own in place
    of the other. For anything but the paper's setting with large batches, `exponent=0.5` is recommended for both.

    The model is changed and returned. Its parameters keep their names, and a checkpoint of the plain model loads. Its
    `state_dict` gains the running counts of the losses under `head.classification_loss` and `head.regression_loss`. The
    losses move to the device of the model and take its mode. For several processes, call this before the model is
    wrapped in DistributedDataParallel.

    An FCOS regresses boxes by their generalized IoU, and a centerness by cross entropy. GHM-R is defined for
    differences of box deltas and applies to neither: `regression_loss` must be left out, and `harmonize(fcos)` sets
    GHM-C alone.

    Args:
        model: A `RetinaNet` or `FCOS` of torchvision with torchvision's head.
        classification_loss: A module that takes logits [images, anchors, classes] (floating point), labels
            [images, anchors] (int64; -1: background) and the anchors that count [images, anchors] (bool), and returns a
            scalar.
        regression_loss: A module that takes box deltas and their targets, both [positive anchors, 4], and returns a
            scalar.

    Raises:
        TypeError: `model` is not a RetinaNet or FCOS, its head is not torchvision's, or a loss is not a module.
        ValueError: `regression_loss` is given for an FCOS.

    Example:
        >>> model = harmonize(torchvision.models.detection.retinanet_resnet50_fpn(num_classes=91))
        >>> model = harmonize(model, GHMCLoss(exponent=0.5), GHMRLoss(exponent=0.5))
        >>> losses = model(images, targets)  # "classification" and "bbox_regression", as before
    """
    for name, loss in (("classification_loss", classification_loss), ("regression_loss", regression_loss)):
        if not isinstance(loss, nn.Module | None):
            raise TypeError(f"{name} must be a torch.nn.Module or None, got {type(loss).__name__}")
    kinds = [kinds for detector, *kinds in _HEADS if isinstance(model, detector)]
    if not kinds:
        raise TypeError(f"model must be a torchvision RetinaNet or FCOS, got {type(model).__name__}")
    plain, harmonized = kinds[0]
    if not isinstance(model.head, plain):
        raise TypeError(f"model.head must be a torchvision {plain.__name__}, got {type(model.head).__name__}")
    if classification_loss is None and regression_loss is None:
        classification_loss = GHMCLoss()
        regression_loss = None if isinstance(model, FCOS) else GHMRLoss()
    head = harmonized(model.head.classification_head, model.head.regression_head, classification_loss, regression_loss)
    device = next(model.parameters()).device
    for loss in (classification_loss, regression_loss):
        if loss is not None:
            loss.to(device).train(model.head.training)
    head.training = model.head.training
    model.head = head
    return model
