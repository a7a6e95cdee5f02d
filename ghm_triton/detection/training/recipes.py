"""Named training settings: those of the paper, and those of a small model on a CPU."""

import argparse
import math

from torch import nn
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LRScheduler

from ..pretrain import STEPS
from ..text import counted
from .schedules import one_cycle, warmup_and_falls

PAPER = {
    "epochs": 14,
    "steps": None,
    "batch_size": 16,
    "lr": 0.01,
    "warmup": 500,
    "augment": "flip",
    "exponent": 0.5,
    "box_loss_weight": 1.0,
}
SMALL = {
    "epochs": None,
    "steps": 750,  # rather than epochs: a small data set needs as many
    "batch_size": 8,
    "lr": 1.5e-3,
    "warmup": None,
    "augment": "none",  # for digits
    "exponent": 0.5,
    "box_loss_weight": 4.0,
}
RECIPES = {"paper": PAPER, "small": SMALL}
BACKBONE_WEIGHTS = {"lite0": "DEFAULT"}  # the other models start from random weights
_FEW = 200  # steps
_LONG_EPOCH = 50  # steps; after an epoch of this length or more comes an evaluation
_EVALUATIONS = 15  # at most, if epochs are shorter


def recipe_defaults(recipe: str, model: str, loss: str) -> dict:
    """Return the defaults of the options of `train` in a recipe, for a model and a loss by name."""
    values = {name: value for name, value in RECIPES[recipe].items() if name not in ("epochs", "steps")}
    values["backbone_weights"] = BACKBONE_WEIGHTS.get(model, "none")
    values["pretrain_steps"] = None if recipe == model == "small" else 0  # None: proportional to the training steps
    if recipe == "small":
        if model.startswith("fcos"):
            values["box_loss_weight"] = 1.0  # its own box losses have no factor
        elif loss != "ghm":
            values["box_loss"] = "smooth_l1"
    return values


def complete(options: argparse.Namespace, images: int, *, resumed: dict | None = None) -> None:
    """Set the number of epochs and pre-training steps where `options` do not, in place.

    Args:
        options: The options of `train`.
        images: Number of training images.
        resumed: The settings in the checkpoint of a resumed training.
    """
    each = math.ceil(images / options.batch_size)
    if options.epochs is None:
        options.epochs = math.ceil(options.steps / each)
    if options.pretrain_steps is None:
        in_proportion = min(STEPS, 2 * each * options.epochs) if options.backbone is None else 0
        options.pretrain_steps = (resumed or {}).get("pretrain_steps", in_proportion)


def evaluated_every(options: argparse.Namespace, steps_per_epoch: int) -> int:
    """Return the number of epochs between evaluations. There are at most 15 if an epoch is shorter than 50 steps."""
    return 1 if steps_per_epoch >= _LONG_EPOCH else math.ceil(options.epochs / _EVALUATIONS)


def learning_rate_falls(options: argparse.Namespace, steps_per_epoch: int) -> list[int]:
    """Return the steps at which the learning rate drops to a tenth, and to a hundredth.

    They are at 8/14 and 11/14 of the run, as in the paper, or at the epochs that --lr-steps gives.
    """
    if options.lr_steps is not None:
        return [steps_per_epoch * (epoch - 1) for epoch in options.lr_steps]
    total = steps_per_epoch * options.epochs
    return [-(-total * part // 14) for part in (8, 11)]


def warmup_steps(options: argparse.Namespace, steps_per_epoch: int) -> int:
    """Return the number of warmup steps, at most a tenth of the run."""
    return min(options.warmup, steps_per_epoch * options.epochs // 10)


def make_optimizer(
    model: nn.Module, options: argparse.Namespace, steps_per_epoch: int
) -> tuple[Optimizer, LRScheduler]:
    """Return the optimizer and the schedule of the recipe."""
    if options.recipe == "small":
        return one_cycle(model, rate=options.lr, steps=steps_per_epoch * options.epochs)
    return warmup_and_falls(
        model,
        rate=options.lr,
        warmup=warmup_steps(options, steps_per_epoch),
        falls=learning_rate_falls(options, steps_per_epoch),
    )


def describe_plan(options: argparse.Namespace, images: int) -> str:
    """Return the text printed at the start: the schedule, the pre-training, and a hint if there are few steps."""
    steps = math.ceil(images / options.batch_size)
    total, every = steps * options.epochs, evaluated_every(options, steps)
    lines = [describe_schedule(options, images)]
    if options.pretrain_steps:
        lines.append(f"before: {counted(options.pretrain_steps, 'step')} of pre-training on crops of digits")
    if every > 1:
        lines.append(f"evaluation: after every {every} epochs and at the end")
    if total < _FEW:
        enough = SMALL["steps"]
        lines.append(
            f"hint: {counted(total, 'step')} are few, most data sets need several hundred; "
            f"--steps {enough} takes {counted(math.ceil(enough / steps), 'epoch')}"
        )
    return "\n".join(lines)


def describe_schedule(options: argparse.Namespace, images: int) -> str:
    """Return the epochs and the learning rate in words."""
    steps = math.ceil(images / options.batch_size)
    text = f"recipe {options.recipe}: {counted(options.epochs, 'epoch')} of {counted(steps, 'step')} "
    text += f"of {counted(options.batch_size, 'image')}; "
    if options.recipe == "small":
        return text + f"AdamW, one cycle of the learning rate with maximum {options.lr:g}"
    warmup = warmup_steps(options, steps)
    text += f"SGD, learning rate {options.lr / 3 if warmup else options.lr:.3g}"
    if warmup:
        text += f", {options.lr:g} after {warmup:,} steps"
    rate = options.lr
    for fall in learning_rate_falls(options, steps):
        rate /= 10
        text += f", {rate:.3g} after {fall:,} steps"
    return text
