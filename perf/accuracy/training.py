"""Trains and evaluates one run of the comparison."""

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
from ghm_triton.detection.heads import harmonize
from ghm_triton.detection.losses import LossOptions, SmoothL1Loss, use_losses
from ghm_triton.detection.models.lite0 import lite0_retinanet
from ghm_triton.detection.models.small import SmallBackbone, small_retinanet
from ghm_triton.detection.pretrain import pretrain
from ghm_triton.detection.training.checkpoint import load_checkpoint, save_checkpoint
from ghm_triton.detection.training.engine import train_one_cycle as train
from ghm_triton.detection.training.evaluation import average_precision, detect

from ..exact_density import ExactGHMCLoss
from .plan import DIGITS, EXACT, TASKS, Run

STYLE = STYLES["hard"]
CURVE_POINTS = 4  # AP is measured after each of this many parts of the steps
LOSSES = {  # as in LossOptions
    "CE + SL1": {"loss": "ce", "box_loss": "smooth_l1"},
    "focal + SL1": {"loss": "focal", "box_loss": "smooth_l1"},
    "GHM-C + SL1": {"loss": "ghmc", "box_loss": "smooth_l1"},
    "GHM-C + ASL1": {"loss": "ghmc", "box_loss": "asl1"},
    "GHM-C + GHM-R": {"loss": "ghmc", "box_loss": "ghmr"},
}


def start_weights(path: Path, *, steps: int) -> dict:
    """The weights of the pre-trained backbone, the same for all runs. They are made once and kept in `path`."""
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
    """The model of `run` with its losses, on the pre-trained backbone: `backbone` for digits, ImageNet's for trees."""
    torch.manual_seed(run.seed)
    if run.task in DIGITS:
        model = small_retinanet(TASKS[run.task], size=STYLE.size)
        model.backbone.load_state_dict(backbone, strict=False)
    else:
        model = lite0_retinanet(TASKS[run.task])
    if run.losses == EXACT:
        return harmonize(model, ExactGHMCLoss(run.bins), SmoothL1Loss(loss_weight=run.box_weight))
    options = {name: getattr(run, name) for name in ("bins", "momentum", "variant", "mu", "exponent")}
    return use_losses(model, LossOptions(**LOSSES[run.losses], box_loss_weight=run.box_weight, **options))


def digits_data(run: Run, *, scenes: int) -> tuple[Dataset, Dataset]:
    """The scenes to train on, and `scenes` held-out ones: in the stage "grid" others than those that are reported."""
    common = {"classes": TASKS[run.task], "style": STYLE}
    held_out = DigitScenes(scenes, split="val", seed=1 if run.stage == "grid" else 0, **common)
    return DigitScenes(run.steps * run.batch, split="train", seed=run.seed, **common), held_out


def trees_data(run: Run, *, folder: Path) -> tuple[Dataset, Dataset]:
    """The augmented tiles to train on, and all validation tiles, which are too few to have others in the stage "grid".

    The data set is made once and kept in `folder`.
    """
    if not (folder / "annotations" / "instances_val.json").exists() and trees.main([str(folder)]):
        raise SystemExit(1)
    tiles, held_out = (CocoBoxes(*find_split(folder, split)) for split in ("train", "val"))
    count = run.steps * run.batch
    epochs = range(math.ceil(count / len(tiles)))
    items = ConcatDataset([Augmented(tiles, "aerial", seed=run.seed, epoch=epoch) for epoch in epochs])
    order = torch.randperm(len(items), generator=torch.Generator().manual_seed(run.seed))
    return Subset(items, order[:count].tolist()), held_out


def measure(run: Run, backbone: dict | None, *, scenes: int, trees_folder: Path) -> dict:
    """Train and evaluate. Return the values of the row. The curve is measured on the images that are reported."""
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
        if run.stage != "grid" and done % part == 0 and done < run.steps:
            paused = time.perf_counter()
            points[done] = average_precision(held_out.coco(), detect(model, held_out))["AP"]
            evaluating += time.perf_counter() - paused

    start = time.perf_counter()
    train(model, training, batch=run.batch, rate=run.rate, seed=run.seed, after_step=after_step)
    seconds = time.perf_counter() - start - evaluating
    result = average_precision(held_out.coco(), detect(model, held_out))
    if run.stage != "grid":
        points[run.steps] = result["AP"]
    curve = " ".join(f"{step}:{score:.2f}" for step, score in points.items())
    return result | {"curve": curve, "seconds_per_step": seconds / run.steps}
