"""Coefficients and moving average from the counts per region. The equations are in kernels/harmonize.py.

The numbers are few, and Python computes with them faster than with tensors of their size.
"""

import math

import torch
from torch import Tensor

from ..options import Options
from ..regions import FORGOTTEN


def compute_coefficients(
    density: list[float], total: float, running_counts: Tensor | None, options: Options
) -> tuple[list[float], Tensor | None]:
    """Compute the coefficients [bins + 2] by slot, and the new running_counts if there are any and `update`.

    density: [bins], elements in the regions. total: the number of elements N.
    """
    size = max(total, 1.0)  # NaN stays NaN
    weighted = size if options.mmdet else sum(density)  # NaN is in no region
    smooth, state = _average(density, total, running_counts, options)
    if not options.mean:
        scale = options.loss_weight * weighted
    elif options.mmdet:
        scale = options.loss_weight * size / (size + torch.finfo(torch.float32).eps)
    else:
        scale = options.loss_weight * (weighted / size)
    rest, exponent = 1 - options.exponent, options.exponent
    shared = sum([s**rest for s, r in zip(smooth, density) if r > 0 or not options.mmdet])
    weights = [scale / (s**exponent * shared) if r > 0 else 0.0 for s, r in zip(smooth, density)]
    return [*weights, scale, 0.0], state


def _average(
    density: list[float], total: float, running_counts: Tensor | None, options: Options
) -> tuple[list[float], Tensor | None]:
    """Return (the density that gives the weights, the new state or None)."""
    if running_counts is None:
        return density, None
    old, momentum = running_counts.tolist(), options.momentum
    age = 1.0 if options.mmdet else old.pop()
    if not options.update:
        known = [s >= FORGOTTEN or (s > 0 and r == 0) for s, r in zip(old, density)]
        return [_ratio(s, age) if k else r for k, s, r in zip(known, old, density)], None
    new = [momentum * s + (1 - momentum) * r if r > 0 or not options.mmdet else s for s, r in zip(old, density)]
    if not options.mmdet:
        new.append(momentum * age + (1 - momentum))
    state = torch.tensor(new, dtype=running_counts.dtype, device=running_counts.device)
    new = state.tolist()  # rounded as later calls read it
    age = 1.0 if options.mmdet else new.pop()
    return [_ratio(s, age) for s in new], state if total > 0 else running_counts.clone()


def _ratio(count: float, age: float) -> float:
    """Return the average. NaN for a state that no call can leave behind."""
    return count / age if count >= 0 and age > 0 else math.nan
