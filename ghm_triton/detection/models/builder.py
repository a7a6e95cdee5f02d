"""Detectors by name, and from the checkpoints of `train`."""

from torch import nn
from torchvision import models
from torchvision.models.detection import FCOS, RetinaNet
from torchvision.models.detection.ssd import SSD

from ..losses import stored_options, use_losses
from .lite0 import lite0_retinanet
from .small import small_retinanet
from .ssd import build_ssd

FAMILIES = ("retinanet", "fcos", "ssd")  # of torchvision
SIZES = {"small": (96, 96), "lite0": (192, 192)}  # shorter and longest side of the images, pixels


def build_model(
    name: str,
    classes: int,
    *,
    min_size: int | None = None,
    max_size: int | None = None,
    backbone_weights: str | None = None,
) -> RetinaNet | FCOS | SSD:
    """Build a detector for labels 0..classes-1.

    Args:
        name: "small", "lite0", or the name of a RetinaNet, FCOS or SSD in `torchvision.models.detection`.
        classes: Number of labels.
        min_size, max_size: Images are resized so that the shorter side has `min_size` pixels and the longer side at
            most `max_size`. None: 96 for "small", 192 for "lite0", 800 and 1333 for others. An SSD has a fixed size.
        backbone_weights: "DEFAULT" for ImageNet weights: those in the extra "lite0" for "lite0", torchvision's for the
            others, which also take the names of other weights. torchvision downloads its weights. None: random weights.

    Raises:
        ValueError: `name` or `backbone_weights` is unknown, or a size is given for an SSD.
        ImportError: "lite0" needs a package that is not installed.
    """
    shorter, longest = SIZES.get(name, (800, 1333))  # as is usual on COCO
    shorter = min_size or shorter
    longest = max_size or max(longest, shorter)
    if name == "small":
        return small_retinanet(classes, size=shorter)
    if name == "lite0":
        if backbone_weights not in (None, "DEFAULT"):
            raise ValueError(f"backbone_weights must be 'DEFAULT' or None for 'lite0', got {backbone_weights!r}")
        return lite0_retinanet(classes, min_size=shorter, max_size=longest, pretrained=backbone_weights is not None)
    detectors = models.list_models(models.detection)
    if name not in detectors or not name.startswith(FAMILIES):
        known = ["small", "lite0"] + [known for known in detectors if known.startswith(FAMILIES)]
        raise ValueError(f"model must be one of {known}, got {name!r}")
    if name.startswith("ssd"):
        for size_name, size in (("min_size", min_size), ("max_size", max_size)):
            if size is not None:
                raise ValueError(f"{size_name} must be left out for an SSD, whose size is fixed, got {size}")
        return build_ssd(name, classes, backbone_weights)
    options = {"weights": None, "weights_backbone": backbone_weights, "min_size": shorter, "max_size": longest}
    return models.get_model(name, num_classes=classes, **options)


def build_from(state: dict) -> tuple[nn.Module, list[dict]]:
    """Build the model from a checkpoint of `train`, in eval mode.

    Returns:
        The model, and its categories in COCO's format in the order of the labels.

    Raises:
        ValueError: The checkpoint was not written by `train`.
    """
    try:
        about, weights = state["about"], state["model"]
        categories = about["categories"]
        model = build_model(about["model"], len(categories), min_size=about["min_size"], max_size=about["max_size"])
        use_losses(model, stored_options(about["losses"]))
    except (KeyError, TypeError) as error:
        raise ValueError(f"checkpoint must be one of ghm_triton.detection.train, got one without {error}") from error
    try:
        model.load_state_dict(weights)
    except RuntimeError as error:
        raise ValueError(f"checkpoint must have the weights of {about['model']}, got others: {error}") from error
    return model.eval(), categories
