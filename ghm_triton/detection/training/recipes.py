"""Named settings of a training: the paper's, and those of a small model on a CPU."""

import argparse
import math

from torch import nn
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LRScheduler

from ..pretrain import STEPS
from .schedules import one_cycle, warmup_and_falls

PAPER = {
    "epochs": 14,
    "batch_size": 16,
    "lr": 0.01,
    "warmup": 500,
    "augment": "flip",
    "exponent": 1.0,
    "box_loss_weight": 1.0,
}
SMALL = {
    "epochs": 3,
    "batch_size": 8,
    "lr": 1.5e-3,
    "warmup": None,
    "augment": "none",  # for digits
    "exponent": 0.5,
    "box_loss_weight": 4.0,
}
RECIPES = {"paper": PAPER, "small": SMALL}
BACKBONE_WEIGHTS = {"lite0": "DEFAULT"}  # the other models start from random weights


def recipe_defaults(recipe: str, model: str, loss: str) -> dict:
    """Returns the defaults of the options of `train` in a recipe, for a model and a loss by name."""
    values = RECIPES[recipe] | {"pretrain_steps": 0, "backbone_weights": BACKBONE_WEIGHTS.get(model, "none")}
    if recipe == "small":
        if model == "small":
            values["pretrain_steps"] = STEPS
        if model.startswith("fcos"):
            values["box_loss_weight"] = 1.0  # its own box losses have no factor
        elif loss != "ghm":
            values["box_loss"] = "smooth_l1"
    return values


def learning_rate_falls(options: argparse.Namespace, steps_per_epoch: int) -> list[int]:
    """Returns the steps from which the rate is a tenth, and a hundredth.

    They come after 8/14 and 11/14 of the run, as in the paper. The option --lr-steps names epochs instead.
    """
    if options.lr_steps is not None:
        return [steps_per_epoch * (epoch - 1) for epoch in options.lr_steps]
    total = steps_per_epoch * options.epochs
    return [-(-total * part // 14) for part in (8, 11)]


def warmup_steps(options: argparse.Namespace, steps_per_epoch: int) -> int:
    """Returns the steps of the warmup: at most a tenth of the run."""
    return min(options.warmup, steps_per_epoch * options.epochs // 10)


def make_optimizer(
    model: nn.Module, options: argparse.Namespace, steps_per_epoch: int
) -> tuple[Optimizer, LRScheduler]:
    """Returns the optimizer and the schedule of the recipe."""
    if options.recipe == "small":
        return one_cycle(model, rate=options.lr, steps=steps_per_epoch * options.epochs)
    return warmup_and_falls(
        model,
        rate=options.lr,
        warmup=warmup_steps(options, steps_per_epoch),
        falls=learning_rate_falls(options, steps_per_epoch),
    )


def describe_schedule(options: argparse.Namespace, images: int) -> str:
    """Returns what a training prints at its start."""
    steps = math.ceil(images / options.batch_size)
    text = f"recipe {options.recipe}: {options.epochs} epochs of {steps:,} steps of {options.batch_size} images; "
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
