"""GHM-C in the criterion of a YOLO model.

The criterion computes the binary cross entropy of all class scores with its module `bce`, adds up the values, and
divides the sum by the sum of the target scores. :class:`HarmonizedBCE` replaces this module. Class weights, divisor,
and gain stay.
"""

import torch
from torch import Tensor, nn
from torch.nn import functional
from ultralytics.utils.loss import v8DetectionLoss

from ghm_triton import GHMCLoss

BRANCHES = ("one2many", "one2one")  # of the criterion of an end-to-end model


class HarmonizedBCE(nn.Module):
    r"""GHM-C per element, scaled so that the sum is the sum of binary cross entropy.

    .. math:: \ell_i = c \, \beta_i \, CE(x_i, t_i), \quad c = \sum_k CE(x_k, t_k) / \sum_k \beta_k CE(x_k, t_k)

    with beta as in :func:`ghm_triton.ghmc_loss` (Li, Liu, Wang, AAAI 2019, eq. 9). No gradient flows through c and
    beta. The loss has the value of binary cross entropy; the gradient is distributed differently over the elements.

    Where gradients are disabled, as in validation, the values are those of binary cross entropy element by element, and
    the state stays as it is.

    Args:
        bins, momentum, exponent: As for :func:`ghm_triton.ghmc_loss`.
        process_group: Take the density over all processes of this group. Each process has its own c.

    Raises:
        TypeError, ValueError: An argument is not as described.

    Example:
        >>> bce = HarmonizedBCE(bins=30, momentum=0.75, exponent=0.5)
        >>> bce(torch.randn(2, 189, 10, requires_grad=True), torch.rand(2, 189, 10)).sum().backward()
    """

    def __init__(
        self,
        *,
        bins: int,
        momentum: float,
        exponent: float,
        process_group: "torch.distributed.ProcessGroup | None" = None,
    ):
        super().__init__()
        options = dict(bins=bins, momentum=momentum, exponent=exponent, process_group=process_group)
        self.ghmc = GHMCLoss(reduction="none", **options)

    def forward(self, logits: Tensor, target: Tensor) -> Tensor:
        """Compute the losses, fp32, of the shape of `logits`. `target` has this shape and values in [0, 1]."""
        with torch.no_grad():
            cross_entropy = functional.binary_cross_entropy_with_logits(
                logits.float(), target.float(), reduction="none"
            )
        if not torch.is_grad_enabled():
            return cross_entropy
        harmonized = self.ghmc(logits, target)
        total = harmonized.detach().sum().clamp(min=torch.finfo(torch.float32).tiny)
        return harmonized * (cross_entropy.sum() / total)


def harmonize_criterion(criterion, **options):
    """Replace binary cross entropy by :class:`HarmonizedBCE`, with its own density for each branch.

    Args:
        criterion: The result of `init_criterion` of a detection model. It is changed and returned.
        options: As for :class:`HarmonizedBCE`.

    Raises:
        TypeError: `criterion` is not that of a detection model.
    """
    for branch in _branches(criterion).values():
        branch.bce = HarmonizedBCE(**options).to(branch.device)
    return criterion


def losses_of_branches(criterion) -> dict[str, GHMCLoss]:
    """The losses that hold the densities: "one2many" and "one2one", or "detect" if there is only one branch."""
    return {name: branch.bce.ghmc for name, branch in _branches(criterion).items()}


def _branches(criterion) -> dict[str, v8DetectionLoss]:
    branches = {name: getattr(criterion, name) for name in BRANCHES if hasattr(criterion, name)}
    branches = branches or {"detect": criterion}
    for branch in branches.values():
        if not isinstance(branch, v8DetectionLoss):
            raise TypeError(f"criterion must be that of a YOLO detection model, got {type(branch).__name__}")
    return branches
