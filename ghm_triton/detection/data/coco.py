"""Images and boxes of a data set in COCO's format."""

import collections
import pathlib
import warnings

import numpy
import torch
from PIL import Image
from torch import Tensor
from torch.utils.data import Dataset
from torchvision.ops import box_convert, clip_boxes_to_image
from torchvision.transforms.functional import pil_to_tensor

from .annotations import is_finite, read_annotations


def read_image(path: str | pathlib.Path) -> Tensor:
    """Returns the picture, uint8 [3, height, width].

    Raises:
        OSError: It cannot be read.
    """
    try:
        with Image.open(path) as image:
            return pil_to_tensor(image.convert("RGB"))
    except (ValueError, SyntaxError, Image.DecompressionBombError) as error:  # Pillow raises them for broken files
        raise OSError(f"{path}: {error}") from error


class CocoBoxes(Dataset):
    """Images and boxes of a data set in COCO's format, in torchvision's detection format.

    Boxes are clipped to their image. Boxes without area or outside the image, and annotations of unknown images or
    categories, are left out, and a warning counts them. Crowds are left out. Images without boxes are background. An
    image that cannot be read is replaced by the next one, and listed under "unreadable".

    Args:
        annotations: File in COCO's format.
        images: Folder of the images.
        category_ids: The category of each label. None: those of the file, in ascending order.

    An item is (image, target): the image is float32 [3, height, width] in [0, 1]; the target is a dict of "boxes"
    (float32 [n, 4], xyxy, pixels), "labels" (int64 [n], 0..classes-1), "image_id" and "unreadable" (file names).

    Raises:
        FileNotFoundError: The annotations, the folder or images are missing.
        ValueError: The annotations are malformed, or have categories that are not among `category_ids`.
    """

    def __init__(
        self, annotations: str | pathlib.Path, images: str | pathlib.Path, *, category_ids: list[int] | None = None
    ):
        self.path, self.folder = pathlib.Path(annotations), pathlib.Path(images)
        self.content = read_annotations(self.path)
        self.category_names = {entry["id"]: entry["name"] for entry in self.content["categories"]}
        self.category_ids = sorted(self.category_names) if category_ids is None else list(category_ids)
        unknown = sorted(set(self.category_names) - set(self.category_ids))
        if unknown:
            raise ValueError(
                f"annotations {self.path} must have categories among {self.category_ids}, got also {unknown}"
            )
        self.images = sorted(self.content["images"], key=lambda entry: entry["id"])
        if not self.folder.is_dir():
            raise FileNotFoundError(f"images must be a folder, got {self.folder}, where there is none")
        missing = [entry["file_name"] for entry in self.images if not _is_file(self.folder / entry["file_name"])]
        if missing:
            raise FileNotFoundError(
                f"images must be in {self.folder}, got {len(missing)} of {len(self.images)} that are not: {missing[0]}"
            )
        self.dropped = collections.Counter()
        self.objects = self._collect()
        self.dropped["images without boxes, used as background"] = sum(not found for found in self.objects.values())
        counts = ", ".join(f"{count} {what}" for what, count in self.dropped.items() if count)
        if counts:
            warnings.warn(f"annotations {self.path}: {counts}", stacklevel=2)

    def _collect(self) -> dict[int, list[tuple[list[float], int]]]:
        """Returns the box (xyxy) and label of each object, by image."""
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
            # COCO's own boxes leave their images by a fraction of a pixel.
            self.dropped["boxes cut at the edge of their image"] += int((inside - box).abs().max() > 1)
            objects[entry["image_id"]].append((inside.tolist(), labels[entry["category_id"]]))
        return objects

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, index: int) -> tuple[Tensor, dict]:
        if not 0 <= index < len(self.images):
            raise IndexError(f"index must be in 0..{len(self.images) - 1}, got {index}")
        unreadable = []
        for other in range(len(self.images)):
            entry = self.images[(index + other) % len(self.images)]
            try:
                image = read_image(self.folder / entry["file_name"]).float() / 255
                break
            except OSError:
                unreadable.append(entry["file_name"])
        else:
            raise OSError(f"images in {self.folder} must be readable, got none of {len(self.images)} that is")
        found = self.objects[entry["id"]]
        boxes = torch.tensor([box for box, _ in found], dtype=torch.float32).reshape(-1, 4)
        labels = torch.tensor([label for _, label in found], dtype=torch.int64)
        return image, {"boxes": boxes, "labels": labels, "image_id": entry["id"], "unreadable": unreadable}

    def coco(self) -> dict:
        """Returns the annotations for the evaluation, with the fields that pycocotools needs."""
        annotations = []
        for position, entry in enumerate(self.content["annotations"]):
            if _xyxy(entry["bbox"]) is not None and entry["category_id"] in self.category_names:
                area = entry["bbox"][2] * entry["bbox"][3]
                annotations.append({"area": area, "iscrowd": 0} | entry | {"id": position + 1})
        return {"info": {}} | self.content | {"annotations": annotations}


def _is_file(path: pathlib.Path) -> bool:
    try:
        return path.is_file()
    except OSError:  # a name too long, a folder without permission
        return False


def _xyxy(bbox: list) -> Tensor | None:
    """Returns the corners of COCO's [left, top, width, height]; None unless these are four finite numbers."""
    if len(bbox) != 4 or not all(map(is_finite, bbox)):
        return None
    return box_convert(torch.tensor(bbox, dtype=torch.float32), "xywh", "xyxy")


class Flipped(Dataset):
    """`dataset` with each image mirrored with `probability`. The seed, the epoch and the index decide."""

    def __init__(self, dataset: Dataset, *, probability: float, seed: int, epoch: int):
        self.dataset, self.probability, self.seed, self.epoch = dataset, probability, seed, epoch

    def __len__(self) -> int:
        return len(self.dataset)

    def __getitem__(self, index: int) -> tuple[Tensor, dict]:
        image, target = self.dataset[index]
        if numpy.random.default_rng([self.seed, self.epoch, index]).random() < self.probability:
            boxes = target["boxes"].clone()
            boxes[:, [0, 2]] = image.shape[2] - boxes[:, [2, 0]]
            image, target = image.flip(2), target | {"boxes": boxes}
        return image, target
