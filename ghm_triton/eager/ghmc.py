"""GHM-C: g = |p - t|, CE(x, t), p - t for p = sigmoid(x) (eq. 3)."""

from collections.abc import Iterator
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn.functional import softplus

from ..options import Options
from ..population import Level
from .levels import BLOCK, AnchorLevel, ElementLevel, lookup
from .targets import check_targets

EXACT = 40.0  # from here on softplus(x) is x in float64; at PyTorch's default threshold of 20 it is off by 1e-10
ACCURATE = 0.5  # up to this g, -log(1 - g) of a rounded g is as accurate as g


def measure_ghmc(level: Level, options: Options) -> AnchorLevel:
    """Count the elements of a level per slot."""
    if not options.mmdet:  # its formulas treat any other index as background
        check_targets(level)
    if level.class_index:
        return ClassIndexLevel(level, options)
    return ElementLevel(level, options, _bce_terms)


def _bce_terms(x: Tensor, t: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Return (gradient norm, CE(x, t), p - t) for one target per element."""
    p = x.sigmoid()
    slope = (x >= 0).to(x.dtype) - t
    linear = (slope * x).masked_fill_(slope == 0, 0.0)  # an infinite logit on the right side costs nothing
    residual = (1 - t) * p - t * (-x).sigmoid()  # p - t without its cancellation at t = 1
    return (p - t).abs_(), x.abs().neg_().exp_().log1p_().add_(linear), residual


class _Chunk(NamedTuple):
    """Some rows of a level, with the positions that need a second look.

    Attributes:
        rows: Of the input.
        elements: Flat positions, with padding to whole blocks.
        positives: Flat positions from the first element of the chunk on, of counted positives.
        hard: Blocks with elements that are not counted negatives of region 0, or ignored.
        slots: Of the elements of hard blocks, [hard, BLOCK].
        extreme: Blocks with a norm above ACCURATE.
    """

    rows: slice
    elements: slice
    positives: Tensor
    hard: Tensor
    slots: Tensor
    extreme: Tensor


class ClassIndexLevel(AnchorLevel):
    """A level with class indices, which are never expanded.

    A block of BLOCK elements is easy if each of them is a counted negative of region 0, or ignored. Nearly all blocks
    of a trained classifier are easy and take one coefficient. The others ("hard") are gathered and scaled element by
    element. `scale` overwrites the norms, so it can be called only once.
    """

    def __init__(self, level: Level, options: Options):
        super().__init__(level, options)
        size = self.input.numel()
        padding = -size % BLOCK
        self.norm = torch.empty(size + padding, dtype=self.dtype, device=self.input.device)
        self.norm[size:] = 0
        self.counts[0] -= padding
        self.found = [self._measure(*chunk) for chunk in self._split(self._positives(level.target))]

    def _positives(self, target: Tensor) -> Tensor:
        """Return the flat positions of the counted positives, ascending."""
        label = target.reshape(-1)[: len(self.input)].long()  # none where there are no classes
        row = ((label >= 0) & (label < self.columns)).nonzero().view(-1)
        positive = row * self.columns + label[row]
        if self.weight is None:
            return positive
        weight = self.weight.view(-1)[row] if self.weight.shape[1] == 1 else self.weight.reshape(-1)[positive]
        return positive[weight > 0]

    def _split(self, positive: Tensor) -> Iterator[tuple[slice, slice, Tensor]]:
        """Yield (rows, elements, positives) of each chunk."""
        chunks = self.chunks()
        bounds = torch.tensor([rows.start * self.columns for rows in chunks] + [self.input.numel()])
        splits = torch.searchsorted(positive, bounds.to(positive.device)).tolist()
        for rows, low, high in zip(chunks, splits, splits[1:]):
            first, end = rows.start * self.columns, rows.stop * self.columns
            yield rows, slice(first, end + -end % BLOCK), positive[low:high] - first

    def _measure(self, rows: slice, elements: slice, positives: Tensor) -> _Chunk:
        """Write the norms of a chunk and count them."""
        norm = self.norm[elements]
        inside = norm[: (rows.stop - rows.start) * self.columns].view(-1, self.columns)
        if self.input.dtype == self.dtype:
            torch.sigmoid(self.input[rows], out=inside)
        else:
            inside.copy_(self.input[rows]).sigmoid_()
        norm[positives] = 1 - norm[positives]
        if self.weight is not None:
            ignored = self.is_ignored(rows)
            inside.masked_fill_(ignored, 0.0)
            number = ignored.sum() * (self.columns // ignored.shape[1])
            self.counts[0] -= number
            self.counts[self.ignored] += number
        blocks = norm.view(-1, BLOCK)
        peak = blocks.amax(1)
        extreme = (~(peak <= ACCURATE)).nonzero().view(-1)  # a NaN is extreme, and hard
        peak[positives // BLOCK] = torch.inf
        hard = (~(peak < self.edges[1])).nonzero().view(-1)
        slots = self.slots_of(_gather(blocks, hard))
        self.counts += torch.bincount(slots.view(-1), minlength=self.bins + 2)
        self.counts[0] += (len(blocks) - len(hard)) * BLOCK
        return _Chunk(rows, elements, positives, hard, slots, extreme)

    def scale(self, coefficients: Tensor) -> tuple[Tensor, Tensor | None]:
        """Return the loss and the gradient."""
        total = torch.zeros((), dtype=torch.float64, device=self.input.device)
        longest = max((chunk.elements.stop - chunk.elements.start for chunk in self.found), default=0)
        losses = self.norm.new_empty(len(self.norm) if self.unreduced else longest)
        for chunk in self.found:
            norm = self.norm[chunk.elements]
            x = self.input[chunk.rows].reshape(-1)
            of_positives = x[chunk.positives].to(self.dtype).neg_()
            loss = self._losses(chunk, x, norm, losses[chunk.elements] if self.unreduced else losses[: len(norm)])
            loss[chunk.positives] = softplus(of_positives, threshold=EXACT)
            coefficient = lookup(coefficients, chunk.slots)
            if self.unreduced:
                _scale(loss, chunk.hard, coefficient, coefficients[0])
            else:
                total += _weighted_sum(loss, chunk.hard, coefficient, coefficients[0])
            if self.grad:
                norm[chunk.positives] = -of_positives.sigmoid_()
                _scale(norm, chunk.hard, coefficient, coefficients[0])
            del coefficient  # the next chunk needs the memory
        size = self.input.numel()
        return (
            losses[:size].view(self.shape) if self.unreduced else total,
            self.norm[:size].view(self.shape) if self.grad else None,
        )

    def _losses(self, chunk: _Chunk, x: Tensor, norm: Tensor, output: Tensor) -> Tensor:
        """Compute softplus(x), the loss of negatives: -log(1 - g) where 1 - g is accurate. 0 for ignored elements."""
        blocks = output.view(-1, BLOCK)
        if len(x) < len(norm):
            x = torch.nn.functional.pad(x, (0, len(norm) - len(x)), value=-torch.inf)
        if 4 * len(chunk.extreme) > len(blocks):  # gathering them would cost more than it saves
            torch.ops.aten.softplus.out(x.to(self.dtype), 1.0, EXACT, out=output)
            return output if self.weight is None else output.masked_fill_(norm == 0, 0.0)
        torch.neg(norm, out=output).log1p_().neg_()
        exact = softplus(x.view(-1, BLOCK).index_select(0, chunk.extreme).to(self.dtype), threshold=EXACT)
        if self.weight is not None:
            exact.masked_fill_(norm.view(-1, BLOCK).index_select(0, chunk.extreme) == 0, 0.0)
        blocks.index_copy_(0, chunk.extreme, exact)
        return output


def _gather(blocks: Tensor, chosen: Tensor) -> Tensor:
    return blocks if len(chosen) == len(blocks) else blocks.index_select(0, chosen)


def _scale(values: Tensor, hard: Tensor, coefficient: Tensor, easy: Tensor) -> None:
    """Multiply in place by one coefficient per element of the hard blocks, and by `easy` elsewhere."""
    blocks = values.view(-1, BLOCK)
    if len(hard) == len(blocks):
        blocks.mul_(coefficient)
    else:
        scaled = blocks.index_select(0, hard).mul_(coefficient)
        blocks.mul_(easy).index_copy_(0, hard, scaled)


def _weighted_sum(values: Tensor, hard: Tensor, coefficient: Tensor, easy: Tensor) -> Tensor:
    """Return the sum of the values after :func:`_scale`. `values` is undefined afterward."""
    blocks = values.view(-1, BLOCK)
    if len(hard) == len(blocks):
        return blocks.mul_(coefficient).sum()
    scaled = blocks.index_select(0, hard).mul_(coefficient)
    return scaled.sum() + easy * blocks.index_fill_(0, hard, 0.0).sum()
