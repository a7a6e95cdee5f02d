"""Scenes of scikit-learn's handwritten digits over its photographs: detection data that needs no download.

Training and validation scenes use different digits and different parts of the photographs, so that nothing that is
evaluated was seen in training. Scene `index` of a split depends on the seed and the index alone.

    python -m ghm_triton.detection.digits DIR --train 2000 --val 500 --seed 0 --style hard

writes them as PNG pictures and annotations in COCO's format.
"""

import argparse
import dataclasses
import functools
import json
import pathlib

import numpy
import torch
from sklearn.datasets import load_digits, load_sample_images
from torch.utils.data import Dataset

from .options import real, whole

SPLITS = ("train", "val")
_TRAIN_DIGITS = 1200  # of 1,797
_TRAIN_COLUMNS = 420  # of the 640 columns of a photograph
_INK = 0.25  # opacity from which a pixel belongs to its digit's box
_ATTEMPTS = 20  # to find a digit a place where it covers no other


@dataclasses.dataclass(frozen=True)
class SceneStyle:
    """What a scene looks like.

    Attributes:
        size: side of the square picture, pixels.
        digits: fewest and most digits; fewer are drawn where they would cover one another.
        height: smallest and largest digit, pixels, drawn uniformly in the logarithm.
        contrast: least and greatest difference between a digit and what is behind it, as a part of half the grey scale.
        window: smallest and largest side of the piece of photograph that is stretched over the picture, pixels.
        clutter: fewest and most things that are no digits: digits with their 8 x 8 pixels in another order.
    """

    size: int = 96
    digits: tuple[int, int] = (1, 5)
    height: tuple[int, int] = (12, 48)
    contrast: tuple[float, float] = (0.6, 1.0)
    window: tuple[int, int] = (64, 200)
    clutter: tuple[int, int] = (0, 0)


STYLES = {
    "easy": SceneStyle(),
    "hard": SceneStyle(digits=(2, 8), height=(14, 40), contrast=(0.45, 1.0), window=(96, 220), clutter=(0, 3)),
}


@functools.cache
def split_digits(split: str) -> tuple[numpy.ndarray, numpy.ndarray]:
    """(opacities in [0, 1], [n, 8, 8]; digits 0..9, [n]) of a split."""
    images, labels = load_digits(return_X_y=True)
    part = slice(None, _TRAIN_DIGITS) if split == "train" else slice(_TRAIN_DIGITS, None)
    return images[part].reshape(-1, 8, 8) / 16, labels[part]


@functools.cache
def split_photographs(split: str) -> tuple[numpy.ndarray, ...]:
    """The split's part of each photograph, uint8 [427, columns, 3]."""
    part = slice(None, _TRAIN_COLUMNS) if split == "train" else slice(_TRAIN_COLUMNS, None)
    return tuple(photograph[:, part] for photograph in load_sample_images().images)


def _resize(image: numpy.ndarray, size: int) -> numpy.ndarray:
    """A square picture [n, n, ...] at size x size, bilinear; float64."""
    position = ((numpy.arange(size) + 0.5) * len(image) / size - 0.5).clip(0, len(image) - 1)
    low = numpy.minimum(position.astype(int), len(image) - 2)
    part = position - low
    for axis in (0, 1):
        shape = [1] * image.ndim
        shape[axis] = size
        weight = part.reshape(shape)
        image = image.take(low, axis) * (1 - weight) + image.take(low + 1, axis) * weight
    return image


def _background(random: numpy.random.Generator, split: str, style: SceneStyle) -> numpy.ndarray:
    photographs = split_photographs(split)
    photograph = photographs[random.integers(len(photographs))]
    height, width = photograph.shape[:2]
    side = random.integers(style.window[0], min(style.window[1], height, width), endpoint=True)
    top, left = random.integers(height - side, endpoint=True), random.integers(width - side, endpoint=True)
    piece = photograph[top : top + side, left : left + side]
    return _resize(piece[:, ::-1] if random.random() < 0.5 else piece, style.size)


def _colour(random: numpy.random.Generator, behind: float, style: SceneStyle) -> numpy.ndarray:
    """RGB of a digit that stands out from the mean grey value behind it."""
    difference = 127 * random.uniform(*style.contrast)
    brighter = behind < 128 if abs(behind - 128) > 128 - difference else random.random() < 0.5
    return (behind + (difference if brighter else -difference) + random.uniform(-25, 25, 3)).clip(0, 255)


def _side(random: numpy.random.Generator, style: SceneStyle) -> int:
    return min(round(numpy.exp(random.uniform(*numpy.log(style.height)))), style.size)


def _blend(random: numpy.random.Generator, place: numpy.ndarray, opacity: numpy.ndarray, style: SceneStyle) -> None:
    """Draw over `place`, a part of the picture."""
    colour = _colour(random, place.mean(), style)
    place += opacity[..., None] * (colour - place)


def _draw_clutter(
    random: numpy.random.Generator, picture: numpy.ndarray, opacities: numpy.ndarray, style: SceneStyle
) -> None:
    for _ in range(random.integers(*style.clutter, endpoint=True)):
        mixed = random.permutation(opacities[random.integers(len(opacities))].ravel()).reshape(8, 8)
        side = _side(random, style)
        left, top = random.integers(style.size - side, size=2, endpoint=True)
        _blend(random, picture[top : top + side, left : left + side], _resize(mixed, side), style)


def draw_crop(random: numpy.random.Generator, split: str, style: SceneStyle) -> tuple[numpy.ndarray, int]:
    """(picture of the style's size of one digit, or clutter, or nothing; its label, 10 where there is no digit)."""
    opacities, labels = split_digits(split)
    picture = _background(random, split, style)
    if style.clutter[1]:
        _draw_clutter(random, picture, opacities, style)
    which = random.integers(len(labels) * 11 // 10)
    if which >= len(labels):
        return picture.round().astype(numpy.uint8), 10
    side = _side(random, style)
    left, top = random.integers(style.size - side, size=2, endpoint=True)
    _blend(random, picture[top : top + side, left : left + side], _resize(opacities[which], side), style)
    return picture.round().astype(numpy.uint8), int(labels[which])


def draw_scene(
    random: numpy.random.Generator, split: str, style: SceneStyle
) -> tuple[numpy.ndarray, numpy.ndarray, numpy.ndarray]:
    """(picture, uint8 [size, size, 3]; boxes, xyxy in pixels, int64 [n, 4]; digits 0..9, int64 [n]), n at least 1."""
    opacities, labels = split_digits(split)
    picture = _background(random, split, style)
    if style.clutter[1]:
        _draw_clutter(random, picture, opacities, style)
    boxes, digits = numpy.zeros((0, 4), dtype=numpy.int64), []
    for _ in range(random.integers(*style.digits, endpoint=True)):
        which = random.integers(len(labels))
        side = _side(random, style)
        opacity = _resize(opacities[which], side)
        rows, columns = ((opacity > _INK).any(axis).nonzero()[0] for axis in (1, 0))
        extent = numpy.array([columns[0], rows[0], columns[-1] + 1, rows[-1] + 1])
        for _ in range(_ATTEMPTS):
            left, top = random.integers(style.size - side, size=2, endpoint=True)
            box = extent + [left, top, left, top]
            apart = (boxes[:, :2] >= box[2:]) | (boxes[:, 2:] <= box[:2])
            if apart.any(axis=1).all():
                _blend(random, picture[top : top + side, left : left + side], opacity, style)
                boxes = numpy.concatenate([boxes, box[None]])
                digits.append(labels[which])
                break
    return picture.round().astype(numpy.uint8), boxes, numpy.array(digits, dtype=numpy.int64)


class DigitScenes(Dataset):
    """Scenes in torchvision's detection format, drawn when asked for.

    Args:
        count: number of scenes.
        split: "train" or "val".
        seed: the same seed gives the same scenes, whatever the count.
        classes: 10 for the digits 0..9, or 1: every digit is of class 0.
        style: what a scene looks like.

    An item is (image, target): the image float32 [3, size, size] in [0, 1]; the target a dict of "boxes" (float32
    [n, 4], xyxy, pixels), "labels" (int64 [n], 0..classes-1) and "image_id" (the index).

    Raises:
        ValueError: of another split, or number of classes.

    Example:
        >>> image, target = DigitScenes(100, split="val")[3]
    """

    def __init__(self, count: int, *, split: str, seed: int = 0, classes: int = 10, style: SceneStyle = SceneStyle()):
        if split not in SPLITS:
            raise ValueError(f"split: expected one of {SPLITS}, got {split!r}")
        if classes not in (1, 10):
            raise ValueError(f"classes: expected 1 or 10, got {classes!r}")
        self.count = count
        self.split = split
        self.seed = seed
        self.classes = classes
        self.style = style

    def __len__(self) -> int:
        return self.count

    def scene(self, index: int) -> tuple[numpy.ndarray, numpy.ndarray, numpy.ndarray]:
        """(picture, boxes, labels) as draw_scene returns them, the labels of `classes` classes."""
        if not 0 <= index < self.count:
            raise IndexError(f"index: expected 0..{self.count - 1}, got {index}")
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
        """The annotations in COCO's format. Category i + 1 is label i; file names are those of `write_coco`."""
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
        info = {"description": "handwritten digits of scikit-learn over its photographs"}
        return {"info": info, "images": images, "annotations": annotations, "categories": categories}


def write_coco(directory: str | pathlib.Path, scenes: DigitScenes) -> None:
    """Write `directory`/SPLIT/*.png and `directory`/annotations/instances_SPLIT.json; the same bytes each time."""
    from PIL import Image

    pictures = pathlib.Path(directory, scenes.split)
    annotations = pathlib.Path(directory, "annotations", f"instances_{scenes.split}.json")
    for folder in (pictures, annotations.parent):
        folder.mkdir(parents=True, exist_ok=True)
    content = scenes.coco()
    for index, image in enumerate(content["images"]):
        Image.fromarray(scenes.scene(index)[0]).save(pictures / image["file_name"])
    annotations.write_text(json.dumps(content))


def write_yolo(directory: str | pathlib.Path, scenes: DigitScenes) -> None:
    """Write `directory`/images/SPLIT/*.png, labels/SPLIT/*.txt, and data.yaml, the format of Ultralytics' YOLO.

    A line of a label file is "label x y width height": center and size of a box, as parts of the picture's side.
    """
    from PIL import Image

    root, size = pathlib.Path(directory), scenes.style.size
    images, labels = (root / kind / scenes.split for kind in ("images", "labels"))
    for folder in (images, labels):
        folder.mkdir(parents=True, exist_ok=True)
    for index in range(len(scenes)):
        picture, boxes, classes = scenes.scene(index)
        Image.fromarray(picture).save(images / f"{index:06d}.png")
        corners = boxes / size
        geometry = numpy.hstack([(corners[:, :2] + corners[:, 2:]) / 2, corners[:, 2:] - corners[:, :2]])
        lines = [" ".join(map(str, [label, *box])) + "\n" for label, box in zip(classes.tolist(), geometry.tolist())]
        (labels / f"{index:06d}.txt").write_text("".join(lines))
    names = [f"  {category['id'] - 1}: '{category['name']}'" for category in scenes.coco()["categories"]]
    sets = [f"path: {root.resolve()}", "train: images/train", "val: images/val", "names:"]
    (root / "data.yaml").write_text("\n".join(sets + names) + "\n")


WRITERS = {"coco": write_coco, "yolo": write_yolo}


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description="Write scenes of handwritten digits in COCO's or YOLO's format.")
    parser.add_argument("directory", metavar="DIR", help="folder to write to")
    parser.add_argument("--train", type=whole(0), default=2000, metavar="N", help="scenes for training (2000)")
    parser.add_argument("--val", type=whole(0), default=500, metavar="N", help="scenes for validation (500)")
    parser.add_argument("--seed", type=whole(0), default=0, help="(0)")
    parser.add_argument(
        "--style", choices=list(STYLES), default="easy", help="hard: many small digits among clutter (easy)"
    )
    parser.add_argument("--size", type=whole(1), metavar="PIXELS", help="side of a picture (96)")
    parser.add_argument("--digits", type=whole(0), nargs=2, metavar=("FEWEST", "MOST"), help="in a picture")
    parser.add_argument(
        "--clutter", type=whole(0), nargs=2, metavar=("FEWEST", "MOST"), help="things that are no digits"
    )
    parser.add_argument("--contrast", type=real(0, 1), nargs=2, metavar=("LEAST", "GREATEST"), help="0 to 1")
    parser.add_argument("--format", choices=list(WRITERS), default="coco", help="of the files (coco)")
    options = parser.parse_args(arguments)
    given = {name: getattr(options, name) for name in ("size", "digits", "clutter", "contrast")}
    given = {
        name: tuple(value) if isinstance(value, list) else value for name, value in given.items() if value is not None
    }
    style = dataclasses.replace(STYLES[options.style], **given)
    for split, count in (("train", options.train), ("val", options.val)):
        WRITERS[options.format](options.directory, DigitScenes(count, split=split, seed=options.seed, style=style))
        print(f"{count} scenes of {split} in {options.directory}")


if __name__ == "__main__":
    main()
