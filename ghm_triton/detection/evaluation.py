"""COCO average precision of a torchvision detector."""

import contextlib
import io

import numpy
import torch
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval
from torch import nn

from .digits import DigitScenes

METRICS = ("AP", "AP50", "AP75", "APs", "APm", "APl", "AR1", "AR10", "AR100", "ARs", "ARm", "ARl")


def detect(model: nn.Module, scenes: DigitScenes, *, batch: int = 16) -> list[dict]:
    """The detections of `model` in COCO's result format; the model is left in the mode that it was in."""
    training = model.training
    model.eval()
    device = next(model.parameters()).device
    results = []
    with torch.inference_mode():
        for first in range(0, len(scenes), batch):
            items = [scenes[index] for index in range(first, min(first + batch, len(scenes)))]
            outputs = model([image.to(device) for image, _ in items])
            for (_, target), output in zip(items, outputs):
                boxes = torch.cat([output["boxes"][:, :2], output["boxes"][:, 2:] - output["boxes"][:, :2]], dim=1)
                for box, score, label in zip(boxes.tolist(), output["scores"].tolist(), output["labels"].tolist()):
                    results.append(
                        {"image_id": target["image_id"], "category_id": label + 1, "bbox": box, "score": score}
                    )
    model.train(training)
    return results


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
