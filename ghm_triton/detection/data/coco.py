"""Images and boxes of a data set in COCO's format."""

import collections
import math
import pathlib
import warnings

import torch
from PIL import Image
from torch import Tensor
from torch.utils.data import Dataset
from torchvision.ops import box_convert, clip_boxes_to_image
from torchvision.transforms.functional import pil_to_tensor

from .annotations import read_annotations


def read_image(path: str | pathlib.Path) -> Tensor:
    """The picture, uint8 [3, height, width].

    Raises:
        OSError: it cannot be read.
    """
    try:
        with Image.open(path) as image:
            return pil_to_tensor(image.convert("RGB"))
    except (ValueError, SyntaxError, Image.DecompressionBombError) as error:  # Pillow's for some broken files
        raise OSError(f"{path}: {error}") from error


class CocoBoxes(Dataset):
    """Images and boxes in torchvision's detection format, of annotations in COCO's.

    Boxes are cut at the image's edge. Boxes without area or outside the image, and annotations of unknown images or
    categories, are left out, and a warning counts them; crowds are left out. Images without boxes are background. An
    image that cannot be read is replaced by the next that can, and listed under "unreadable".

    Args:
        annotations: file in COCO's format.
        images: folder of the images.
        category_ids: the category of each label; None: those of the file, in ascending order.

    An item is (image, target): the image float32 [3, height, width] in [0, 1]; the target a dict of "boxes" (float32
    [n, 4], xyxy, pixels), "labels" (int64 [n], 0..classes-1), "image_id" and "unreadable" (list of file names).

    Raises:
        FileNotFoundError: the annotations, the folder or images are missing.
        ValueError: the annotations are malformed, or have categories that are not among `category_ids`.
    """

    def __init__(
        self, annotations: str | pathlib.Path, images: str | pathlib.Path, *, category_ids: list[int] | None = None
    ):
        self.path, self.folder = pathlib.Path(annotations), pathlib.Path(images)
        self.content = read_annotations(self.path)
        self.category_names = {entry["id"]: str(entry["name"]) for entry in self.content["categories"]}
        self.category_ids = sorted(self.category_names) if category_ids is None else list(category_ids)
        unknown = sorted(set(self.category_names) - set(self.category_ids))
        if unknown:
            raise ValueError(
                f"annotations {self.path} must have categories among {self.category_ids}, got also {unknown}"
            )
        self.images = sorted(self.content["images"], key=lambda entry: entry["id"])
        if not self.folder.is_dir():
            raise FileNotFoundError(f"images must be a folder, got {self.folder}, where there is none")
        missing = [entry["file_name"] for entry in self.images if not (self.folder / entry["file_name"]).is_file()]
        if missing:
            raise FileNotFoundError(
                f"images: {len(missing)} of {len(self.images)} are not in {self.folder}: {missing[0]}"
            )
        self.dropped = collections.Counter()
        self.objects = self._collect()
        self.dropped["images without boxes, used as background"] = sum(not found for found in self.objects.values())
        counts = ", ".join(f"{count} {what}" for what, count in self.dropped.items() if count)
        if counts:
            warnings.warn(f"annotations {self.path}: {counts}", stacklevel=2)

    def _collect(self) -> dict[int, list[tuple[list[float], int]]]:
        """(xyxy, label) of each object of each image."""
        sizes = {entry["id"]: (entry["height"], entry["width"]) for entry in self.images}
        labels = {category: label for label, category in enumerate(self.category_ids)}
        objects = {image_id: [] for image_id in sizes}
        for entry in self.content["annotations"]:
            if entry.get("iscrowd"):
                continue
            if entry["image_id"] not in sizes or entry["category_id"] not in labels:
                self.dropped["annotations of unknown images or categories left out"] += 1
                continue
            box = _xyxy(entry["bbox"])
            if box is None:
                self.dropped["boxes that are not four finite numbers left out"] += 1
                continue
            inside = clip_boxes_to_image(box, sizes[entry["image_id"]])
            if (inside[2:] <= inside[:2]).any():
                self.dropped["boxes without area in their image left out"] += 1
                continue
            # COCO's own boxes leave their images by parts of a pixel.
            self.dropped["boxes cut at the edge of their image"] += int((inside - box).abs().max() > 1)
            objects[entry["image_id"]].append((inside.tolist(), labels[entry["category_id"]]))
        return objects

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, index: int) -> tuple[Tensor, dict]:
        unreadable = []
        for other in range(len(self.images)):
            entry = self.images[(index + other) % len(self.images)]
            try:
                image = read_image(self.folder / entry["file_name"]).float() / 255
                break
            except OSError:
                unreadable.append(entry["file_name"])
        else:
            raise OSError(f"images: none of {len(self.images)} in {self.folder} can be read")
        found = self.objects[entry["id"]]
        boxes = torch.tensor([box for box, _ in found], dtype=torch.float32).reshape(-1, 4)
        labels = torch.tensor([label for _, label in found], dtype=torch.int64)
        return image, {"boxes": boxes, "labels": labels, "image_id": entry["id"], "unreadable": unreadable}

    def coco(self) -> dict:
        """The annotations for the evaluation: those in COCO's file, with the fields that pycocotools needs."""
        annotations = []
        for position, entry in enumerate(self.content["annotations"]):
            if _xyxy(entry["bbox"]) is not None and entry["category_id"] in self.category_names:
                area = entry["bbox"][2] * entry["bbox"][3]
                annotations.append({"area": area, "iscrowd": 0} | entry | {"id": position + 1})
        return {"info": {}} | self.content | {"annotations": annotations}


def _xyxy(bbox: object) -> Tensor | None:
    """The corners of COCO's [left, top, width, height]; None where these are not four finite numbers."""
    if not isinstance(bbox, list) or len(bbox) != 4:
        return None
    if not all(isinstance(value, (int, float)) and math.isfinite(value) for value in bbox):
        return None
    return box_convert(torch.tensor(bbox, dtype=torch.float32), "xywh", "xyxy")


class Flipped(Dataset):
    """`dataset`, each image mirrored with `probability`, as seed, epoch and index decide."""

    def __init__(self, dataset: Dataset, *, probability: float, seed: int, epoch: int):
        self.dataset, self.probability, self.seed, self.epoch = dataset, probability, seed, epoch

    def __len__(self) -> int:
        return len(self.dataset)

    def __getitem__(self, index: int) -> tuple[Tensor, dict]:
        image, target = self.dataset[index]
        dice = torch.Generator().manual_seed((self.seed * 1_000_003 + self.epoch) * 1_000_003 + index)
        if torch.rand((), generator=dice) < self.probability:
            boxes = target["boxes"].clone()
            boxes[:, [0, 2]] = image.shape[2] - boxes[:, [2, 0]]
            image, target = image.flip(2), target | {"boxes": boxes}
        return image, target
