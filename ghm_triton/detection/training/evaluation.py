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
    """Return the detections of `model` in COCO's result format. The model keeps its mode.

    Args:
        model: A detector of torchvision.
        dataset: Items (image, target) with "image_id" in the target. Its `category_ids` are the category of each label.
        batch: Images per batch.
        indices: The images to use. None: all.
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
    """Warn about images that could not be read, and return their number."""
    names = [name for target in targets for name in target.get("unreadable", [])]
    if names:
        warnings.warn(f"images must be readable, got {len(names)} that are not: {', '.join(names)}", stacklevel=2)
    return len(names)


def coco_results(output: dict[str, Tensor], image_id: int, category_ids: Sequence[int]) -> list[dict]:
    """Return the detections in an image in COCO's result format."""
    boxes = box_convert(output["boxes"], "xyxy", "xywh")
    return [
        {"image_id": image_id, "category_id": category_ids[label], "bbox": box, "score": score}
        for box, score, label in zip(boxes.tolist(), output["scores"].tolist(), output["labels"].tolist())
    ]


def average_precision(annotations: dict, results: list[dict]) -> dict[str, float]:
    """Return COCO's twelve metrics by name, from 0 to 100, or -1 where `annotations` have no such objects.

    Args:
        annotations: The content of a file in COCO's format.
        results: Detections in COCO's result format.
    """
    return _numbers(_evaluate(annotations, results))


def average_precision_by_class(
    annotations: dict, results: list[dict]
) -> tuple[dict[str, float], dict[int, dict[str, float]]]:
    """Return the metrics of :func:`average_precision`, and AP and AP50 by category id (-1 without objects)."""
    evaluation = _evaluate(annotations, results)
    # [IoU thresholds from 0.5 to 0.95, recalls, categories, object sizes, detections per image]
    precision = evaluation.eval["precision"][:, :, :, 0, -1]
    by_class = {}
    for position, category in enumerate(evaluation.params.catIds):
        parts = {"AP": precision[:, :, position], "AP50": precision[0, :, position]}
        by_class[category] = {
            name: 100 * float(part.mean()) if (part >= 0).all() else -1.0 for name, part in parts.items()
        }
    return _numbers(evaluation), by_class


def _evaluate(annotations: dict, results: list[dict]) -> COCOeval:
    with contextlib.redirect_stdout(io.StringIO()):
        truth = _index(annotations)
        # loadRes fails without results.
        found = truth.loadRes(results) if results else _index(annotations | {"annotations": []})
        evaluation = COCOeval(truth, found, "bbox")
        evaluation.evaluate()
        evaluation.accumulate()
        evaluation.summarize()
    return evaluation


def _numbers(evaluation: COCOeval) -> dict[str, float]:
    return {name: float(numpy.where(value < 0, -1, 100 * value)) for name, value in zip(METRICS, evaluation.stats)}


def _index(annotations: dict) -> COCO:
    index = COCO()
    index.dataset = annotations
    index.createIndex()
    return index
