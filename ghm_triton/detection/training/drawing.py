"""Pictures with objects drawn on them."""

import inspect
import math
from collections.abc import Sequence

import matplotlib
from matplotlib.colors import to_hex
from matplotlib.font_manager import findfont
from torch import Tensor
from torchvision.transforms.functional import InterpolationMode, resize
from torchvision.utils import draw_bounding_boxes

_LONGEST = 640  # pixels, to which smaller pictures are enlarged
_FONT_SIZE = 16
_FILLS_LABELS = "fill_labels" in inspect.signature(draw_bounding_boxes).parameters  # torchvision 0.22


def draw_objects(image: Tensor, boxes: Tensor, labels: Tensor, captions: Sequence[str], classes: int) -> Tensor:
    """Draw boxes with captions, in a color per class.

    Args:
        image: uint8 [3, height, width].
        boxes: xyxy in pixels of `image`, [n, 4].
        labels: 0..classes-1, [n].
        captions: A text per box.
        classes: Number of colors.

    Returns:
        The picture, uint8 [3, h, w]. A small image is enlarged by a whole factor so that captions fit.
    """
    height, width = image.shape[1:]
    factor = max(1, math.ceil(_LONGEST / max(height, width)))
    if factor > 1:
        image = resize(image, [height * factor, width * factor], InterpolationMode.BILINEAR)
    if not len(boxes):
        return image
    palette = matplotlib.colormaps["tab10" if classes <= 10 else "hsv"]
    colors = [to_hex(palette(label if classes <= 10 else label / classes)) for label in labels.tolist()]
    return draw_bounding_boxes(
        image,
        boxes * factor,
        list(captions),
        colors,
        width=2,
        font=findfont("DejaVu Sans"),  # comes with matplotlib
        font_size=_FONT_SIZE,
        **{"label_colors": "white", "label_background_colors": colors, "fill_labels": True} if _FILLS_LABELS else {},
    )
