"""The unit regions of the gradient norm: M intervals of [0, 1] with the fp32 edges i / M."""

import functools

import torch


def region_edges(bins: int, device: torch.device | str | None = None) -> torch.Tensor:
    """The edges i / bins, i = 0..bins, rounded to fp32. Shape [bins + 1]."""
    return torch.arange(bins + 1, dtype=torch.float32, device=device) / bins


@functools.cache
def floor_misses_edges(bins: int) -> bool:
    """Whether floor(fp32(g * bins)) differs from the last i with g >= fp32(i / bins) for some fp32 g in [0, 1].

    It is the same for 10 and 30 bins, and off by one beside an edge for 11, 12, 19, 20, 25, 50, 100 and others. The
    product is monotonic in g, so that looking at the edges and the numbers just below them decides.
    """
    edge = region_edges(bins, "cpu")[1:bins]
    index = torch.arange(1, bins, device="cpu")
    below = torch.nextafter(edge, torch.zeros_like(edge))
    return bool(((edge * bins).floor() != index).any() or ((below * bins).floor() != index - 1).any())
