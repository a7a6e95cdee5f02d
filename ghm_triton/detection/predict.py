"""Detect objects in images: their boxes as json, and a picture with them drawn.

python -m ghm_triton.detection.predict CHECKPOINT IMAGE... [--output DIR]
"""

import argparse
import json
import pathlib
import sys

import torch
from torch import Tensor, nn
from torchvision.transforms.functional import to_pil_image
from torchvision.utils import draw_bounding_boxes

from .argument_types import device, real
from .data.coco import read_image
from .models.builder import build_from
from .training.checkpoint import load_checkpoint


def predict(model: nn.Module, categories: list[dict], image: Tensor, *, threshold: float) -> tuple[list[dict], Tensor]:
    """(objects of a score of at least `threshold`, the image with them drawn).

    Args:
        model: a detector in eval mode.
        categories: of its labels, in COCO's format.
        image: uint8 [3, height, width].
        threshold: least score, 0 to 1.

    An object is a dict of "category_id", "category", "score" and "bbox", [left, top, width, height] in pixels.
    """
    device = next(model.parameters()).device
    with torch.inference_mode():
        (output,) = model([image.to(device).float() / 255])
    keep = output["scores"] >= threshold
    boxes, scores, labels = (output[name][keep].cpu() for name in ("boxes", "scores", "labels"))
    found = []
    for (left, top, right, bottom), score, label in zip(boxes.tolist(), scores.tolist(), labels.tolist()):
        category = categories[label]
        place = {"bbox": [left, top, right - left, bottom - top], "score": score}
        found.append({"category_id": category["id"], "category": category["name"]} | place)
    if not found:
        return found, image
    captions = [f"{one['category']} {one['score']:.2f}" for one in found]
    return found, draw_bounding_boxes(image, boxes, captions, colors="red")


def main(arguments: list[str] | None = None) -> int:
    """Predict; 1 where the checkpoint or any of the images cannot be read, after the others."""
    parser = argparse.ArgumentParser(prog="python -m ghm_triton.detection.predict", description=__doc__.splitlines()[0])
    parser.add_argument("checkpoint", metavar="CHECKPOINT")
    parser.add_argument("images", metavar="IMAGE", nargs="+")
    parser.add_argument(
        "--output", metavar="DIR", default="predictions", help="for NAME.json and NAME.png (predictions)"
    )
    parser.add_argument("--threshold", type=real(0, 1), default=0.5, help="least score (0.5)")
    parser.add_argument("--device", type=device, default="auto", help="auto, cpu, cuda or cuda:N (auto)")
    options = parser.parse_args(arguments)
    folder = pathlib.Path(options.output)
    failed = 0
    try:
        model, categories = build_from(load_checkpoint(options.checkpoint))
        model.to(options.device)
        folder.mkdir(parents=True, exist_ok=True)
    except (OSError, ValueError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    for path in options.images:
        try:
            image = read_image(path)
        except OSError as error:
            print(f"error: image {path} cannot be read: {error}", file=sys.stderr)
            failed = 1
            continue
        found, drawn = predict(model, categories, image, threshold=options.threshold)
        name = pathlib.Path(path).stem
        try:
            (folder / f"{name}.json").write_text(json.dumps({"image": path, "objects": found}, indent=1))
            to_pil_image(drawn).save(folder / f"{name}.png")
        except OSError as error:
            print(f"error: {folder / name} cannot be written: {error}", file=sys.stderr)
            return 1
        print(f"{path}: {len(found)} objects, {folder / name}.json and .png")
    return failed


if __name__ == "__main__":
    sys.exit(main())
