"""Detectors by name, and from the checkpoints of `train`."""

from torch import nn
from torchvision import models
from torchvision.models.detection import FCOS, RetinaNet

from .losses import use_losses
from .small import small_retinanet

SIZES = {"small": (96, 96)}  # shorter and longest side of the images, pixels; COCO's customary ones for the others


def build_model(
    name: str,
    classes: int,
    *,
    min_size: int | None = None,
    max_size: int | None = None,
    backbone_weights: str | None = None,
) -> RetinaNet | FCOS:
    """A detector for labels 0..classes-1.

    Args:
        name: "small", or a RetinaNet or FCOS of `torchvision.models.detection`.
        classes: number of labels.
        min_size, max_size: images are scaled to this shorter, and at most this longer, side; None: 96 for "small", 800
            and 1333 for the others.
        backbone_weights: of torchvision, as "DEFAULT"; they are downloaded. None: none.

    Raises:
        ValueError: there is no such detector.
    """
    shorter, longest = SIZES.get(name, (800, 1333))
    shorter = min_size or shorter
    longest = max_size or max(longest, shorter)
    if name == "small":
        return small_retinanet(classes, size=shorter)
    detectors = models.list_models(models.detection)
    if name not in detectors or not name.startswith(("retinanet", "fcos")):
        known = ["small"] + [known for known in detectors if known.startswith(("retinanet", "fcos"))]
        raise ValueError(f"model: expected one of {known}, got {name!r}")
    options = {"weights": None, "weights_backbone": backbone_weights, "min_size": shorter, "max_size": longest}
    return models.get_model(name, num_classes=classes, **options)


def build_from(state: dict) -> tuple[nn.Module, list[dict]]:
    """(the model, its categories in COCO's format in the order of the labels) of a checkpoint of `train`, in eval mode.

    Raises:
        ValueError: it is a checkpoint of something else.
    """
    try:
        about, weights = state["about"], state["model"]
        categories = about["categories"]
        model = build_model(about["model"], len(categories), min_size=about["min_size"], max_size=about["max_size"])
        use_losses(model, about["loss"], about["box_loss"], **about["loss_options"])
    except (KeyError, TypeError) as error:
        raise ValueError(f"checkpoint: expected one of ghm_triton.detection.train, got one without {error}") from error
    try:
        model.load_state_dict(weights)
    except RuntimeError as error:
        raise ValueError(f"checkpoint: its weights are not those of {about['model']}: {error}") from error
    return model.eval(), categories


def check_same(about: dict, expected: dict) -> None:
    """Raises a ValueError that names what in the `about` of a checkpoint differs from what is asked for."""
    for name, value in expected.items():
        if about.get(name) != value:
            raise ValueError(f"resume: expected a checkpoint with {name} {value!r}, got {about.get(name)!r}")
