"""The gate of the sweep: an implementation gets a time only if it computes what float64 computes.

GHM in float64 is this package's eager backend, which the tests hold to two independent references. The other losses
are PyTorch's in float64. Each implementation names its own (`Implementation.reference`).

The error of a loss is relative to the loss, that of a gradient to the largest gradient of its region, so that the
millions of easy elements, which have small weights, count as much as the few hard ones. Elements whose gradient norm is
so close to the edge of a region that fp32 may put it on either side are left out.
"""

from collections.abc import Callable, Iterator

import torch
from torch import Tensor

from ..exact_density import count_neighbors
from .cases import Case
from .data import Data
from .implementations import Implementation, exact, plain
from .timed_calls import Outcome

CHUNK = 1 << 22  # elements at a time: temporaries stay small
CACHED = 10**8  # elements up to which expected gradients are kept
NEAR = 1e-6  # of a gradient norm to an edge: fp32 sigmoids differ by 1e-7
TOLERANCE = 1e-3  # a wrong region, weight or factor gives a larger error, fp32 rounding a much smaller one


class Gate:
    """The float64 results of one case.

    Attributes:
        norm: The gradient norms of the elements; of the examples for cross entropy.
        counts: The number of them in each region, float64 [bins].
        slack: The largest relative change of the weight of a region by elements at its edges.
    """

    def __init__(self, case: Case, data: Data):
        self.case, self.data = case, data.double()
        self._kept: dict[Callable, tuple[Tensor, Tensor]] = {}
        self._chunk = max(1, CHUNK // case.columns) if case.loss == "cross_entropy" else CHUNK
        _, gradient = self._compute(plain)
        norm = self._rows(gradient).abs().sum(1)
        self.norm = norm / 2 if case.loss == "cross_entropy" else norm  # half the L1 norm of a softmax's gradient
        counts, edges = (
            torch.zeros(size, dtype=torch.int64, device=norm.device) for size in (case.bins, case.bins + 1)
        )
        for part in self.norm.split(self._chunk):
            region, near, edge = self._place(part)
            counts += torch.bincount(region, minlength=case.bins)
            edges += torch.bincount(edge[near], minlength=case.bins + 1)
        self.counts = counts.double()
        self.slack = ((edges[:-1] + edges[1:]) / self.counts.clamp(min=1)).max().item()

    def _place(self, norm: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Return the region of each gradient norm, whether it is close to an edge inside of [0, 1], and that edge."""
        bins = self.case.bins
        scaled = norm * bins
        edge = scaled.round().long()
        near = ((scaled - edge).abs() < NEAR * bins) & (edge > 0) & (edge < bins)
        return scaled.long().clamp_(max=bins - 1), near, edge

    def _rows(self, gradient: Tensor) -> Tensor:
        """Return a row per gradient norm: [elements, 1], or [examples, classes] for cross entropy."""
        if self.case.loss != "cross_entropy":
            return gradient.reshape(-1, 1)
        return gradient.movedim(1, -1).reshape(-1, self.case.columns)

    def _compute(self, reference: Callable[[Case, Data], Tensor]) -> tuple[Tensor, Tensor]:
        """Return the loss, and its gradient times the scale of the case."""
        with torch.enable_grad():
            loss = reference(self.case, self.data)
            scale = 1 if reference is plain else self.data.scale
            (gradient,) = torch.autograd.grad(loss * scale, self.data.input)
        return loss.detach(), gradient

    def _expected(self, reference: Callable[[Case, Data], Tensor]) -> tuple[Tensor, Tensor]:
        if reference in self._kept:
            return self._kept[reference]
        expected = self._compute(reference)
        if self.case.elements <= CACHED:
            self._kept[reference] = expected
        return expected

    def errors(self, implementation: Implementation, outcome: Outcome) -> dict[str, float]:
        """Return "loss_error" and "gradient_error", each only if the outcome has the value."""
        loss, gradient = self._expected(implementation.reference)
        errors = {}
        if outcome.loss is not None:
            errors["loss_error"] = ((outcome.loss.detach().double() - loss).abs() / loss.abs()).item()
        if outcome.gradient is not None:
            errors["gradient_error"] = self._gradient_error(gradient, outcome.gradient, implementation.reference)
        return errors

    def _gradient_error(self, expected: Tensor, found: Tensor, reference: Callable) -> float:
        """Return the largest error of a region. Errors below the smallest number of the dtype of `found` count as 0."""
        info = torch.finfo(found.dtype)
        worst, largest = torch.zeros(2, self.case.bins, dtype=torch.float64, device=found.device)
        parts = (self.norm, self._rows(expected), self._rows(found))
        for (norm, right, given), unsure in zip(
            zip(*(part.split(self._chunk) for part in parts)), self._unsure(reference), strict=True
        ):
            error = (given.double() - right).abs().amax(1) - info.tiny * info.eps
            region, _, _ = self._place(norm)
            worst.scatter_reduce_(0, region, error.clamp_(min=0).masked_fill_(unsure, 0), "amax")
            largest.scatter_reduce_(0, region, right.abs().amax(1), "amax")
        return torch.where(worst > 0, worst / largest, 0.0).max().item()

    def _unsure(self, reference: Callable) -> Iterator[Tensor]:
        """Yield, for each chunk, where fp32 may choose another weight: another region, or other neighbors."""
        ordered = self.norm.sort().values if reference is exact else None
        half = 0.5 / self.case.bins
        for norm in self.norm.split(self._chunk):
            if ordered is None:
                yield self._place(norm)[1]
            else:
                fewer, more = (count_neighbors(ordered, norm, half + shift) for shift in (-NEAR, NEAR))
                yield more - fewer > TOLERANCE / 2 * fewer

    def accepts(self, errors: dict[str, float]) -> bool:
        """Return whether rounding explains these errors. It does not explain NaN."""
        bound = TOLERANCE + self.slack + torch.finfo(self.case.torch_dtype).eps
        return all(error <= bound for error in errors.values())
