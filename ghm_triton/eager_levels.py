"""What the eager losses do to one level of the population: gradient norms, regions, losses and residuals.

Each class is built with (input, target, weight or None, ..., grad=, unreduced=) and then asked, in this order, for

    count()                elements by slot, int64 [bins + 2]
    finish(coefficients)   (loss, gradient): the sum of coefficient_j * loss, fp64 [], or these numbers in the input's
                           shape if `unreduced`; and coefficient_j * d loss / d input, or None unless `grad`

Slots: the regions 0..bins-1, then `bins` for NaN (counted, in no region) and `bins + 1` for ignored elements. Within a
level there is one more, for g = 1, which floor(g * bins) puts behind the last region, to which it belongs.
Everything is fp32, or fp64 for fp64 inputs. Chunks of rows (anchors) stay in the cache.
"""

import math

import torch
import torch.nn.functional as F

from .regions import floor_misses_edges, region_edges

BLOCK = 32  # elements that ClassIndexLevel judges together
ACCURATE = 0.9  # up to this g the loss -log(1 - g) of fp32 g, itself good to 1e-7, is good to 5e-7


class _Level:
    chunk = 1 << 20  # elements: few passes over 4 MB of fp32, and enough of them to hide the cost of a call

    def __init__(
        self,
        input: torch.Tensor,
        target: torch.Tensor,
        weight: torch.Tensor | None,
        bins: int,
        *,
        grad: bool,
        unreduced: bool,
    ):
        self.grad, self.unreduced = grad, unreduced
        self.shape = input.shape
        by_anchor = target.dim() < input.dim() or (weight is not None and weight.dim() < input.dim())
        self.columns = input.shape[-1] if by_anchor and input.numel() else 1
        self.input = input.reshape(-1, self.columns)
        self.weight = None
        if weight is not None:
            self.weight = weight.reshape(-1, self.columns if weight.dim() == input.dim() else 1)
        self.bins = bins
        self.dtype = compute_dtype(input.dtype)
        self.edges = region_edges(bins, input.device).to(self.dtype)
        self.compare_edges = self.dtype == torch.float64 or floor_misses_edges(bins)

    def _chunks(self):
        """Slices of the rows; but for the last, their elements are multiples of BLOCK."""
        step = BLOCK // math.gcd(BLOCK, self.columns)
        rows = max(step, self.chunk // self.columns // step * step)
        return [slice(first, min(first + rows, len(self.input))) for first in range(0, len(self.input), rows)]

    def _new(self, dtype):
        return torch.empty(self.input.shape, dtype=dtype, device=self.input.device)

    def _slots(self, norm: torch.Tensor, has_nan: bool) -> torch.Tensor:
        """int32 slot of each gradient norm in [0, 1], in the order of _table."""
        nan = norm.isnan() if has_nan else None
        slots = ((norm.nan_to_num(0.0) if has_nan else norm) * self.bins).to(torch.int32)
        if self.compare_edges:
            slots.clamp_(max=self.bins - 1)
            slots -= (norm < _lookup(self.edges, slots)).to(torch.int32)
            slots += (norm >= _lookup(self.edges, slots + 1)).to(torch.int32)
        return slots.masked_fill_(nan, self.bins + 1) if has_nan else slots

    def _count(self, slots: torch.Tensor) -> torch.Tensor:
        """Elements by slot [bins + 2] from slots in the order of _table."""
        counts = torch.bincount(slots.reshape(-1), minlength=self.bins + 3)
        counts[self.bins - 1] += counts[self.bins]
        return torch.cat([counts[: self.bins], counts[self.bins + 1 :]])

    def _table(self, coefficients: torch.Tensor) -> torch.Tensor:
        """Coefficients [bins + 3]: the regions, the last one again for g = 1, NaN, ignored."""
        return torch.cat([coefficients[: self.bins], coefficients[self.bins - 1 :]])


def compute_dtype(dtype: torch.dtype) -> torch.dtype:
    return torch.float64 if dtype == torch.float64 else torch.float32


def _lookup(table: torch.Tensor, index: torch.Tensor) -> torch.Tensor:
    return table.index_select(0, index.reshape(-1)).view(index.shape)


class _ElementLevel(_Level):
    """Element by element. Subclasses define _terms(rows), which gives (gradient norm, loss, residual).

    Losses are added up by region while they are in the cache: one pass, and for the gradient one over what it left.
    """

    chunk = 1 << 17

    def __init__(self, input, target, weight, bins, **wanted):
        super().__init__(input, target, weight, bins, **wanted)
        self.target = target.reshape(-1, self.columns)
        self.losses = self._new(self.dtype) if self.unreduced else None
        self.grads = self._new(self.dtype) if self.grad else None
        self.slots = self._new(torch.uint8 if bins + 2 < 256 else torch.int32) if self.grad or self.unreduced else None
        self.sums = torch.zeros(bins + 3, dtype=torch.float64, device=input.device)

    def count(self):
        counts = torch.zeros(self.bins + 2, dtype=torch.int64, device=self.input.device)
        for rows in self._chunks():
            norm, loss, residual = self._terms(rows)
            slots = self._slots(norm.clamp_(max=1), has_nan=True)  # above 1 for targets outside of [0, 1]
            if self.weight is not None:
                slots.masked_fill_(~(self.weight[rows] > 0), self.bins + 2)
            counts += self._count(slots)
            if self.slots is not None:
                self.slots[rows] = slots
            if self.grads is not None:
                self.grads[rows] = residual
            if self.losses is not None:
                self.losses[rows] = loss
            else:
                self.sums += torch.bincount(
                    slots.reshape(-1), weights=loss.reshape(-1).double(), minlength=self.bins + 3
                )
        return counts

    def finish(self, coefficients):
        table = self._table(coefficients)
        for rows in self._chunks() if self.slots is not None else ():
            slots = self.slots[rows].to(torch.int32)
            coefficient = _lookup(table, slots)
            ignored = None if self.weight is None else slots == self.bins + 2
            for values in (self.losses, self.grads):
                if values is not None:
                    values[rows] *= coefficient
                    if ignored is not None:
                        values[rows].masked_fill_(ignored, 0.0)
        counted = self.sums[: self.bins + 2]
        total = torch.where(counted == 0, 0.0, counted * table[: self.bins + 2]).sum()
        return self._shaped(self.losses) if self.losses is not None else total, self._shaped(self.grads)

    def _shaped(self, values):
        return None if values is None else values.view(self.shape)


class DenseLevel(_ElementLevel):
    """GHM-C with a target for each element: g = |p - t|, CE(x, t), p - t."""

    def _terms(self, rows):
        x, t = self.input[rows].to(self.dtype), self.target[rows].to(self.dtype)
        p = x.sigmoid()
        slope = (x >= 0).to(self.dtype) - t
        linear = (slope * x).masked_fill_(slope == 0, 0.0)  # an infinite logit on the right side costs nothing
        residual = (1 - t) * p - t * (-x).sigmoid()  # p - t without its cancellation at t = 1
        return (p - t).abs_(), x.abs().neg_().exp_().log1p_().add_(linear), residual


class RegressionLevel(_ElementLevel):
    """GHM-R: d = input - target, g = |d| / sqrt(d^2 + mu^2), ASL1(d), d / sqrt(d^2 + mu^2)."""

    def __init__(self, input, target, weight, bins, mu, **wanted):
        super().__init__(input, target, weight, bins, **wanted)
        self.mu = mu

    def _terms(self, rows):
        d = self.input[rows].to(self.dtype) - self.target[rows].to(self.dtype)
        square = d * d
        root = (square + self.mu * self.mu).sqrt_()
        residual = d / root.clamp_(min=1e-37)
        loss = square.div_(root.add_(self.mu))
        if not bool(square.max() < 1e30):  # where d^2 overflows, sqrt(d^2 + mu^2) is |d|; NaN comes here too
            huge = d.abs() > 1e15
            residual, loss = torch.where(huge, d.sign(), residual), torch.where(huge, d.abs() - self.mu, loss)
        return residual.abs(), loss, residual


class ClassIndexLevel(_Level):
    """GHM-C with class indices, which are never expanded.

    Blocks of BLOCK elements in which all are counted negatives of region 0 (or ignored), nearly all of a trained
    classifier's, take one coefficient. The others ("hard") are gathered and looked at element by element.
    """

    def __init__(self, input, target, weight, bins, **wanted):
        super().__init__(input, target, weight, bins, **wanted)
        label = target.reshape(-1)[: len(self.input)].long()  # none where there are no classes
        row = ((label >= 0) & (label < self.columns)).nonzero().view(-1)
        positive = row * self.columns + label[row]
        if self.weight is not None:
            counted = self.weight.reshape(-1)[positive] if self.weight.shape[1] > 1 else self.weight.view(-1)[row]
            positive = positive[counted > 0]
        self.positive = positive  # flat positions, ascending
        size = self.input.numel()
        self.padding = -size % BLOCK
        self.norm = torch.empty(size + self.padding, dtype=self.dtype, device=input.device)
        self.norm[size:] = 0
        self.found = []  # of each chunk: hard blocks, the slots of their elements, blocks with g above ACCURATE

    def _flat_chunks(self):
        """(rows, first element, end, positives within, end with padding) of each chunk."""
        chunks = self._chunks()
        bounds = torch.tensor([rows.start * self.columns for rows in chunks] + [self.input.numel()])
        splits = torch.searchsorted(self.positive, bounds.to(self.positive.device)).tolist()
        for rows, low, high in zip(chunks, splits, splits[1:]):
            first, end = rows.start * self.columns, rows.stop * self.columns
            yield rows, first, self.positive[low:high] - first, end + -end % BLOCK

    def count(self):
        counts = torch.zeros(self.bins + 2, dtype=torch.int64, device=self.input.device)
        counts[0] -= self.padding
        for rows, first, positive, end in self._flat_chunks():
            norm = self.norm[first:end]
            chunk = norm[: (rows.stop - rows.start) * self.columns].view(-1, self.columns)
            if self.input.dtype == self.dtype:
                torch.sigmoid(self.input[rows], out=chunk)
            else:
                chunk.copy_(self.input[rows]).sigmoid_()
            norm[positive] = 1 - norm[positive]
            if self.weight is not None:
                ignored = ~(self.weight[rows] > 0)
                chunk.masked_fill_(ignored, 0.0)
                number = ignored.sum() * (self.columns // ignored.shape[1])
                counts[0] -= number
                counts[self.bins + 1] += number
            counts += self._count_chunk(norm, positive)
        return counts

    def _count_chunk(self, norm, positive):
        blocks = norm.view(-1, BLOCK)
        peak = blocks.amax(1)
        has_nan = bool(peak.isnan().any())
        extreme = (~(peak <= ACCURATE)).nonzero().view(-1)
        peak[positive // BLOCK] = torch.inf
        hard = (~(peak < self.edges[1])).nonzero().view(-1)
        slots = self._slots(_blocks(blocks, hard), has_nan)
        self.found.append((hard, slots, extreme))
        counts = self._count(slots)
        counts[0] += (len(blocks) - len(hard)) * BLOCK
        return counts

    def finish(self, coefficients):
        total = torch.zeros((), dtype=torch.float64, device=self.input.device)
        losses = torch.empty_like(self.norm) if self.unreduced else None
        longest = max((end - first for _, first, _, end in self._flat_chunks()), default=0)
        buffer = torch.empty(0 if self.unreduced else longest, dtype=self.dtype, device=self.norm.device)
        table = self._table(coefficients)
        for (rows, first, positive, end), (hard, slots, extreme) in zip(self._flat_chunks(), self.found):
            norm = self.norm[first:end]
            x = self.input[rows].reshape(-1)
            loss = self._losses(norm, x, extreme, losses[first:end] if self.unreduced else buffer[: end - first])
            loss[positive] = F.softplus(-x[positive].to(self.dtype))
            coefficient = _lookup(table, slots)
            total += self._weigh(loss, hard, coefficient, coefficients[0], total=not self.unreduced)
            if self.grad:
                norm[positive] = -(-x[positive].to(self.dtype)).sigmoid()
                self._weigh(norm, hard, coefficient, coefficients[0])
            del coefficient  # the next chunk needs the memory
        size = self.input.numel()
        return (
            losses[:size].view(self.shape) if self.unreduced else total,
            self.norm[:size].view(self.shape) if self.grad else None,
        )

    def _losses(self, norm, x, extreme, output):
        """softplus(x) = -log(1 - g) for g = sigmoid(x), from x where 1 - g is not accurate; 0 where g is 0."""
        blocks = norm.view(-1, BLOCK)
        if 4 * len(extreme) > len(blocks):  # max(x, 0) - log(1 - min(g, 1 - g)), for all of them
            torch.sub(norm.new_ones(()), norm, out=output)
            torch.minimum(output, norm, out=output).neg_().log1p_()
            torch.sub(x.to(self.dtype).clamp(min=0), output[: len(x)], out=output[: len(x)])
            return output if self.weight is None else output.masked_fill_(norm == 0, 0.0)
        torch.neg(norm, out=output).log1p_().neg_()
        if len(extreme):
            if len(x) < len(norm):
                x = F.pad(x, (0, len(norm) - len(x)), value=-torch.inf)
            exact = F.softplus(x.view(-1, BLOCK).index_select(0, extreme).to(self.dtype))
            if self.weight is not None:
                exact.masked_fill_(blocks.index_select(0, extreme) == 0, 0.0)
            output.view(-1, BLOCK).index_copy_(0, extreme, exact)
        return output

    def _weigh(self, value, hard, coefficient, easy_coefficient, *, total=False):
        """Multiplies value by the coefficients in place; or returns the sum of that, and leaves value undefined."""
        blocks = value.view(-1, BLOCK)
        if len(hard) == len(blocks):
            blocks.mul_(coefficient)
            return blocks.sum() if total else 0
        weighed = blocks.index_select(0, hard).mul_(coefficient)
        if total:
            return weighed.sum() + easy_coefficient * blocks.index_fill_(0, hard, 0.0).sum()
        blocks.mul_(easy_coefficient).index_copy_(0, hard, weighed)
        return 0


def _blocks(blocks, chosen):
    return blocks if len(chosen) == len(blocks) else blocks.index_select(0, chosen)
