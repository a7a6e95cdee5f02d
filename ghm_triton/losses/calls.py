"""Calls of a loss by a detection head or a criterion, which know that a pass without gradients is no training step."""

import torch
from torch import Tensor, nn

from ..ops import updates_in_backward


def call_loss(loss: nn.Module, *arguments) -> Tensor:
    """Call a loss so that its state follows the training steps only.

    Where gradients are disabled, as in validation, the loss is called as in `eval()`: its state stays. Reentrant
    checkpointing runs the first forward pass like that, and repeats it with gradients in the backward pass, where the
    losses otherwise leave their state as it is. That repeated pass then updates it.
    """
    with_gradients = follow_gradients(loss)
    if not with_gradients and loss.training:
        loss.eval()
        try:
            return loss(*arguments)
        finally:
            loss.train()
    with updates_in_backward(with_gradients and loss.first_pass_skipped):
        return loss(*arguments)


def follow_gradients(loss: nn.Module) -> bool:
    """Return whether gradients are enabled, and note in `loss` whether the pass before the backward pass had them."""
    enabled = torch.is_grad_enabled()
    if not enabled:
        loss.first_pass_skipped = True
    elif torch.compiler.is_compiling() or torch._C._current_graph_task_id() == -1:
        loss.first_pass_skipped = False
    elif not hasattr(loss, "first_pass_skipped"):
        loss.first_pass_skipped = False
    return enabled
