"""Tree crowns in two aerial photographs, cut into tiles in COCO's format.

The photographs and their boxes come from the wheel of deepforest 2.1.0 (MIT license), which
:mod:`ghm_triton.detection.trees` downloads.

Each photograph is split by place: the lowest rows are for validation, all rows above for training, so that no pixel is
in both splits. Training tiles overlap by half a tile in both directions, so that a tree at the border of one tile is
whole in another. Validation tiles do not overlap, so that each pixel counts once.
"""

import hashlib
import io
import json
import pathlib
import xml.etree.ElementTree
import zipfile
from typing import NamedTuple

import torch
from PIL import Image
from torch import Tensor
from torchvision.ops import box_area, box_convert, clip_boxes_to_image

REQUIREMENT = "deepforest==2.1.0"
DESCRIPTION = f"tree crowns of {REQUIREMENT} (MIT license)"
SHA256 = "8c2798d8e9be7f0004b194fe207b76c1d9fff6e711b3db67b9508dcd5d00ae54"
PHOTOGRAPHS = ("2019_YELL_2_528000_4978000_image_crop2", "2019_YELL_2_541000_4977000_image_crop")
TILE = 192  # side of a tile, pixels
STRIDES = {"train": TILE // 2, "val": TILE}  # from one tile to the next, pixels
SPLITS = tuple(STRIDES)
VAL_SHARE = 0.3  # of the rows of a photograph, rounded to whole tiles
MIN_VISIBLE = 0.5  # share of a box's area that a tile must show to count the box as an object


class Photograph(NamedTuple):
    """An aerial photograph with boxes around tree crowns.

    Attributes:
        name: The first part of the file names of its tiles.
        image: RGB.
        boxes: float32 [n, 4], xyxy, pixels.
    """

    name: str
    image: Image.Image
    boxes: Tensor


def read_wheel(path: str | pathlib.Path) -> list[Photograph]:
    """Return the two photographs in the wheel of deepforest 2.1.0.

    Raises:
        FileNotFoundError: The file does not exist.
        ValueError: The file has another SHA-256 hash.
    """
    path = pathlib.Path(path)
    if not path.is_file():
        raise FileNotFoundError(f"wheel must be an existing file, got {path}")
    content = path.read_bytes()
    digest = hashlib.sha256(content).hexdigest()
    if digest != SHA256:
        raise ValueError(f"wheel must be the one of {REQUIREMENT} with SHA-256 {SHA256}, got {path} with {digest}")
    photographs = []
    with zipfile.ZipFile(io.BytesIO(content)) as wheel:
        for name in PHOTOGRAPHS:
            image = Image.open(io.BytesIO(wheel.read(f"deepforest/data/{name}.png"))).convert("RGB")
            photographs.append(Photograph(name, image, read_voc_boxes(wheel.read(f"deepforest/data/{name}.xml"))))
    return photographs


def read_voc_boxes(content: bytes) -> Tensor:
    """Return the boxes of all objects of an annotation in Pascal VOC's XML, float32 [n, 4], xyxy, pixels."""
    corners = ("xmin", "ymin", "xmax", "ymax")
    boxes = [
        [float(box.findtext(corner)) for corner in corners]
        for box in xml.etree.ElementTree.fromstring(content).iter("bndbox")
    ]
    return torch.tensor(boxes, dtype=torch.float32).reshape(-1, 4)


def tile_corners(width: int, height: int, split: str) -> list[tuple[int, int]]:
    """Return (left, top) of each tile of `split` in a photograph of this size, row by row.

    Pixels at the right and lower borders of a split that do not fill a whole tile are unused.
    """
    first_val_row = height - round(VAL_SHARE * height / TILE) * TILE
    start, stop = (0, first_val_row) if split == "train" else (first_val_row, height)
    stride = STRIDES[split]
    return [(left, top) for top in range(start, stop - TILE + 1, stride) for left in range(0, width - TILE + 1, stride)]


def cut_boxes(boxes: Tensor, left: int, top: int) -> tuple[Tensor, Tensor]:
    """Return the boxes that overlap a tile, clipped to it.

    Args:
        boxes: Boxes, float32 [n, 4], xyxy, pixels of the photograph.
        left, top: Corner of the tile.

    Returns:
        The clipped boxes, float32 [m, 4], xyxy, pixels of the tile; and whether less than half of the area of each is
        in the tile, bool [m].
    """
    moved = boxes - torch.tensor([left, top, left, top])
    clipped = clip_boxes_to_image(moved, (TILE, TILE))
    shown = box_area(clipped) > 0
    return clipped[shown], (box_area(clipped) < MIN_VISIBLE * box_area(boxes))[shown]


def write_tiles(directory: str | pathlib.Path, photographs: list[Photograph], split: str) -> dict:
    """Write `directory`/SPLIT/*.png and `directory`/annotations/instances_SPLIT.json. Return the annotations.

    A box that is cut by the border of its tile is clipped to the tile. A box with less than half of its area in the
    tile is a crowd ("iscrowd": 1): the evaluation ignores detections there, and training treats it as background.

    Args:
        directory: The folder to write to.
        photographs: As :func:`read_wheel` returns them.
        split: "train" or "val".
    """
    pictures = pathlib.Path(directory, split)
    path = pathlib.Path(directory, "annotations", f"instances_{split}.json")
    for folder in (pictures, path.parent):
        folder.mkdir(parents=True, exist_ok=True)
    images, annotations = [], []
    for photograph in photographs:
        for left, top in tile_corners(*photograph.image.size, split):
            image_id, file_name = len(images), f"{photograph.name}_{top:04d}_{left:04d}.png"
            images.append({"id": image_id, "file_name": file_name, "width": TILE, "height": TILE})
            photograph.image.crop((left, top, left + TILE, top + TILE)).save(pictures / file_name)
            boxes, crowd = cut_boxes(photograph.boxes, left, top)
            for box, iscrowd in zip(box_convert(boxes, "xyxy", "xywh").tolist(), crowd.int().tolist()):
                annotations.append(
                    {
                        "id": len(annotations) + 1,
                        "image_id": image_id,
                        "category_id": 1,
                        "bbox": box,
                        "area": box[2] * box[3],
                        "iscrowd": iscrowd,
                    }
                )
    content = {
        "info": {"description": DESCRIPTION},
        "images": images,
        "annotations": annotations,
        "categories": [{"id": 1, "name": "tree"}],
    }
    path.write_text(json.dumps(content))
    return content
