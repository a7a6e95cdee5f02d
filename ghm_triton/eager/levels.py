"""Levels of the eager path. Everything is fp32, or fp64 for fp64 inputs. Chunks of rows (anchors) stay in the cache.

The constructor of a level counts its elements per slot: `counts`, int64 [bins + 2] (the regions, NaN, ignored). The
counts of all levels give one coefficient per slot. `scale` takes them and returns the loss and the gradient.
"""

import math
from collections.abc import Callable

import torch
from torch import Tensor

from ..options import Options
from ..population import Level, compute_dtype
from ..regions import floor_misses_edges, region_edges

BLOCK = 32  # elements that ClassIndexLevel treats as one; chunks are multiples of it


class MeasuredLevel:
    """The base of all kinds of levels."""

    def __init__(self, level: Level, options: Options):
        self.grad, self.unreduced, self.bins = options.grad, options.unreduced, options.bins
        self.nan, self.ignored = self.bins, self.bins + 1  # slots
        self.shape, device = level.input.shape, level.input.device
        self.dtype = compute_dtype(level.input.dtype)
        self.edges = torch.full((self.bins + 2,), torch.inf, dtype=self.dtype, device=device)
        self.edges[: self.bins] = region_edges(self.bins, device)[:-1]
        self.compare_edges = self.dtype == torch.float64 or floor_misses_edges(self.bins)
        self.sums = torch.zeros(self.bins + 2, dtype=torch.float64, device=device)
        self.counts = torch.zeros(self.bins + 2, dtype=torch.int64, device=device)

    def scale(self, coefficients: Tensor) -> tuple[Tensor, Tensor | None]:
        """Return (loss [], or the losses in the shape of the input for "none"; the gradient if `grad`).

        coefficients: [bins + 2] by slot, in the dtype of computation.
        """
        raise NotImplementedError

    def slots_of(self, norm: Tensor) -> Tensor:
        """Return the int32 slot of each norm. A norm above 1 (a target outside [0, 1]) is in the last region."""
        position = (norm * self.bins).clamp_(max=self.bins - 1)
        slots = position.nan_to_num_(nan=self.nan).to(torch.int32)
        if self.compare_edges:
            slots -= (norm < lookup(self.edges, slots)).to(torch.int32)
            slots += (norm >= lookup(self.edges, slots + 1)).to(torch.int32)
        return slots

    def add(self, slots: Tensor, losses: Tensor) -> None:
        """Add elements to `counts`, and their losses to `sums` unless the losses stay unreduced."""
        flat = slots.reshape(-1)
        self.counts += torch.bincount(flat, minlength=self.bins + 2)
        if not self.unreduced:
            self.sums += torch.bincount(flat, weights=losses.reshape(-1).double(), minlength=self.bins + 2)

    def total(self, coefficients: Tensor) -> Tensor:
        """Return the weighted sum of the losses, fp64 []."""
        counted = self.sums[: self.ignored]
        return torch.where(counted == 0, 0.0, counted * coefficients[: self.ignored]).sum()


class AnchorLevel(MeasuredLevel):
    """A level whose elements each have a region: its input and weights as rows, one per anchor."""

    chunk = 1 << 20  # elements: 4 MB of fp32 stay in the cache, and hide the cost of each call

    def __init__(self, level: Level, options: Options):
        super().__init__(level, options)
        self.columns = level.columns if level.input.numel() else 1
        self.input = level.input.reshape(-1, self.columns)
        self.weight = None
        if level.weight is not None:
            self.weight = level.weight.reshape(-1, 1 if level.anchor_weight else self.columns)

    def chunks(self) -> list[slice]:
        """Return slices of the rows. The elements of each but the last are a multiple of BLOCK."""
        step = BLOCK // math.gcd(BLOCK, self.columns)
        rows = max(step, self.chunk // self.columns // step * step)
        return [slice(first, min(first + rows, len(self.input))) for first in range(0, len(self.input), rows)]

    def is_ignored(self, rows: slice) -> Tensor:
        """Return bool [rows, columns], or [rows, 1] for one weight per anchor. A NaN weight ignores its element."""
        return ~(self.weight[rows] > 0)


class ElementLevel(AnchorLevel):
    """A level with one target per element. `terms`: (inputs, targets) to (gradient norm, loss, residual).

    Losses are summed per slot while they are in the cache. The gradient takes a second pass over the residuals.
    """

    chunk = 1 << 17

    def __init__(
        self, level: Level, options: Options, terms: Callable[[Tensor, Tensor], tuple[Tensor, Tensor, Tensor]]
    ):
        super().__init__(level, options)
        self.losses = self._new(self.dtype) if self.unreduced else None
        self.grads = self._new(self.dtype) if self.grad else None
        small = self.bins + 2 < 256
        self.slots = self._new(torch.uint8 if small else torch.int32) if self.grad or self.unreduced else None
        target = level.target.reshape(-1, self.columns)
        for rows in self.chunks():
            self._measure(rows, *terms(self.input[rows].to(self.dtype), target[rows].to(self.dtype)))

    def _new(self, dtype: torch.dtype) -> Tensor:
        return torch.empty(self.input.shape, dtype=dtype, device=self.input.device)

    def _measure(self, rows: slice, norm: Tensor, loss: Tensor, residual: Tensor) -> None:
        slots = self.slots_of(norm)
        if self.weight is not None:
            slots.masked_fill_(self.is_ignored(rows), self.ignored)
        self.add(slots, loss)
        if self.slots is not None:
            self.slots[rows] = slots
        if self.grads is not None:
            self.grads[rows] = residual
        if self.losses is not None:
            self.losses[rows] = loss

    def scale(self, coefficients: Tensor) -> tuple[Tensor, Tensor | None]:
        """Return the loss and the gradient."""
        for rows in self.chunks() if self.slots is not None else ():
            slots = self.slots[rows].to(torch.int32)
            coefficient = lookup(coefficients, slots)
            for values in (self.losses, self.grads):
                if values is not None:
                    values[rows] *= coefficient
                    if self.weight is not None:
                        values[rows].masked_fill_(slots == self.ignored, 0.0)
        grads = None if self.grads is None else self.grads.view(self.shape)
        if self.losses is not None:
            return self.losses.view(self.shape), grads
        return self.total(coefficients), grads


def lookup(table: Tensor, index: Tensor) -> Tensor:
    """Return `table[index]`."""
    return table.index_select(0, index.reshape(-1)).view(index.shape)
