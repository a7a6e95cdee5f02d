"""The losses as modules that keep the moving average of the gradient density."""

import torch
from torch import Tensor, nn

from .backend import check_backend
from .checks import check_mu, check_options
from .conventions import state_size
from .density import Density, density_of
from .distributed import world
from .functional import Levels, checked_loss
from .options import SETTINGS, Options


class Fp32Buffers(nn.Module):
    """A module whose buffers move with it but stay float32: counts do not fit 16 bits."""

    def _apply(self, fn, recurse=True):
        super()._apply(lambda tensor: _restore(fn(tensor), tensor), recurse)
        return self


def _restore(moved: Tensor, original: Tensor) -> Tensor:
    return moved if moved.dtype == original.dtype else original.to(moved.device)


class HarmonizedLoss(Fp32Buffers):
    """The settings are attributes of the names that they have as arguments, and read in each call."""

    running_counts: Tensor | None

    def __init__(self, options: Options, backend: str | None, sync: bool):
        super().__init__()
        check_options(options)
        check_backend(backend)
        if not isinstance(sync, bool):
            raise TypeError(f"sync must be a bool, got {sync!r} of type {type(sync).__name__}")
        for name in SETTINGS:
            setattr(self, name, getattr(options, name))
        self.backend, self.sync = backend, sync
        size = state_size(options.bins, options.variant)
        self.register_buffer("running_counts", torch.zeros(size, dtype=torch.float32) if options.momentum > 0 else None)
        self.register_state_dict_post_hook(_note_variant)
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Forgets the moving average, for example after :meth:`~torch.nn.Module.to_empty`."""
        if self.running_counts is not None:
            self.running_counts.zero_()

    def forward(self, input: Levels, target: Levels, weight: Levels | None = None) -> Tensor | tuple[Tensor, ...]:
        """Shapes and dtypes as for :func:`ghm_triton.ghmc_loss` and :func:`ghm_triton.ghmr_loss`."""
        group, state = world(self.sync), self.running_counts
        return checked_loss(input, target, weight, state, self.options(), backend=self.backend, process_group=group)

    def options(self) -> Options:
        """The settings as they are now, and whether a call updates the state."""
        options = Options(**{name: getattr(self, name) for name in SETTINGS})
        return options._replace(update=self.training or options.mmdet)

    def density(self) -> Density:
        """The density of the gradient norm that the loss works with, and the weights that follow from it.

        The counts are the moving average, which the forward pass has left in `running_counts`: nothing is launched in
        training for it, and nothing waits for a GPU until a value is read. All counts are 0 before the first call.

        Returns:
            Density: fp32 tensors `edges` [bins + 1], `counts`, `weights` and `shares` [bins], on the device of the loss.

        Raises:
            RuntimeError: `momentum` is 0, with which nothing is kept.

        Example:
            >>> loss = GHMCLoss(bins=30)
            >>> loss(torch.randn(1000, 80), torch.randint(-1, 80, (1000,))).item() > 0
            True
            >>> loss.density().counts.sum().item()
            80000.0
        """
        if self.running_counts is None:
            raise RuntimeError(
                "momentum must be positive for density(), which reads the moving average, got 0: "
                "with momentum=0.01 it is nearly that of the last call"
            )
        return density_of(self.running_counts, self.options())

    def _load_from_state_dict(self, state_dict, prefix, local_metadata, strict, missing, unexpected, errors):
        came = local_metadata.get("variant", self.variant)
        if came != self.variant and f"{prefix}running_counts" in state_dict:
            errors.append(f"{prefix}running_counts must be of variant {self.variant!r}, got that of variant {came!r}")
            return
        super()._load_from_state_dict(state_dict, prefix, local_metadata, strict, missing, unexpected, errors)

    def extra_repr(self) -> str:
        shown = {name: getattr(self, name) for name in (*SETTINGS, "sync")}
        return ", ".join(f"{name}={value!r}" for name, value in shown.items() if value is not None)


def _note_variant(module: HarmonizedLoss, state_dict, prefix: str, metadata: dict) -> None:
    """The counts of both variants can have one shape, and mean different things."""
    metadata["variant"] = module.variant


class GHMCLoss(HarmonizedLoss):
    """:func:`ghm_triton.ghmc_loss` times `loss_weight`, with its state in the buffer `running_counts`.

    Args:
        bins, momentum, variant, reduction, exponent, backend: As for :func:`ghm_triton.ghmc_loss`.
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
        *,
        bins: int = 30,
        momentum: float = 0.75,
        variant: str = "paper",
        loss_weight: float = 1.0,
        reduction: str = "mean",
        backend: str | None = None,
        sync: bool = False,
        exponent: float = 1.0,
    ):
        options = Options(None, bins, momentum, variant, reduction, exponent, loss_weight)
        super().__init__(options, backend, sync)


class GHMRLoss(HarmonizedLoss):
    """:func:`ghm_triton.ghmr_loss` times `loss_weight`, with its state in the buffer `running_counts`.

    Args:
        mu, bins, momentum, variant, reduction, exponent, backend: As for :func:`ghm_triton.ghmr_loss`.
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
        *,
        mu: float = 0.02,
        bins: int = 10,
        momentum: float = 0.75,
        variant: str = "paper",
        loss_weight: float = 1.0,
        reduction: str = "mean",
        backend: str | None = None,
        sync: bool = False,
        exponent: float = 1.0,
    ):
        check_mu(mu)
        options = Options(mu, bins, momentum, variant, reduction, exponent, loss_weight)
        super().__init__(options, backend, sync)
