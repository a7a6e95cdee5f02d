"""GHM-C with the exact gradient density, the paper's "Standard" (Li, Liu, Wang, AAAI 2019, eq. 4 to 6).

    GD(g) = 1 / l(g) * #{k : g - eps/2 <= g_k < g + eps/2},    l(g) = min(g + eps/2, 1) - max(g - eps/2, 0)
    beta_i = N / GD(g_i),    eps = 1 / M

Unit regions approximate it. The count takes O(N^2) as written, and O(N log N) here: two binary searches in the sorted
norms. This is a reference in eager PyTorch for any device, not a public loss.
"""

import torch
import torch.nn.functional as F
from torch import Tensor, nn


def count_neighbors(ordered: Tensor, norm: Tensor, half_width: float) -> Tensor:
    """Count the elements of the sorted `ordered` in [norm - half_width, norm + half_width), for each `norm`."""
    return torch.searchsorted(ordered, norm + half_width) - torch.searchsorted(ordered, norm - half_width)


def region_length(norm: Tensor, half_width: float) -> Tensor:
    """Compute l(g), the part of the window around each gradient norm that lies in [0, 1]."""
    return (norm + half_width).clamp(max=1) - (norm - half_width).clamp(min=0)


def exact_weights(norm: Tensor, counted: Tensor | None = None, *, bins: int = 30) -> Tensor:
    """Compute beta of each element; 0 for elements that are not counted.

    Args:
        norm: Gradient norms in [0, 1], floating point, any shape.
        counted: Whether an element counts, bool, the shape of `norm`. None: all do.
        bins: M. The window of an element has the width 1 / M.

    Example:
        >>> exact_weights(torch.tensor([0.1, 0.12, 0.9]), bins=2)
        tensor([0.6000, 0.6200, 1.8000])
    """
    half_width = 0.5 / bins
    if counted is None:
        counted = torch.ones_like(norm, dtype=torch.bool)
    ordered = norm.masked_fill(~counted, torch.inf).flatten().sort().values  # no window reaches infinity
    neighbors = count_neighbors(ordered, norm, half_width).clamp(min=1)
    weights = counted.sum() * region_length(norm, half_width) / neighbors
    return weights.masked_fill(~counted, 0)


def exact_ghmc_loss(input: Tensor, target: Tensor, counted: Tensor | None = None, *, bins: int = 30) -> Tensor:
    """Compute GHM-C with exact weights: the mean over the counted elements. No gradient flows through the weights.

    Args:
        input: Logits, floating point, any shape. 16-bit logits are converted to fp32.
        target: Values in [0, 1], the shape of `input`.
        counted, bins: As for :func:`exact_weights`.
    """
    input = input if input.dtype == torch.float64 else input.float()
    target = target.to(input.dtype)
    weights = exact_weights((input.detach().sigmoid() - target).abs(), counted, bins=bins)
    losses = F.binary_cross_entropy_with_logits(input, target, reduction="none")
    if counted is None:
        return (losses * weights).mean()
    return (losses.masked_fill(~counted, 0) * weights).sum() / counted.sum().clamp(min=1)


class ExactGHMCLoss(nn.Module):
    """:func:`exact_ghmc_loss` for the head of a detector, without a moving average.

    Args:
        bins: M.
    """

    def __init__(self, bins: int = 30):
        super().__init__()
        self.bins = bins

    def forward(self, logits: Tensor, labels: Tensor, counted: Tensor) -> Tensor:
        """Take logits [images, anchors, classes]; labels, -1 for background, and counted [images, anchors]."""
        target = F.one_hot(labels.clamp(min=0), logits.shape[-1]) * (labels >= 0)[..., None]
        counted = counted.bool()[..., None].expand(logits.shape)
        return exact_ghmc_loss(logits, target, counted, bins=self.bins)
