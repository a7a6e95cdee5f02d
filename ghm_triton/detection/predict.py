"""Detect objects in images or folders of images, and write their boxes as JSON and a picture with the boxes drawn.

    python -m ghm_triton.detection.predict RUN/best.pt IMAGE_OR_FOLDER ... --output DIR

NAME.json holds the objects of an image, and NAME.png shows them.
"""

import json
import pathlib
import sys
from collections.abc import Sequence

import torch
from PIL import Image
from torch import Tensor, nn
from torchvision.transforms.functional import to_pil_image

from ..arguments import command_parser, device, real
from .data.images import read_image
from .models.builder import build_from
from .text import counted
from .training.checkpoint import load_checkpoint
from .training.drawing import draw_objects

_ENDINGS = tuple(Image.registered_extensions())  # of the files that Pillow reads


def predict(model: nn.Module, categories: list[dict], image: Tensor, *, threshold: float) -> tuple[list[dict], Tensor]:
    """Detect the objects in an image.

    Args:
        model: A detector of torchvision, in eval mode.
        categories: The categories of its labels, in COCO's format.
        image: uint8 [3, height, width].
        threshold: Minimum score, 0 to 1.

    Returns:
        The objects, and the picture with the objects drawn, enlarged if it is small. An object is a dict of
        "category_id", "category", "score" and "bbox" ([left, top, width, height] in pixels of `image`).
    """
    device = next(model.parameters()).device
    with torch.inference_mode():
        (output,) = model([image.to(device).float() / 255])
    keep = output["scores"] >= threshold
    boxes, scores, labels = (output[name][keep].cpu() for name in ("boxes", "scores", "labels"))
    found, captions = [], []
    for (left, top, right, bottom), score, label in zip(boxes.tolist(), scores.tolist(), labels.tolist()):
        category = categories[label]
        place = {"bbox": [left, top, right - left, bottom - top], "score": score}
        found.append({"category_id": category["id"], "category": category["name"]} | place)
        captions.append(f"{category['name']} {score:.2f}")
    return found, draw_objects(image, boxes, labels, captions, len(categories))


def output_names(paths: Sequence[str]) -> list[str]:
    """Return a name per image: its file name without the extension, numbered if the name is already taken."""
    names = []
    for path in paths:
        stem = pathlib.Path(path).stem
        numbered = (f"{stem}-{number}" for number in range(2, len(paths) + 2))
        names.append(stem if stem not in names else next(name for name in numbered if name not in names))
    return names


def find_images(paths: Sequence[str]) -> list[str]:
    """Return the paths, with each folder replaced by the images in it, sorted by name. Subfolders are skipped.

    Raises:
        OSError: A folder cannot be read, or holds no images.
    """
    found = []
    for path in paths:
        if not pathlib.Path(path).is_dir():
            found.append(path)
            continue
        inside = [str(one) for one in sorted(pathlib.Path(path).iterdir()) if one.suffix.lower() in _ENDINGS]
        if not inside:
            raise FileNotFoundError(f"image must be a file or a folder with images, got {path} without images")
        found += inside
    return found


def main(arguments: list[str] | None = None) -> int:
    """Run the prediction. Return 1 if the checkpoint or an image cannot be read, after the other images are done."""
    parser = command_parser("ghm_triton.detection.predict", __doc__)
    parser.add_argument("checkpoint", metavar="CHECKPOINT", help="checkpoint.pt of a training")
    parser.add_argument("images", metavar="IMAGE", nargs="+", help="image files, or folders of images")
    parser.add_argument(
        "--output", metavar="DIR", default="predictions", help="folder to write NAME.json and NAME.png to"
    )
    parser.add_argument("--threshold", type=real(0, 1), default=0.5, help="minimum score of a detection")
    parser.add_argument("--device", type=device, default="auto", help="auto, cpu, cuda, cuda:N, ...")
    options = parser.parse_args(arguments)
    folder = pathlib.Path(options.output)
    failed = 0
    try:
        model, categories = build_from(load_checkpoint(options.checkpoint))
        model.to(options.device)
        folder.mkdir(parents=True, exist_ok=True)
        images = find_images(options.images)
    except (ImportError, OSError, ValueError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    for path, name in zip(images, output_names(images)):
        try:
            image = read_image(path)
        except OSError as error:
            print(f"error: image must be readable, got {path}: {error}", file=sys.stderr)
            failed = 1
            continue
        found, drawn = predict(model, categories, image, threshold=options.threshold)
        try:
            (folder / f"{name}.json").write_text(json.dumps({"image": path, "objects": found}, indent=1))
            to_pil_image(drawn).save(folder / f"{name}.png")
        except OSError as error:
            print(f"error: {folder / name} cannot be written: {error}", file=sys.stderr)
            return 1
        print(f"{path}: {counted(len(found), 'object')}, {folder / name}.json and .png")
    return failed


if __name__ == "__main__":
    sys.exit(main())
