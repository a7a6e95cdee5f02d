"""COCO average precision of a torchvision detector."""

import contextlib
import io
import warnings
from collections.abc import Sequence

import numpy
import torch
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval
from torch import Tensor, nn
from torch.utils.data import Dataset
from torchvision.ops import box_convert

METRICS = ("AP", "AP50", "AP75", "APs", "APm", "APl", "AR1", "AR10", "AR100", "ARs", "ARm", "ARl")


def detect(model: nn.Module, dataset: Dataset, *, batch: int = 16, indices: Sequence[int] | None = None) -> list[dict]:
    """The detections of `model` in COCO's result format; the model is left in the mode that it was in.

    Args:
        model: a detector of torchvision.
        dataset: of (image, target) with "image_id" in the target, and with `category_ids`, the category of each label.
        batch: images at once.
        indices: of the images to look at; None: all.
    """
    training = model.training
    model.eval()
    device = next(model.parameters()).device
    indices = range(len(dataset)) if indices is None else indices
    results = []
    with torch.inference_mode():
        for first in range(0, len(indices), batch):
            items = [dataset[index] for index in indices[first : first + batch]]
            warn_unreadable([target for _, target in items])
            items = [item for item in items if not item[1].get("unreadable")]  # another image is in its place
            if not items:
                continue
            outputs = model([image.to(device) for image, _ in items])
            for (_, target), output in zip(items, outputs):
                results += coco_results(output, target["image_id"], dataset.category_ids)
    model.train(training)
    return results


def warn_unreadable(targets: list[dict]) -> int:
    """Name the images that could not be read; their number."""
    names = [name for target in targets for name in target.get("unreadable", [])]
    if names:
        warnings.warn(f"images: {len(names)} cannot be read: {', '.join(names)}", stacklevel=2)
    return len(names)


def coco_results(output: dict[str, Tensor], image_id: int, category_ids: Sequence[int]) -> list[dict]:
    """What a detector returns for an image, in COCO's result format."""
    boxes = box_convert(output["boxes"], "xyxy", "xywh")
    return [
        {"image_id": image_id, "category_id": category_ids[label], "bbox": box, "score": score}
        for box, score, label in zip(boxes.tolist(), output["scores"].tolist(), output["labels"].tolist())
    ]


def average_precision(annotations: dict, results: list[dict]) -> dict[str, float]:
    """COCO's twelve numbers by name, 0 to 100; -1 where there is nothing to find. `annotations` as in COCO's files."""
    if not results:
        return dict.fromkeys(METRICS, 0.0)
    with contextlib.redirect_stdout(io.StringIO()):
        truth = COCO()
        truth.dataset = annotations
        truth.createIndex()
        evaluation = COCOeval(truth, truth.loadRes(results), "bbox")
        evaluation.evaluate()
        evaluation.accumulate()
        evaluation.summarize()
    return {name: float(numpy.where(value < 0, -1, 100 * value)) for name, value in zip(METRICS, evaluation.stats)}
