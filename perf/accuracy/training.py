"""Train and evaluate one run of the comparison."""

import dataclasses
import math
import time
from pathlib import Path

import torch
from torch import nn
from torch.utils.data import ConcatDataset, Dataset, Subset

from ghm_triton.detection import trees
from ghm_triton.detection.data.augment import Augmented
from ghm_triton.detection.data.coco import CocoBoxes
from ghm_triton.detection.data.digit_drawing import STYLES
from ghm_triton.detection.data.digit_scenes import DigitScenes
from ghm_triton.detection.data.split_files import find_split
from ghm_triton.detection.data.trees import PHOTOGRAPHS
from ghm_triton.detection.heads import harmonize
from ghm_triton.detection.losses import LossOptions, SmoothL1Loss, use_losses
from ghm_triton.detection.models.lite0 import lite0_retinanet
from ghm_triton.detection.models.small import SmallBackbone, small_retinanet
from ghm_triton.detection.pretrain import pretrain
from ghm_triton.detection.training.checkpoint import load_checkpoint, save_checkpoint
from ghm_triton.detection.training.engine import train_one_cycle as train
from ghm_triton.detection.training.evaluation import average_precision, detect
from ghm_triton.mmdet import GHMC, GHMR

from ..exact_density import ExactGHMCLoss
from .faulty_boxes import FaultyBoxes
from .plan import DIGITS, EXACT, OTHER_PHOTOGRAPH, TASKS, Run

STYLE = STYLES["hard"]
CURVE_POINTS = 4  # how often AP is measured in a run, at equal distances
LOSSES = {  # as in LossOptions
    "CE + SL1": {"loss": "ce", "box_loss": "smooth_l1"},
    "focal + SL1": {"loss": "focal", "box_loss": "smooth_l1"},
    "CE per image + SL1": {"loss": "ce", "box_loss": "smooth_l1", "normalize": "image"},
    "focal per image + SL1": {"loss": "focal", "box_loss": "smooth_l1", "normalize": "image"},
    "focal + GHM-R": {"loss": "focal", "box_loss": "ghmr"},
    "GHM-C + SL1": {"loss": "ghmc", "box_loss": "smooth_l1"},
    "GHM-C + ASL1": {"loss": "ghmc", "box_loss": "asl1"},
    "GHM-C + GHM-R": {"loss": "ghmc", "box_loss": "ghmr"},
}


def start_weights(path: Path, *, steps: int) -> dict:
    """Return the pre-trained weights of the backbone, the same for all runs. Train once and keep them in `path`."""
    if not path.exists():
        torch.manual_seed(0)
        backbone = SmallBackbone()
        right = pretrain(backbone, steps=steps)
        path.parent.mkdir(parents=True, exist_ok=True)
        save_checkpoint(path, {"backbone": backbone.state_dict(), "right_percent": right})
    state = load_checkpoint(path)
    print(f"backbone {path}: {state['right_percent']:.1f}% of held-out crops right")
    # The pyramid is not pre-trained: each seed has its own.
    return {name: value for name, value in state["backbone"].items() if not name.startswith("pyramid.")}


def build(run: Run, backbone: dict | None) -> nn.Module:
    """Return the model of `run` with its losses. It starts from `backbone` for digits and from ImageNet for trees."""
    torch.manual_seed(run.seed)
    if run.task in DIGITS:
        model = small_retinanet(TASKS[run.task], size=run.scene_size)
        model.backbone.load_state_dict(backbone, strict=False)
    else:
        model = lite0_retinanet(TASKS[run.task])
    if run.losses == EXACT:
        return harmonize(model, ExactGHMCLoss(run.bins), SmoothL1Loss(loss_weight=run.box_weight))
    options = {name: getattr(run, name) for name in ("bins", "momentum", "mu", "exponent")}
    if run.variant == "mmdet":
        return harmonize(model, *_mmdetection_losses(run, **options))
    return use_losses(model, LossOptions(**LOSSES[run.losses], box_loss_weight=run.box_weight, **options))


def _mmdetection_losses(run: Run, *, bins: int, mu: float, **options) -> tuple[nn.Module, nn.Module]:
    """Return the losses of the pair that `run` names, by mmdetection's formulas."""
    boxes = SmoothL1Loss(loss_weight=run.box_weight)
    if LOSSES[run.losses]["box_loss"] == "ghmr":
        boxes = GHMR(mu=mu, loss_weight=run.box_weight, **options)
    return GHMC(bins=bins, **options), boxes


def digits_data(run: Run, *, scenes: int) -> tuple[Dataset, Dataset]:
    """Return the training scenes and `scenes` held-out ones. The stage "grid" uses other ones than the results."""
    digits = tuple(int(count) for count in run.digits.split("-"))
    common = {"classes": TASKS[run.task], "style": dataclasses.replace(STYLE, size=run.scene_size, digits=digits)}
    held_out = DigitScenes(scenes, split="val", seed=1 if run.stage == "grid" else 0, **common)
    scenes = DigitScenes(run.steps * run.batch, split="train", seed=run.seed, **common)
    faults = {"missing": run.missing, "wrong": run.wrong, "jitter": run.jitter}
    return FaultyBoxes(scenes, **faults) if any(faults.values()) else scenes, held_out


def trees_data(run: Run, *, folder: Path) -> tuple[Dataset, CocoBoxes]:
    """Return the augmented training tiles and all validation tiles. Make the data set once and keep it in `folder`."""
    if not (folder / "annotations" / "instances_val.json").exists() and trees.main([str(folder)]):
        raise SystemExit(1)
    tiles, held_out = (CocoBoxes(*find_split(folder, split)) for split in ("train", "val"))
    count = run.steps * run.batch
    epochs = range(math.ceil(count / len(tiles)))
    items = ConcatDataset([Augmented(tiles, "aerial", seed=run.seed, epoch=epoch) for epoch in epochs])
    order = torch.randperm(len(items), generator=torch.Generator().manual_seed(run.seed))
    return Subset(items, order[:count].tolist()), held_out


def evaluate(model: nn.Module, held_out: Dataset, task: str) -> dict[str, dict[str, float]]:
    """Return COCO's metrics by task. For trees, each photograph is a task."""
    found, truth = detect(model, held_out), held_out.coco()
    if task in DIGITS:
        return {task: average_precision(truth, found)}
    scores = {}
    for name, photograph in zip(OTHER_PHOTOGRAPH, PHOTOGRAPHS):
        images = [image for image in truth["images"] if image["file_name"].startswith(photograph)]
        chosen = {image["id"] for image in images}
        annotations = [one for one in truth["annotations"] if one["image_id"] in chosen]
        own = [one for one in found if one["image_id"] in chosen]
        scores[name] = average_precision(truth | {"images": images, "annotations": annotations}, own)
    return scores


def measure(run: Run, backbone: dict | None, *, scenes: int, trees_folder: Path) -> dict[str, dict]:
    """Train and evaluate. Return the values of the row of each task that the run belongs to.

    The curve is measured on the images that are reported.
    """
    model = build(run, backbone)
    if run.task in DIGITS:
        training, held_out = digits_data(run, scenes=scenes)
    else:
        training, held_out = trees_data(run, folder=trees_folder)
    part = math.ceil(run.steps / CURVE_POINTS)
    points, evaluating, done = {}, 0.0, 0

    def after_step(targets):
        nonlocal done, evaluating
        done += 1
        if run.stage == "main" and done % part == 0 and done < run.steps:
            paused = time.perf_counter()
            points[done] = evaluate(model, held_out, run.task)
            evaluating += time.perf_counter() - paused

    start = time.perf_counter()
    train(model, training, batch=run.batch, rate=run.rate, seed=run.seed, after_step=after_step)
    seconds = time.perf_counter() - start - evaluating
    results = evaluate(model, held_out, run.task)
    if run.stage == "main":
        points[run.steps] = results
    curves = {task: " ".join(f"{step}:{scores[task]['AP']:.2f}" for step, scores in points.items()) for task in results}
    return {
        task: values | {"curve": curves[task], "seconds_per_step": seconds / run.steps}
        for task, values in results.items()
    }
