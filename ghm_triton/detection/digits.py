"""Write scenes of handwritten digits in COCO's or YOLO's format: detection data that needs no download.

    python -m ghm_triton.detection.digits DIR --train 2000 --val 500 --style hard

Training and validation scenes use different digits and different parts of the photographs.
"""

import dataclasses
import json
import pathlib
import sys

import numpy
from PIL import Image

from ..arguments import command_parser, real, whole
from .data.digit_drawing import STYLES
from .data.digit_scenes import DESCRIPTION, DigitScenes
from .text import counted


def write_coco(directory: str | pathlib.Path, scenes: DigitScenes) -> None:
    """Write `directory`/SPLIT/*.png and `directory`/annotations/instances_SPLIT.json, the same bytes each time.

    Pictures from an earlier call are deleted first.

    Raises:
        OSError: A file cannot be written.
        ValueError: The folder holds annotations of another data set.
    """
    pictures = pathlib.Path(directory, scenes.split)
    annotations = pathlib.Path(directory, "annotations", f"instances_{scenes.split}.json")
    for folder in (pictures, annotations.parent):
        folder.mkdir(parents=True, exist_ok=True)
    if annotations.exists():
        for name in _earlier_pictures(annotations):
            (pictures / name).unlink(missing_ok=True)
    content = scenes.coco()
    for index, image in enumerate(content["images"]):
        Image.fromarray(scenes.scene(index)[0]).save(pictures / image["file_name"])
    annotations.write_text(json.dumps(content))


def _earlier_pictures(annotations: pathlib.Path) -> list[str]:
    """Return the names of the pictures that an earlier call wrote."""
    try:
        content = json.loads(annotations.read_text())
        if content["info"]["description"] == DESCRIPTION:
            return [pathlib.Path(image["file_name"]).name for image in content["images"]]
    except (ValueError, KeyError, TypeError):
        pass
    raise ValueError(f"directory must be empty or hold scenes of digits, got {annotations} of another data set")


def write_yolo(directory: str | pathlib.Path, scenes: DigitScenes) -> None:
    """Write `directory`/images/SPLIT/*.png, labels/SPLIT/*.txt, and data.yaml, the format of Ultralytics' YOLO.

    A line of a label file is "label x y width height": center and size of a box, as fractions of the picture's side.

    Raises:
        ValueError: The folders already hold files.
    """
    root, size = pathlib.Path(directory), scenes.style.size
    images, labels = (root / kind / scenes.split for kind in ("images", "labels"))
    for folder in (images, labels):
        if folder.exists() and any(folder.iterdir()):
            raise ValueError(f"directory must be empty for YOLO's format, got {folder} with files")
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


def main(arguments: list[str] | None = None) -> int:
    """Write the scenes. Print an error and return 1 for it."""
    parser = command_parser("ghm_triton.detection.digits", __doc__)
    parser.add_argument("directory", metavar="DIR", help="folder to write to; earlier scenes there are replaced")
    parser.add_argument("--train", type=whole(0), default=2000, metavar="N", help="number of training scenes")
    parser.add_argument("--val", type=whole(0), default=500, metavar="N", help="number of validation scenes")
    parser.add_argument("--seed", type=whole(0), default=0, help="random seed of the scenes")
    parser.add_argument("--style", choices=list(STYLES), default="easy", help="hard: many small digits among clutter")
    parser.add_argument(
        "--size", type=whole(1), metavar="PIXELS", help="height and width of an image; 96 in both styles"
    )
    parser.add_argument("--digits", type=whole(0), nargs=2, metavar=("MIN", "MAX"), help="digits per image")
    parser.add_argument("--clutter", type=whole(0), nargs=2, metavar=("MIN", "MAX"), help="distractors per image")
    parser.add_argument(
        "--contrast", type=real(0, 1), nargs=2, metavar=("MIN", "MAX"), help="contrast of the digits, 0 to 1"
    )
    parser.add_argument("--format", choices=list(WRITERS), default="coco", help="format of the files")
    options = parser.parse_args(arguments)
    given = {name: getattr(options, name) for name in ("size", "digits", "clutter", "contrast")}
    given = {name: tuple(value) if isinstance(value, list) else value for name, value in given.items() if value}
    style = dataclasses.replace(STYLES[options.style], **given)
    try:
        for split, count in (("train", options.train), ("val", options.val)):
            WRITERS[options.format](options.directory, DigitScenes(count, split=split, seed=options.seed, style=style))
            print(f"{counted(count, 'scene')} in {pathlib.Path(options.directory, split)}")
    except (OSError, ValueError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
