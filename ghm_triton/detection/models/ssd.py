"""torchvision's SSDs, which reserve label 0 for the background, with labels that start at 0."""

from torch import nn
from torchvision import models
from torchvision.models.detection.ssd import SSD


def build_ssd(name: str, classes: int, backbone_weights: str | None) -> SSD:
    """Build an SSD of torchvision for labels 0..classes-1, as the data sets have them."""
    model = models.get_model(name, num_classes=classes + 1, weights=None, weights_backbone=backbone_weights)
    model.register_forward_pre_hook(_count_from_1)
    model.register_forward_hook(_count_from_0)
    return model


def _count_from_1(model: nn.Module, arguments: tuple) -> tuple:
    images, *targets = arguments
    return images, *[target and [one | {"labels": one["labels"] + 1} for one in target] for target in targets]


def _count_from_0(model: nn.Module, arguments: tuple, output):
    if model.training:
        return output
    return [one | {"labels": one["labels"] - 1} for one in output]
