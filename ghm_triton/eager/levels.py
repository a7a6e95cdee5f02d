"""Levels of the eager path. Everything is fp32, or fp64 for fp64 inputs. Chunks of rows (anchors) stay in the cache.

The constructor of a level counts its elements per slot: `counts`, [bins + 2] (the regions, NaN, ignored). The counts of
all levels give one coefficient per slot. `scale` takes them and returns the loss and the gradient.
"""

import functools
import math
from collections.abc import Iterator
from typing import NamedTuple

import torch
from torch import Tensor

from ..options import Options
from ..population import Level, compute_dtype
from ..regions import floor_misses_edges, region_edges

BLOCK = 32  # elements that are easy or hard together
ACCURATE = 1 / 30  # up to this g, -log(1 - g) of a rounded g, or of BLOCK of them, is as accurate as g
SERIAL = 1 << 14  # elements: PyTorch adds so few in one thread, and so in the same order for any number of threads
ROW = 1024  # elements of longer sums that are added first


class MeasuredLevel:
    """The base of all kinds of levels."""

    def __init__(self, level: Level, options: Options):
        self.grad, self.unreduced, self.bins = options.grad, options.unreduced, options.bins
        self.shape = level.input.shape
        self.dtype = compute_dtype(level.input.dtype)
        self.compare_edges = self.dtype == torch.float64 or floor_misses_edges(self.bins)
        self.counts = [0] * (self.bins + 2)

    def scale(self, coefficients: Tensor) -> tuple[float | Tensor, Tensor | None]:
        """Return (loss, or the losses in the shape of the input for "none"; the gradient if `grad`).

        coefficients: [bins + 2] by slot, in the dtype of computation. A second call would scale once more.
        """
        raise NotImplementedError

    def slots_of(self, norm: Tensor) -> Tensor:
        """Return the int32 slot of each norm. A norm above 1 (a target outside [0, 1]) is in the last region."""
        position = (norm * self.bins).clamp_(max=self.bins - 1)
        slots = position.nan_to_num_(nan=self.bins).to(torch.int32)
        if self.compare_edges:
            edges = _edges(self.bins, self.dtype, norm.device)
            slots -= (norm < lookup(edges, slots)).to(torch.int32)
            slots += (norm >= lookup(edges, slots + 1)).to(torch.int32)
        return slots

    def count(self, slots: Tensor) -> None:
        """Add elements to `counts`."""
        found = torch.bincount(slots.reshape(-1), minlength=self.bins + 2).tolist()
        self.counts = [a + b for a, b in zip(self.counts, found)]


class Chunk(NamedTuple):
    """What a chunk of a level keeps from counting until the coefficients are known.

    Attributes:
        elements: Flat positions, with padding to whole blocks if some of them are easy.
        hard: The blocks whose elements are scaled one by one, or None if all elements are.
        slots, losses, residuals: Of the hard elements, flat.
    """

    elements: slice
    hard: Tensor | None
    slots: Tensor
    losses: Tensor
    residuals: Tensor


class ElementLevel(MeasuredLevel):
    """A level whose elements each have a region.

    In large levels, a block of BLOCK elements is easy if all of them are in region 0, with the loss -log(1 - g). Nearly
    all blocks of a trained classifier are easy and take one coefficient. The others ("hard") are gathered and scaled
    one by one; if they are many, or the level is small, all elements of a chunk are.

    Ignored elements get the gradient norm and the loss 0, and are not counted.

    Attributes:
        residuals: d loss / d input of the elements, flat, with padding to whole blocks; after `scale` the gradient.
        losses: The losses of the elements for "none", likewise; else None.
    """

    chunk = 1 << 19  # elements: 2 MB of fp32 stay in the cache and in the heap, and hide the cost of each call
    small = 1 << 15  # elements: up to here, finding the hard blocks takes longer than it saves
    can_be_easy = True

    def __init__(self, level: Level, options: Options):
        super().__init__(level, options)
        size = level.input.numel()
        self.columns = level.columns if size else 1
        self.by_block = self.can_be_easy and size > self.small
        whole = size + -size % BLOCK if self.by_block else size
        self.residuals = torch.empty(whole, dtype=self.dtype, device=level.input.device)
        self.losses = torch.empty_like(self.residuals) if self.unreduced else None
        self.easy_loss = 0.0
        self.found = [self.measure(*chunk) for chunk in self._chunks(level)]

    def measure(self, input: Tensor, target: Tensor, ignored: Tensor | None, elements: slice) -> Chunk:
        """Count a chunk, and compute its losses and residuals.

        Args:
            input: Flat.
            target: Flat, one per element or one per anchor.
            ignored: bool [anchors, columns] or [anchors, 1], or None if all elements count.
            elements: The flat positions in the level.
        """
        raise NotImplementedError

    def _chunks(self, level: Level) -> Iterator[tuple[Tensor, Tensor, Tensor | None, slice]]:
        """Yield the arguments of :meth:`measure`. All chunks but the last are whole blocks, and whole anchors."""
        input, target, weight = level.input.reshape(-1), level.target.reshape(-1), level.weight
        size, step = len(input), math.lcm(BLOCK, self.columns)
        step *= max(1, self.chunk // step)
        if weight is not None:
            weight = weight.reshape(-1, 1 if level.anchor_weight else self.columns)
        for first in range(0, size, step):
            elements = slice(first, min(first + step, size))
            rows = slice(first // self.columns, elements.stop // self.columns)
            ignored = None if weight is None else self._ignored(weight[rows])
            yield part(input, elements), part(target, rows if level.class_index else elements), ignored, elements

    def _ignored(self, weight: Tensor) -> Tensor:
        """Return which elements do not count, and subtract them from region 0. A NaN weight ignores its element."""
        ignored = ~(weight > 0)
        self.counts[0] -= int(ignored.sum()) * (self.columns // ignored.shape[1])
        return ignored

    def padded(self, values: Tensor, fill: float) -> Tensor:
        """Return the values of a chunk, flat, in whole blocks if these are looked at."""
        missing = -len(values) % BLOCK if self.by_block else 0
        return torch.cat([values, values.new_full((missing,), fill)]) if missing else values

    def of(self, elements: slice, values: Tensor) -> Tensor:
        """Return those of the values of all elements, flat, that belong to a chunk, with its padding."""
        stop = elements.stop + -elements.stop % BLOCK if self.by_block else elements.stop
        return part(values, slice(elements.start, stop))

    def hard_blocks(self, peak: Tensor) -> Tensor | None:
        """Return the hard blocks, or None if all elements are looked at. peak: the largest norm of each block."""
        hard = (~(peak < _easy_below(self.bins))).nonzero().view(-1)  # a NaN is hard
        return None if 2 * len(hard) > len(peak) else hard

    def keep(self, elements: slice, hard: Tensor | None, slots: Tensor, losses: Tensor, residuals: Tensor) -> Chunk:
        """Count the hard elements, of which the others are given, flat."""
        self.count(slots)
        if hard is None and self.losses is not None:
            losses = part(self.losses, elements).copy_(losses)
        return Chunk(elements, hard, slots, losses, residuals)

    def add_easy(self, elements: slice, hard: Tensor, norm: Tensor) -> None:
        """Count the easy elements of a chunk, and add up or store their losses. norm: flat, with padding."""
        self.counts[0] += elements.stop - elements.start - BLOCK * len(hard)
        if self.losses is None:
            self.easy_loss -= _sum_of_log1p(norm.view(-1, BLOCK).index_fill(0, hard, 0.0).view(-1))
        else:
            self.of(elements, self.losses).copy_(norm.neg().log1p_().neg_())

    def scale(self, coefficients: Tensor) -> tuple[float | Tensor, Tensor | None]:
        """Return the loss and the gradient."""
        total, whole = 0.0, slice(0, self.shape.numel())
        if self.easy_loss:
            total = self.easy_loss * coefficients[0].item()
        for chunk in self.found:
            coefficient = coefficients.index_select(0, chunk.slots)
            chunk.losses.mul_(coefficient)
            if self.losses is None:
                total += total_of(chunk.losses)
            elif chunk.hard is not None:
                _put(self.of(chunk.elements, self.losses), chunk.hard, chunk.losses, coefficients[0])
            if self.grad:
                chunk.residuals.mul_(coefficient)
                if chunk.hard is not None:
                    _put(self.of(chunk.elements, self.residuals), chunk.hard, chunk.residuals, coefficients[0])
        losses = total if self.losses is None else part(self.losses, whole).view(self.shape)
        return losses, part(self.residuals, whole).view(self.shape) if self.grad else None


def _put(values: Tensor, hard: Tensor, of_hard: Tensor, easy: Tensor) -> None:
    """Multiply the values of a chunk by the coefficient of easy elements, and replace those of the hard ones."""
    values.mul_(easy).view(-1, BLOCK).index_copy_(0, hard, of_hard.view(-1, BLOCK))


def _sum_of_log1p(norm: Tensor) -> float:
    """Return the sum of log(1 - g), with a logarithm for BLOCK elements: log(1 - a) + log(1 - b) = log(1 - c).

    c = a + b (1 - a) has the accuracy of a and b.
    """
    one = norm.new_ones(())
    for _ in range(BLOCK.bit_length() - 1):
        a, b = norm.view(2, -1)
        norm = torch.lerp(a, one, b)
    return total_of(norm.neg_().log1p_())


def total_of(values: Tensor) -> float:
    """Return the sum of flat values, the same for any number of threads."""
    if len(values) <= SERIAL:
        return values.sum().item()
    rows = len(values) // ROW
    return values[: rows * ROW].view(rows, ROW).sum(1).sum().item() + values[rows * ROW :].sum().item()


def part(values: Tensor, at: slice) -> Tensor:
    """Return `values[at]`, or without another view all values."""
    return values if at.stop - at.start == len(values) else values[at]


def select(values: Tensor, hard: Tensor | None, elements: slice) -> Tensor:
    """Return the values of the hard blocks, flat, or those of all elements without padding, given those of a chunk."""
    if hard is None:
        return part(values, slice(0, elements.stop - elements.start))
    return values.view(-1, BLOCK).index_select(0, hard).view(-1)


def lookup(table: Tensor, index: Tensor) -> Tensor:
    """Return `table[index]`."""
    return table.index_select(0, index.reshape(-1)).view(index.shape)


@functools.cache
def _edges(bins: int, dtype: torch.dtype, device: torch.device) -> Tensor:
    """Return the lower edge of each slot and of the one after the last; inf where there is none."""
    edges = torch.full((bins + 2,), torch.inf, dtype=dtype, device=device)
    edges[:bins] = region_edges(bins, device)[:-1]
    return edges


@functools.cache
def _easy_below(bins: int) -> float:
    return min(region_edges(bins, "cpu")[1].item(), ACCURATE)
