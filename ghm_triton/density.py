"""The gradient density in the state of a loss, and the harmonizing weights that follow from it."""

from typing import NamedTuple

import torch
from torch import Tensor

from .conventions import region_edges
from .options import Options


class Density(NamedTuple):
    """The unit regions of the gradient norm. fp32 tensors on the device of the loss.

    Attributes:
        edges: Shape [bins + 1]. Region j holds the gradient norms from edges[j] up to edges[j + 1].
        counts: Shape [bins]. S_j, the moving average of the number of elements in region j.
        weights: Shape [bins]. beta_j, the harmonizing weight of each element in region j; 0 where S_j is 0. For the
            variant "mmdet", these are the weights of a call with elements in every region with S_j > 0. In a call with
            no elements in some of these regions, the weights are larger.
        shares: Shape [bins]. beta_j S_j / N, the share of region j in the total weight.
    """

    edges: Tensor
    counts: Tensor
    weights: Tensor
    shares: Tensor


@torch.no_grad()
def density_of(running_counts: Tensor, options: Options) -> Density:
    """The density in the state of a loss. It does not synchronize with a GPU."""
    state = running_counts.double()
    counts = state if options.mmdet else state[:-1] / state[-1].clamp(min=torch.finfo(torch.float32).tiny)
    found = counts > 0
    share = torch.where(found, counts ** (1 - options.exponent), 0.0)
    empty_regions = (~found).sum() if options.exponent == 1 and not options.mmdet else 0  # the paper divides by M
    shares = share / (share.sum() + empty_regions).clamp(min=torch.finfo(torch.float32).tiny)
    total = counts.sum()
    weights = torch.where(found, shares * total / torch.where(found, counts, 1.0), 0.0)
    edges = region_edges(options.bins, running_counts.device)
    return Density(edges, counts.float(), weights.float(), shares.float())
