"""GHM-C and GHM-R in the heads of torchvision's detectors."""

from torch import nn
from torchvision.models.detection import FCOS, RetinaNet
from torchvision.models.detection.fcos import FCOSHead
from torchvision.models.detection.retinanet import RetinaNetHead
from torchvision.models.detection.ssd import SSD

from ghm_triton import GHMCLoss, GHMCrossEntropyLoss, GHMRLoss

from .fcos import HarmonizedFCOSHead
from .retinanet import HarmonizedRetinaNetHead
from .ssd import harmonize_ssd

__all__ = ["default_losses", "harmonize"]

_HEADS = (  # (detector, its head, the head that replaces it)
    (RetinaNet, RetinaNetHead, HarmonizedRetinaNetHead),
    (FCOS, FCOSHead, HarmonizedFCOSHead),
)


def harmonize(
    model: RetinaNet | FCOS | SSD,
    classification_loss: nn.Module | None = None,
    regression_loss: nn.Module | None = None,
) -> RetinaNet | FCOS | SSD:
    """Make `model` train with these losses. Each takes one density over the batch and all levels.

    If no loss is given, `GHMCLoss()` and `GHMRLoss()` are used. If only one is given, the other part keeps the loss of
    torchvision. ``exponent=1`` for both is the paper.

    The model is changed and returned. Its parameters keep their names, and a checkpoint of the plain model loads. Its
    `state_dict` gains the running counts of the losses under `head.classification_loss` and `head.regression_loss` (for
    an SSD, without `head.`). The losses move to the device of the model and take its mode. For several processes, call
    this before the model is wrapped in DistributedDataParallel.

    FCOS regresses boxes with the generalized IoU and centerness with cross entropy. GHM-R is defined for differences of
    box deltas and applies to neither: `regression_loss` must be left out, and `harmonize(fcos)` sets only GHM-C.

    SSD classifies with a softmax over the background (label 0) and the classes, and mines hard negatives. Here it gets
    `GHMCrossEntropyLoss` over all anchors, without mining. Its encoded box deltas are 5 to 10 times those of a
    RetinaNet: the paper's mu corresponds to ``GHMRLoss(mu=0.2)``, which is what `harmonize(ssd)` sets.

    Args:
        model: A `RetinaNet` or `FCOS` of torchvision with torchvision's head, or an `SSD`.
        classification_loss: A module that takes logits [images, anchors, classes] (floating point), labels
            [images, anchors] (int64; -1: background) and the anchors that count [images, anchors] (bool), and returns a
            scalar. For an SSD, a module that takes logits [N, classes] and labels [N], like `nn.CrossEntropyLoss`.
        regression_loss: A module that takes box deltas and their targets, both [positive anchors, 4], and returns a
            scalar.

    Raises:
        TypeError: `model` is not a RetinaNet, FCOS or SSD, its head is not torchvision's, a loss is not a module, or it
            is a GHM loss of another kind: GHM-C for boxes or for the softmax of an SSD, for example.
        ValueError: `regression_loss` is given for an FCOS.

    Example:
        >>> model = harmonize(torchvision.models.detection.retinanet_resnet50_fpn(num_classes=91))
        >>> model = harmonize(model, GHMCLoss(exponent=1), GHMRLoss(exponent=1))  # as in the paper
        >>> losses = model(images, targets)  # "classification" and "bbox_regression", as before
    """
    losses = classification_loss, regression_loss
    _check_losses(model, *losses)
    if losses == (None, None):
        losses = default_losses(model)
    if isinstance(model, SSD):
        harmonize_ssd(model, *losses)
    else:
        model.head = _harmonized_head(model, *losses)
    device = next(model.parameters()).device
    for loss in losses:
        if isinstance(loss, GHMCLoss) and loss.class_dim is None:
            loss.class_dim = -1  # the labels of the heads are class indices, also of a single class
        if loss is not None:
            loss.to(device).train(model.training)
    return model


def _check_losses(model, classification_loss: nn.Module | None, regression_loss: nn.Module | None) -> None:
    softmax = isinstance(model, SSD)
    classifier = "a softmax, such as GHMCrossEntropyLoss" if softmax else "a sigmoid, such as GHMCLoss"
    others = (GHMRLoss, GHMCLoss if softmax else GHMCrossEntropyLoss)
    _check_loss("classification_loss", classification_loss, classifier, others)
    _check_loss("regression_loss", regression_loss, "box deltas, such as GHMRLoss", (GHMCLoss, GHMCrossEntropyLoss))


def _check_loss(name: str, loss: nn.Module | None, purpose: str, others: tuple[type[nn.Module], ...]) -> None:
    """Check one loss. others: GHM losses for another purpose."""
    if not isinstance(loss, nn.Module | None):
        raise TypeError(f"{name} must be a torch.nn.Module or None, got {type(loss).__name__}")
    if isinstance(loss, others):
        raise TypeError(f"{name} must be a loss for {purpose}, got {type(loss).__name__}")


def default_losses(model: RetinaNet | FCOS | SSD) -> tuple[nn.Module, nn.Module | None]:
    """Return the classification and regression losses that :func:`harmonize` uses by default."""
    if isinstance(model, SSD):
        return GHMCrossEntropyLoss(), GHMRLoss(mu=0.2)
    return GHMCLoss(), None if isinstance(model, FCOS) else GHMRLoss()


def _harmonized_head(model: RetinaNet | FCOS, *losses: nn.Module | None) -> nn.Module:
    kinds = [kinds for detector, *kinds in _HEADS if isinstance(model, detector)]
    if not kinds:
        raise TypeError(f"model must be a torchvision RetinaNet, FCOS or SSD, got {type(model).__name__}")
    plain, harmonized = kinds[0]
    if not isinstance(model.head, plain):
        raise TypeError(f"model.head must be a torchvision {plain.__name__}, got {type(model.head).__name__}")
    head = harmonized(model.head.classification_head, model.head.regression_head, *losses)
    head.training = model.head.training
    return head
