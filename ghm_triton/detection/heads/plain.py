"""Turn a harmonized detector back into torchvision's."""

from torchvision.models.detection import FCOS, RetinaNet
from torchvision.models.detection.fcos import FCOSHead
from torchvision.models.detection.retinanet import RetinaNetHead
from torchvision.models.detection.ssd import SSD

from .fcos import HarmonizedFCOSHead
from .retinanet import HarmonizedRetinaNetHead
from .ssd import HarmonizedSSD

_PLAIN = {HarmonizedRetinaNetHead: RetinaNetHead, HarmonizedFCOSHead: FCOSHead, HarmonizedSSD: SSD}


def unharmonize(model: RetinaNet | FCOS | SSD) -> RetinaNet | FCOS | SSD:
    """Undo :func:`harmonize`: the model has torchvision's classes and losses again, for example for deployment.

    The model is changed and returned. Its parameters stay. The losses are removed, and their running counts leave its
    `state_dict`. A model that is not harmonized is returned as it is.

    Args:
        model: A `RetinaNet`, `FCOS` or `SSD`.

    Raises:
        TypeError: `model` is not a torchvision RetinaNet, FCOS or SSD.

    Example:
        >>> model = harmonize(retinanet_resnet50_fpn_v2(num_classes=91))
        >>> model.load_state_dict(torch.load("checkpoint.pt"))  # with the running counts
        >>> torch.jit.script(unharmonize(model).eval()).save("detector.pt")  # without
    """
    if not isinstance(model, RetinaNet | FCOS | SSD):
        raise TypeError(f"model must be a torchvision RetinaNet, FCOS or SSD, got {type(model).__name__}")
    part = model if isinstance(model, SSD) else model.head  # an SSD computes its losses itself
    if type(part) in _PLAIN:
        part.__class__ = _PLAIN[type(part)]
        del part.classification_loss, part.regression_loss
    return model
