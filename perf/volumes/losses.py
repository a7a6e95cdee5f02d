"""The classification losses of the comparison, by name."""

from collections.abc import Callable
from typing import NamedTuple

from torch import Tensor, nn
from torch.nn.functional import binary_cross_entropy_with_logits
from torchvision.ops import sigmoid_focal_loss

from ghm_triton import GHMCLoss


class OverPositives(nn.Module):
    """The sum of a loss over all anchors of the batch, divided by the number of positive ones, at least 1.

    Args:
        loss: Function of logits and targets, with the argument `reduction`.
    """

    def __init__(self, loss: Callable[..., Tensor]):
        super().__init__()
        self.loss = loss

    def forward(self, logits: Tensor, target: Tensor) -> Tensor:
        """Return the loss, a scalar, for logits and 0/1 targets [anchors, 1]."""
        return self.loss(logits, target, reduction="sum") / target.sum().clamp(min=1)


class Way(NamedTuple):
    """A classification loss, what its sum is divided by, and whether MONAI's hard negative sampler is set."""

    loss: Callable[[], nn.Module]
    divisor: str
    sampler: bool = False


SAMPLER = "BCE, hard negative sampler"
WAYS = {
    SAMPLER: Way(nn.BCEWithLogitsLoss, "sampled anchors", sampler=True),  # as in MONAI's tutorial
    # But for the divisor, GHM-C with the exponent 0: what differs from GHM-C is the density.
    "BCE": Way(lambda: OverPositives(binary_cross_entropy_with_logits), "positive anchors"),
    "focal": Way(lambda: OverPositives(sigmoid_focal_loss), "positive anchors"),  # alpha 0.25, gamma 2
    **{f"GHM-C {rho:g}": Way(lambda rho=rho: GHMCLoss(exponent=rho), "all anchors") for rho in (0.5, 1.0)},
}
