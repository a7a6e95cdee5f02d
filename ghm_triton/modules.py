"""The losses as modules that keep the moving average of the gradient density."""

import torch
from torch import Tensor, nn

from .backend import check_backend
from .checks import check_mu, check_number, check_options, state_size
from .distributed import world
from .functional import Levels, compute


class Fp32Buffers(nn.Module):
    """A module whose buffers move with it but stay float32: counts do not fit 16 bits."""

    def _apply(self, fn, recurse=True):
        super()._apply(lambda tensor: _restore(fn(tensor), tensor), recurse)
        return self


def _restore(moved: Tensor, original: Tensor) -> Tensor:
    return moved if moved.dtype == original.dtype else original.to(moved.device)


class _HarmonizedLoss(Fp32Buffers):
    running_counts: Tensor | None

    def __init__(self, bins, momentum, variant, loss_weight, reduction, backend, sync, max_weight):
        super().__init__()
        check_options(bins, momentum, variant, reduction, max_weight)
        check_number("loss_weight", loss_weight, float("-inf"), "finite")
        check_backend(backend)
        if not isinstance(sync, bool):
            raise TypeError(f"sync must be a bool, got {sync!r} of type {type(sync).__name__}")
        self.bins, self.momentum, self.variant, self.max_weight = bins, momentum, variant, max_weight
        self.loss_weight, self.reduction, self.backend, self.sync = loss_weight, reduction, backend, sync
        state = torch.zeros(state_size(bins, variant), dtype=torch.float32) if momentum > 0 else None
        self.register_buffer("running_counts", state)

    def _compute(self, input, target, weight, mu):
        return compute(
            input,
            target,
            weight,
            mu=mu,
            bins=self.bins,
            momentum=self.momentum,
            running_counts=self.running_counts,
            variant=self.variant,
            reduction=self.reduction,
            max_weight=self.max_weight,
            backend=self.backend,
            process_group=world(self.sync),
            loss_weight=self.loss_weight,
            update=self.training or self.variant == "mmdet",
        )

    def extra_repr(self) -> str:
        return (
            f"bins={self.bins}, momentum={self.momentum}, variant={self.variant!r}, loss_weight={self.loss_weight}, "
            f"reduction={self.reduction!r}, max_weight={self.max_weight}, sync={self.sync}"
        )


class GHMCLoss(_HarmonizedLoss):
    """:func:`ghm_triton.ghmc_loss` times `loss_weight`, with its state in the buffer `running_counts`.

    Args:
        bins, momentum, variant, reduction, max_weight, backend: As for :func:`ghm_triton.ghmc_loss`.
        loss_weight: Factor of the loss.
        sync: Take the density over all processes, if torch.distributed is initialized; `process_group` of
            :func:`ghm_triton.ghmc_loss` tells how. All processes then have the same running counts.

    In `eval()` the "paper" variant takes the density from the state and leaves it as it is; a region that the state
    has never seen takes the counts of the call. `running_counts` (None for momentum 0) stays float32 under `.half()`.

    Raises:
        TypeError, ValueError: An argument is not as described.

    Example:
        >>> loss = GHMCLoss(bins=30, momentum=0.75)
        >>> loss(torch.randn(1000, 80, requires_grad=True), torch.randint(-1, 80, (1000,))).backward()
    """

    def __init__(
        self,
        bins: int = 30,
        momentum: float = 0.75,
        variant: str = "paper",
        loss_weight: float = 1.0,
        reduction: str = "mean",
        backend: str | None = None,
        sync: bool = False,
        max_weight: float | None = None,
    ):
        super().__init__(bins, momentum, variant, loss_weight, reduction, backend, sync, max_weight)

    def forward(self, input: Levels, target: Levels, weight: Levels | None = None) -> Tensor | tuple[Tensor, ...]:
        """Shapes and dtypes as for :func:`ghm_triton.ghmc_loss`."""
        return self._compute(input, target, weight, None)


class GHMRLoss(_HarmonizedLoss):
    """:func:`ghm_triton.ghmr_loss` times `loss_weight`, with its state in the buffer `running_counts`.

    Args:
        mu, bins, momentum, variant, reduction, max_weight, backend: As for :func:`ghm_triton.ghmr_loss`.
        loss_weight: Factor of the loss.
        sync: As for :class:`GHMCLoss`.

    State and `eval()` as for :class:`GHMCLoss`.

    Raises:
        TypeError, ValueError: An argument is not as described.

    Example:
        >>> loss = GHMRLoss(mu=0.02, bins=10)
        >>> loss(torch.randn(64, 4, requires_grad=True), torch.randn(64, 4)).backward()
    """

    def __init__(
        self,
        mu: float = 0.02,
        bins: int = 10,
        momentum: float = 0.75,
        variant: str = "paper",
        loss_weight: float = 1.0,
        reduction: str = "mean",
        backend: str | None = None,
        sync: bool = False,
        max_weight: float | None = None,
    ):
        check_mu(mu)
        super().__init__(bins, momentum, variant, loss_weight, reduction, backend, sync, max_weight)
        self.mu = mu

    def forward(self, input: Levels, target: Levels, weight: Levels | None = None) -> Tensor | tuple[Tensor, ...]:
        """Shapes and dtypes as for :func:`ghm_triton.ghmr_loss`."""
        return self._compute(input, target, weight, float(self.mu))

    def extra_repr(self) -> str:
        return f"mu={self.mu}, {super().extra_repr()}"
