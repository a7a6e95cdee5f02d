"""Optimizers and their learning rate schedules."""

import torch
from torch import nn
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LambdaLR, LRScheduler, OneCycleLR


def one_cycle(model: nn.Module, *, rate: float, steps: int) -> tuple[Optimizer, LRScheduler]:
    """Return AdamW and a one-cycle schedule of `steps` steps with the maximum `rate`."""
    optimizer = torch.optim.AdamW(_trained(model), lr=rate, weight_decay=1e-4)
    return optimizer, OneCycleLR(optimizer, rate, total_steps=steps)


def warmup_and_falls(
    model: nn.Module, *, rate: float, warmup: int, falls: list[int], start: float = 1 / 3, factor: float = 0.1
) -> tuple[Optimizer, LRScheduler]:
    """Return SGD with momentum 0.9, and a schedule that rises linearly and then falls in steps.

    Args:
        model: The model to train.
        rate: Learning rate after the warmup.
        warmup: Steps over which the rate rises from `start` times `rate` to `rate`.
        falls: Steps at which the rate is multiplied by `factor`.
        start, factor: As above.
    """
    optimizer = torch.optim.SGD(_trained(model), lr=rate, momentum=0.9, weight_decay=1e-4)

    # A function of the step alone: SequentialLR keeps a state per part, and a resumed run may move its falls.
    def of_step(step: int) -> float:
        rise = start + (1 - start) * min(step / warmup, 1) if warmup else 1.0
        return rise * factor ** sum(step >= fall for fall in falls)

    return optimizer, LambdaLR(optimizer, of_step)


def _trained(model: nn.Module) -> list[nn.Parameter]:
    return [parameter for parameter in model.parameters() if parameter.requires_grad]
