"""Images and boxes of a data set in COCO's format."""

import collections
import pathlib
import warnings

import torch
from torch import Tensor
from torch.utils.data import Dataset
from torchvision.ops import box_convert, clip_boxes_to_image

from ..text import counted, listed
from .annotations import check_categories, check_units, is_finite, read_annotations
from .images import image_size, read_image


class CocoBoxes(Dataset):
    """Images and boxes of a data set in COCO's format, in torchvision's detection format.

    Images are turned upright. Boxes are clipped to their image. Boxes without area or outside the image, and
    annotations of unknown images or categories, are dropped, and a warning counts them. Crowds are dropped. Images
    without boxes are background. An image that cannot be read is replaced by the next one and listed under
    "unreadable".

    Args:
        annotations: File in COCO's format.
        images: Folder of the images.
        category_ids: The category of each label. None: those of the file, in ascending order.

    An item is (image, target): the image is float32 [3, height, width] in [0, 1]; the target is a dict of "boxes"
    (float32 [n, 4], xyxy, pixels), "labels" (int64 [n], 0..classes-1), "image_id" and "unreadable" (file names).

    Raises:
        FileNotFoundError: The annotations, the folder or images are missing.
        ValueError: The annotations are malformed, have no boxes, boxes in other units or in another order, other sizes
            than the images, category ids that are off by one, or categories that are not among `category_ids`.
        OSError: An image has floating point or 32-bit values.
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
            raise FileNotFoundError(f"images must be an existing folder, got {self.folder}")
        missing = [entry["file_name"] for entry in self.images if not _is_file(self.folder / entry["file_name"])]
        if missing:
            raise FileNotFoundError(
                f"images must be in {self.folder}, got {len(missing)} of {len(self.images)} that are not: {missing[0]}"
            )
        check_categories(self.content, self.path)
        check_units(self.content, self.path)
        self._check_sizes()
        self.dropped = collections.Counter()
        self.objects = self._collect()
        self._warn(all_categories=category_ids is None)

    def _check_sizes(self) -> None:
        """Raise a ValueError if the annotations give an image a wrong size. Broken files are skipped."""
        for entry in self.images:
            size, expected = image_size(self.folder / entry["file_name"]), (entry["width"], entry["height"])
            if size not in (None, expected):
                turned = "; the file is turned by its EXIF orientation" if size == expected[::-1] else ""
                raise ValueError(
                    f"images must have the sizes in {self.path}, got {self.folder / entry['file_name']} with "
                    f"{size[0]} x {size[1]} pixels instead of {expected[0]} x {expected[1]}{turned}"
                )

    def _collect(self) -> dict[int, list[tuple[list[float], int]]]:
        """Return the box (xyxy) and label of each object, by image."""
        sizes = {entry["id"]: (entry["height"], entry["width"]) for entry in self.images}
        labels = {category: label for label, category in enumerate(self.category_ids)}
        objects = {image_id: [] for image_id in sizes}
        for entry in self.content["annotations"]:
            if entry.get("iscrowd"):
                continue
            unknown = [
                f"unknown {name} {entry[name]}"
                for name, known in (("image_id", sizes), ("category_id", labels))
                if entry[name] not in known
            ]
            if unknown:
                self.dropped["annotation", f"of {unknown[0]} left out"] += 1
                continue
            box = _xyxy(entry["bbox"])
            if box is None:
                self.dropped["box", "not of four finite numbers left out"] += 1
                continue
            inside = clip_boxes_to_image(box, sizes[entry["image_id"]])
            if (inside[2:] <= inside[:2]).any():
                self.dropped["box", "without area in the image left out"] += 1
                continue
            # COCO's own boxes extend beyond their images by a fraction of a pixel.
            self.dropped["box", "cut at the edge of the image"] += int((inside - box).abs().max() > 1)
            objects[entry["image_id"]].append((inside.tolist(), labels[entry["category_id"]]))
        return objects

    def _warn(self, *, all_categories: bool) -> None:
        """Warn about dropped entries, images without boxes, and, if `all_categories`, categories without boxes."""
        found = {label for objects in self.objects.values() for _, label in objects}
        if not found:
            number = len(self.content["annotations"])
            raise ValueError(
                f"annotations {self.path} must have boxes, got {counted(number, 'annotation')} without any"
            )
        empty = sum(not objects for objects in self.objects.values())
        self.dropped["image", "without boxes, used as background"] = empty
        texts = [f"{counted(count, noun)} {what}" for (noun, what), count in self.dropped.items() if count]
        lacking = [repr(self.category_names[one]) for label, one in enumerate(self.category_ids) if label not in found]
        if all_categories and lacking:
            texts.append(f"categories without boxes: {listed(lacking)}")
        if texts:
            warnings.warn(f"annotations {self.path}: {', '.join(texts)}", stacklevel=3)

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
        """Return the annotations with the fields that pycocotools needs for the evaluation."""
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
    """Return the corners of COCO's [left, top, width, height]; None if they are not four finite numbers."""
    if len(bbox) != 4 or not all(map(is_finite, bbox)):
        return None
    return box_convert(torch.tensor(bbox, dtype=torch.float32), "xywh", "xyxy")
