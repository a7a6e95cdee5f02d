"""GHM-C in the criterion of a YOLO model, and its state.

The criterion computes the binary cross entropy of all class scores with its module `bce`, adds the values up and divides
the sum by that of the target scores. :class:`HarmonizedBCE` takes the place of this module. All that follows stays:
class weights, divisor and gain.
"""

import torch
from torch import Tensor, nn
from torch.nn import functional

from ghm_triton import GHMCLoss

BRANCHES = ("one2many", "one2one")  # of the criterion of an end-to-end model


class HarmonizedBCE(nn.Module):
    r"""GHM-C per element, scaled to the total value of binary cross entropy.

    .. math:: \ell_i = c \, \beta_i \, CE(x_i, t_i), \quad c = \sum_k CE(x_k, t_k) / \sum_k \beta_k CE(x_k, t_k)

    with beta of :func:`ghm_triton.ghmc_loss`. No gradient flows through c and beta. The sum of the values is that of
    binary cross entropy. What changes is how the gradient is distributed over the elements.

    Without gradients, as in validation, the values are those of binary cross entropy, and the state stays as it is.

    Args:
        bins, momentum, exponent, sync: As for :class:`ghm_triton.GHMCLoss`. With `sync` the density is that of all
            processes, and c that of each process.

    Example:
        >>> bce = HarmonizedBCE(bins=30, momentum=0.75, exponent=0.5)
        >>> bce(torch.randn(2, 189, 10, requires_grad=True), torch.rand(2, 189, 10)).sum().backward()
    """

    def __init__(self, *, bins: int, momentum: float, exponent: float, sync: bool = False):
        super().__init__()
        self.ghmc = GHMCLoss(bins=bins, momentum=momentum, exponent=exponent, sync=sync, reduction="none")

    def forward(self, logits: Tensor, target: Tensor) -> Tensor:
        """Losses of the shape of `logits`, fp32; `target` has the same shape and values in [0, 1]."""
        with torch.no_grad():
            cross_entropy = functional.binary_cross_entropy_with_logits(logits.float(), target.float(), reduction="none")
        if not torch.is_grad_enabled():
            return cross_entropy
        harmonized = self.ghmc(logits, target)
        tiny = torch.finfo(torch.float32).tiny
        scale = cross_entropy.sum() / harmonized.detach().sum().clamp(min=tiny)
        return harmonized * scale


def harmonize_criterion(criterion, **options):
    """Put :class:`HarmonizedBCE` in the place of binary cross entropy, with a density for each branch.

    Args:
        criterion: What `init_criterion` of a detection model returns. It is changed and returned.
        options: Those of :class:`HarmonizedBCE`.

    Raises:
        TypeError: The criterion has no module `bce`.
    """
    for branch in _branches(criterion).values():
        branch.bce = HarmonizedBCE(**options).to(branch.device)
    return criterion


def density_losses(criterion) -> dict[str, GHMCLoss]:
    """The loss that keeps the density of each branch: "one2many" and "one2one", or "detect" if there is only one."""
    return {name: branch.bce.ghmc for name, branch in _branches(criterion).items()}


def _branches(criterion) -> dict[str, object]:
    branches = {name: getattr(criterion, name) for name in BRANCHES if hasattr(criterion, name)}
    branches = branches or {"detect": criterion}
    for branch in branches.values():
        if not isinstance(getattr(branch, "bce", None), nn.Module):
            raise TypeError(
                "criterion must be that of a YOLO detection model, with a module bce, "
                f"got {type(branch).__name__} without one"
            )
    return branches
