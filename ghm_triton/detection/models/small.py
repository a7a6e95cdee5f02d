"""A small RetinaNet of torchvision's parts, which trains on a CPU in minutes."""

from collections import OrderedDict

from torch import Tensor, nn
from torchvision.models.detection import RetinaNet
from torchvision.models.detection.anchor_utils import AnchorGenerator
from torchvision.models.detection.retinanet import RetinaNetHead
from torchvision.ops import Conv2dNormActivation, FeaturePyramidNetwork

_WIDTH = 64
_ANCHOR_SIZES = ((12, 17), (24, 34), (48, 68))  # of the levels with strides 4, 8 and 16, pixels
_ASPECT_RATIOS = ((1.0, 1.6),) * len(_ANCHOR_SIZES)  # height by width: digits are upright


class SmallBackbone(nn.Module):
    """Six convolutions and a feature pyramid.

    Takes pictures [n, 3, h, w] and returns three levels [n, 64, h / stride, w / stride] of strides 4, 8 and 16.
    """

    out_channels = _WIDTH

    def __init__(self):
        super().__init__()
        self.stem = nn.Sequential(Conv2dNormActivation(3, 24, stride=2), Conv2dNormActivation(24, 32, stride=2))
        self.middle = nn.Sequential(Conv2dNormActivation(32, 64, stride=2), Conv2dNormActivation(64, 64))
        self.top = nn.Sequential(Conv2dNormActivation(64, 96, stride=2), Conv2dNormActivation(96, 96))
        self.pyramid = FeaturePyramidNetwork([32, 64, 96], _WIDTH)

    def forward(self, images: Tensor) -> OrderedDict[str, Tensor]:
        """Return the three levels by name, finest first."""
        fine = self.stem(images)
        middle = self.middle(fine)
        return self.pyramid(OrderedDict(fine=fine, middle=middle, coarse=self.top(middle)))


def small_retinanet(num_classes: int, *, size: int = 96) -> RetinaNet:
    """Return a RetinaNet with 0.6 million parameters for square pictures of `size` pixels and labels from 0."""
    anchors = AnchorGenerator(_ANCHOR_SIZES, _ASPECT_RATIOS)
    backbone = SmallBackbone()
    return RetinaNet(
        backbone,
        num_classes,
        min_size=size,
        max_size=size,
        anchor_generator=anchors,
        head=RetinaNetHead(_WIDTH, anchors.num_anchors_per_location()[0], num_classes, norm_layer=group_norm),
        detections_per_img=50,
    )


def group_norm(channels: int) -> nn.GroupNorm:
    """Return a norm without batch statistics: the head sees one level at a time, and these would differ."""
    return nn.GroupNorm(16, channels)
