"""The losses of the comparison, by name."""

from collections.abc import Callable

from torch import Tensor
from torch.nn import CrossEntropyLoss
from torch.nn.functional import cross_entropy

from ghm_triton import GHMCrossEntropyLoss

EXPONENTS = (0.25, 0.5, 0.75, 1.0)
FOCUS = 2.0  # gamma of the focal loss


def focal_loss(input: Tensor, target: Tensor) -> Tensor:
    """Return the mean of (1 - p_y)^gamma CE, the focal loss of a softmax classifier."""
    losses = cross_entropy(input, target, reduction="none")
    return ((1 - (-losses).exp()) ** FOCUS * losses).mean()


LOSSES: dict[str, Callable[[], Callable[[Tensor, Tensor], Tensor]]] = {
    "cross entropy": CrossEntropyLoss,
    "focal": lambda: focal_loss,
    **{f"GHM {rho:g}": lambda rho=rho: GHMCrossEntropyLoss(exponent=rho) for rho in EXPONENTS},
}
