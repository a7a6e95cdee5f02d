"""Scenes of handwritten digits as a detection data set that needs no download."""

import numpy
import torch
from torch.utils.data import Dataset

from .digit_drawing import EASY, SPLITS, SceneStyle, draw_scene

DESCRIPTION = "handwritten digits of scikit-learn over its photographs"


class DigitScenes(Dataset):
    """Scenes of digits in torchvision's detection format, drawn on access.

    Args:
        count: Number of scenes.
        split: "train" or "val".
        seed: A scene depends only on the split, the seed and its index.
        classes: 10 for the digits 0..9, or 1 for a single class of all digits.
        style: The appearance of the scenes.

    An item is (image, target): the image is float32 [3, size, size] in [0, 1]; the target is a dict of "boxes" (float32
    [n, 4], xyxy, pixels), "labels" (int64 [n], 0..classes-1) and "image_id" (the index).

    Raises:
        ValueError: `split` or `classes` has another value.

    Example:
        >>> image, target = DigitScenes(100, split="val")[3]
    """

    def __init__(self, count: int, *, split: str, seed: int = 0, classes: int = 10, style: SceneStyle = EASY):
        if split not in SPLITS:
            raise ValueError(f"split must be one of {SPLITS}, got {split!r}")
        if classes not in (1, 10):
            raise ValueError(f"classes must be 1 or 10, got {classes!r}")
        self.count = count
        self.split = split
        self.seed = seed
        self.classes = classes
        self.style = style

    def __len__(self) -> int:
        return self.count

    def scene(self, index: int) -> tuple[numpy.ndarray, numpy.ndarray, numpy.ndarray]:
        """Return the picture, the boxes and the labels 0..classes-1, as :func:`draw_scene`."""
        if not 0 <= index < self.count:
            raise IndexError(f"index must be in 0..{self.count - 1}, got {index}")
        random = numpy.random.default_rng([self.seed, SPLITS.index(self.split), index])
        picture, boxes, labels = draw_scene(random, self.split, self.style)
        return picture, boxes, labels if self.classes == 10 else numpy.zeros_like(labels)

    def __getitem__(self, index: int) -> tuple[torch.Tensor, dict]:
        picture, boxes, labels = self.scene(index)
        image = torch.from_numpy(picture).permute(2, 0, 1).float() / 255
        boxes = torch.from_numpy(boxes).float()
        return image, {"boxes": boxes, "labels": torch.from_numpy(labels), "image_id": index}

    @property
    def category_ids(self) -> list[int]:
        """The category of each label."""
        return list(range(1, self.classes + 1))

    def coco(self) -> dict:
        """Return the annotations in COCO's format. Category i + 1 is label i."""
        names = ["digit"] if self.classes == 1 else [str(digit) for digit in range(10)]
        size = self.style.size
        images, annotations = [], []
        for index in range(self.count):
            _, boxes, labels = self.scene(index)
            images.append({"id": index, "file_name": f"{index:06d}.png", "width": size, "height": size})
            for (left, top, right, bottom), label in zip(boxes.tolist(), labels.tolist()):
                annotations.append(
                    {
                        "id": len(annotations) + 1,
                        "image_id": index,
                        "category_id": self.category_ids[label],
                        "bbox": [left, top, right - left, bottom - top],
                        "area": (right - left) * (bottom - top),
                        "iscrowd": 0,
                    }
                )
        categories = [{"id": label + 1, "name": name} for label, name in enumerate(names)]
        info = {"description": DESCRIPTION}
        return {"info": info, "images": images, "annotations": annotations, "categories": categories}
