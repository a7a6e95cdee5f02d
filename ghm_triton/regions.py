"""The unit regions, which both backends share: their edges, and the slots of the counts.

The unit regions are M intervals of [0, 1], the range of the gradient norm, with the fp32 edges i / M. Counts and sums
have one slot per region, then one for NaN, and the last one for ignored elements.
"""

import functools

import torch
from torch import Tensor

FORGOTTEN = 1e-6  # elements: in evaluation, a smaller average counts as that of a region never seen


def state_size(bins: int, variant: str) -> int:
    """Return the size of running_counts: an average per region, followed by that of the constant 1 for "paper"."""
    return bins + 1 if variant == "paper" else bins


def slots_of_kernels(bins: int) -> int:
    """Return the slots per row of counts in the kernels: a power of two >= bins + 2, as `tl.histogram` requires."""
    return 1 << (bins + 1).bit_length()


def region_edges(bins: int, device: torch.device | str | None = None) -> Tensor:
    """Return the edges i / bins, i = 0..bins, rounded to fp32. Shape [bins + 1]."""
    return torch.arange(bins + 1, dtype=torch.float32, device=device) / bins


@functools.cache
def floor_misses_edges(bins: int) -> bool:
    """Whether floor(fp32(g * bins)) differs from the last i with g >= fp32(i / bins) for some fp32 g in [0, 1].

    The two agree for 10 and 30 bins, and differ by one beside an edge for 11, 12, 19, 20, 25, 50, 100 and others. The
    product is monotonic in g, so the edges and the numbers just below them decide.
    """
    edge = region_edges(bins, "cpu")[1:bins]
    index = torch.arange(1, bins, device="cpu")
    below = torch.nextafter(edge, torch.zeros_like(edge))
    return bool(((edge * bins).floor() != index).any() or ((below * bins).floor() != index - 1).any())
