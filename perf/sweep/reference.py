"""Every formula in float64, and the errors of an implementation.

The error of a loss is relative to the loss, that of a gradient to the largest gradient of its region, so that the
millions of easy elements, which have small weights, count as much as the few hard ones. Elements whose gradient norm is
so close to the edge of a region that fp32 may put it on either side are left out.
"""

from collections.abc import Iterable, Iterator

import torch
import torch.nn.functional as F
from torch import Tensor

from ..exact_density import count_neighbors, region_length
from .cases import Case
from .data import MU, Data
from .implementations import ALPHA, BETA, GAMMA

CHUNK = 1 << 22  # elements at a time: fp64 temporaries stay small
CACHED = 10**8  # elements up to which reference gradients are kept
NEAR = 1e-6  # of a gradient norm to an edge: fp32 sigmoids differ by 1e-7
TOLERANCE = 1e-3  # a missed region, weight or factor is off by more, fp32 rounding by far less


def bce(x: Tensor, t: Tensor) -> Tensor:
    return F.softplus(-x) + (1 - t) * x


def focal(x: Tensor, t: Tensor) -> Tensor:
    missing = t * (-x).sigmoid() + (1 - t) * x.sigmoid()
    return (ALPHA * t + (1 - ALPHA) * (1 - t)) * missing**GAMMA * bce(x, t)


def asl1(x: Tensor, t: Tensor) -> Tensor:
    d = x - t
    return d * d / ((d * d + MU * MU).sqrt() + MU)


def smooth_l1(x: Tensor, t: Tensor) -> Tensor:
    return F.smooth_l1_loss(x, t, beta=BETA, reduction="none")


class Reference:
    """The float64 numbers of one case.

    Attributes:
        slack: The largest relative change of the weight of a region by elements at its edges.
    """

    def __init__(self, case: Case, data: Data):
        self.case, self.data = case, data
        self.target = data.one_hot if case.loss == "ghmc" else data.target
        self._kept = {}
        self._ordered = None  # all gradient norms, for the exact density
        self._count(self._regions(start) for start in range(0, case.elements, CHUNK))

    def _place(self, norm: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """(region, whether close to an edge inside [0, 1], that edge) of each gradient norm."""
        bins = self.case.bins
        scaled = norm * bins
        edge = scaled.round().long()
        near = ((scaled - edge).abs() < NEAR * bins) & (edge > 0) & (edge < bins)
        return scaled.long().clamp_(max=bins - 1), near, edge

    def _count(self, places: Iterable[tuple[Tensor, Tensor, Tensor]]) -> None:
        """Set `counts` and `slack` from what `_place` returns for each chunk."""
        bins, device = self.case.bins, self.data.input.device
        counts, edges = (torch.zeros(size, dtype=torch.int64, device=device) for size in (bins, bins + 1))
        for region, near, edge in places:
            counts += torch.bincount(region, minlength=bins)
            edges += torch.bincount(edge[near], minlength=bins + 1)
        self.counts = counts.double()
        at_edges = (edges[:-1] + edges[1:]).double()
        self.slack = (at_edges / self.counts.clamp(min=1)).max().item()

    def _weights(self, formula: str, region: Tensor) -> Tensor:
        """beta / N of GHM with unit regions."""
        regions = (self.counts > 0).sum() if formula == "ghm_mmdet" else self.case.bins
        return (1 / (self.counts * regions))[region]

    def _chunk(self, start: int) -> tuple[Tensor, Tensor]:
        stop = start + CHUNK
        x, t = self.data.input.detach().view(-1)[start:stop].double(), self.target.view(-1)[start:stop].double()
        return x, t

    def _norms(self, start: int) -> Tensor:
        """The gradient norms of a chunk."""
        x, t = self._chunk(start)
        if self.case.loss == "ghmc":
            return (x.sigmoid() - t).abs()
        return (x - t).abs() / ((x - t) ** 2 + MU * MU).sqrt()

    def _exact(self, start: int) -> tuple[Tensor, Tensor]:
        """(beta / N of the exact density, whether fp32 may count other neighbors) of a chunk."""
        if self._ordered is None:
            self._ordered = (
                torch.cat([self._norms(start) for start in range(0, self.case.elements, CHUNK)]).sort().values
            )
        norm, half = self._norms(start), 0.5 / self.case.bins
        neighbors, least, most = (count_neighbors(self._ordered, norm, half + shift) for shift in (0, -NEAR, NEAR))
        return region_length(norm, half) / neighbors, (most - least) > TOLERANCE / 2 * neighbors

    def _regions(self, start: int) -> tuple[Tensor, Tensor, Tensor]:
        return self._place(self._norms(start))

    def _terms(self, formula: str, start: int):
        """(sum of the losses, gradient, region, near) of a chunk."""
        if (formula, start) in self._kept:
            return self._kept[formula, start]
        x, t = self._chunk(start)
        region, near, _ = self._regions(start)
        weight = 1 / self.case.elements
        if formula == "ghm_exact":
            weight, near = self._exact(start)
        elif formula.startswith("ghm"):
            weight = self._weights(formula, region)
        if formula.startswith("ghm"):
            element = bce if self.case.loss == "ghmc" else asl1
        else:
            element = {"bce": bce, "focal": focal, "smooth_l1": smooth_l1}[formula]
            if formula == "bce":  # also beside GHM-R, on the one-hot
                t = self.data.one_hot.view(-1)[start : start + CHUNK].double()
        with torch.enable_grad():
            total = (element(x.requires_grad_(), t) * weight).sum()
            (gradient,) = torch.autograd.grad(total, x)
        terms = total.detach(), gradient, region, near
        if self.case.elements <= CACHED:
            self._kept[formula, start] = terms
        return terms

    def loss_error(self, formula: str, loss: Tensor) -> float:
        expected = self._loss(formula)
        return ((loss.double() - expected).abs() / expected.abs()).item()

    def _loss(self, formula: str) -> Tensor:
        return sum(self._terms(formula, start)[0] for start in range(0, self.case.elements, CHUNK))

    def gradient_error(self, formula: str, gradient: Tensor) -> float:
        """An error below the smallest number of the gradient's dtype counts as 0."""
        info = torch.finfo(gradient.dtype)
        worst, largest = torch.zeros(2, self.case.bins, dtype=torch.float64, device=gradient.device)
        for error, size, region, near in self._gradients(formula, gradient):
            error = (error - info.tiny * info.eps).clamp_(min=0).masked_fill_(near, 0)
            worst.scatter_reduce_(0, region, error, "amax")
            largest.scatter_reduce_(0, region, size, "amax")
        relative = torch.where(worst > 0, worst / largest, 0.0)
        return relative.max().item()

    def _gradients(self, formula: str, gradient: Tensor) -> Iterator[tuple[Tensor, Tensor, Tensor, Tensor]]:
        """(error, size of the expected gradient, region, near) of each chunk."""
        for start in range(0, self.case.elements, CHUNK):
            _, expected, region, near = self._terms(formula, start)
            expected = expected * self.data.scale
            error = (gradient.view(-1)[start : start + CHUNK].double() - expected).abs()
            yield error, expected.abs(), region, near

    def accepts(self, *errors: float) -> bool:
        """Whether rounding explains these errors. It does not explain NaN."""
        bound = TOLERANCE + self.slack + torch.finfo(self.case.torch_dtype).eps
        return all(error <= bound for error in errors)
