"""Calls of a loss by a detection head or a criterion, which know that a pass without gradients is no training step."""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from ..ops import updates_in_backward


def call_loss(loss: nn.Module, *arguments) -> Tensor:
    """Call a loss so that its state follows the training steps only.

    Where gradients are disabled, as in validation, the loss is called as in `eval()`: its state stays. Reentrant
    checkpointing runs the first forward pass like that, and repeats it with gradients in the backward pass, where the
    losses otherwise leave their state as it is. That repeated pass then updates it.
    """
    if not follow_gradients(loss) and loss.training:
        loss.eval()
        try:
            return loss(*arguments)
        finally:
            loss.train()
    return call_following(loss, loss, *arguments)


def call_following(loss: nn.Module, function: Callable[..., Any], *arguments) -> Any:
    """Call a function that updates the state of `loss`, after :func:`follow_gradients`."""
    if not (loss.first_pass_skipped and torch.is_grad_enabled()):
        return function(*arguments)
    with updates_in_backward():
        return function(*arguments)


def follow_gradients(loss: nn.Module) -> bool:
    """Return whether gradients are enabled, and note in `loss` whether the pass before the backward pass had them."""
    enabled = torch.is_grad_enabled()
    if enabled and not torch.compiler.is_compiling() and torch._C._current_graph_task_id() != -1:
        skipped = getattr(loss, "first_pass_skipped", False)  # a repeated pass: as the first one left it
    else:
        skipped = not enabled
    loss.first_pass_skipped = skipped  # type: ignore[assignment]
    return enabled
