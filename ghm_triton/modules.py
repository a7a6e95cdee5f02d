"""The losses as modules that keep the moving average of the gradient density."""

from collections.abc import Sequence
from typing import overload

import torch
from torch import Tensor, nn

from .backend import check_backend
from .checks import check_options
from .conventions import state_size
from .density import Density, density_of
from .distributed import world
from .functional import checked_loss
from .options import Options, replaced
from .types import Backend, Levels, Reduction, Variant


class Fp32Buffers(nn.Module):
    """A module whose buffers move between devices but stay float32. 16 bits cannot hold counts."""

    def _apply(self, fn, recurse=True):
        super()._apply(lambda tensor: _restore(fn(tensor), tensor), recurse)
        return self

    def _load_from_state_dict(self, *args):
        super()._load_from_state_dict(*args)
        self.restore_buffers()  # `assign=True` takes the dtype of the checkpoint

    def restore_buffers(self) -> None:
        """Makes buffers float32 again that were cast by assignment, as FSDP1's `buffer_dtype` does."""
        for name, buffer in self._buffers.items():
            if buffer is not None and buffer.dtype != torch.float32:
                setattr(self, name, buffer.float())


def _restore(moved: Tensor, original: Tensor) -> Tensor:
    return moved if moved.dtype == original.dtype else original.to(moved.device)


_SETTINGS = ("bins", "exponent", "momentum", "reduction", "loss_weight", "variant")
_OWN = {"ghmc": (), "ghmr": ("mu",), "cross_entropy": ("ignore_index", "label_smoothing")}


class HarmonizedLoss(Fp32Buffers):
    """The base of the losses. Each setting is an attribute with the name of its argument, which each call reads."""

    bins: int
    momentum: float
    variant: Variant
    loss_weight: float
    reduction: Reduction
    backend: Backend | None
    sync: bool
    exponent: float
    class_dim: int | None = None
    running_counts: Tensor | None

    def __init__(self, options: Options, backend: Backend | None, sync: bool):
        super().__init__()
        options = check_options(options)
        check_backend(backend)
        if not isinstance(sync, bool):
            raise TypeError(f"sync must be a bool, got {sync!r} of type {type(sync).__name__}")
        self._settings = ("loss", *_SETTINGS, *_OWN[options.loss])
        for name in self._settings:
            setattr(self, name, getattr(options, name))
        self.backend, self.sync = backend, sync
        size = state_size(options.bins, options.variant)
        self.register_buffer("running_counts", torch.zeros(size, dtype=torch.float32) if options.momentum > 0 else None)
        self.register_state_dict_post_hook(_note_variant)
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Resets the moving average, for example after :meth:`~torch.nn.Module.to_empty`."""
        if self.running_counts is not None:
            self.running_counts.zero_()

    @overload
    def forward(self, input: Tensor, target: Tensor, weight: Tensor | None = None) -> Tensor: ...
    @overload
    def forward(
        self, input: Sequence[Tensor], target: Sequence[Tensor], weight: Sequence[Tensor] | None = None
    ) -> Tensor | tuple[Tensor, ...]: ...
    def forward(self, input: Levels, target: Levels, weight: Levels | None = None) -> Tensor | tuple[Tensor, ...]:
        """Computes the loss and, in training, updates `running_counts`.

        Args:
            input, target, weight: See :func:`ghm_triton.ghmc_loss` and :func:`ghm_triton.ghmr_loss`.

        Returns:
            Tensor or tuple[Tensor, ...]: A scalar, or for reduction "none" a tensor of the shape of `input`, or one
            per level. float32, or float64 for float64 `input`.
        """
        self.restore_buffers()
        group, state = world(self.sync), self.running_counts
        return checked_loss(
            input,
            target,
            weight,
            state,
            self.options(),
            class_dim=self.class_dim,
            backend=self.backend,
            process_group=group,
        )

    def options(self) -> Options:
        """The current settings, and whether a call updates the state."""
        options = Options(**{name: getattr(self, name) for name in self._settings})
        return replaced(options, update=self.training or options.variant == "mmdet")

    def density(self) -> Density:
        """The density of the gradient norm in the state of the loss, and the harmonizing weights that follow from it.

        The counts are the moving average in `running_counts`, all 0 before the first call. This method launches no
        kernel of a loss and does not synchronize with the GPU.

        Returns:
            Density: fp32 tensors `edges` [bins + 1], `counts`, `weights` and `shares` [bins], on the loss's device.

        Raises:
            RuntimeError: `momentum` is 0, so there is no moving average.

        Example:
            >>> loss = GHMCLoss(bins=30)
            >>> loss(torch.randn(1000, 80), torch.randint(-1, 80, (1000,))).item() > 0
            True
            >>> loss.density().counts.sum().item()
            80000.0
        """
        if self.running_counts is None:
            raise RuntimeError(
                "momentum must be positive for density(), which reads the moving average, got 0 "
                "(with momentum=0.01 the average is nearly the counts of the last call)"
            )
        return density_of(self.running_counts, self.options())

    def _load_from_state_dict(self, state_dict, prefix, local_metadata, strict, missing, unexpected, errors):
        came = local_metadata.get("variant", self.variant)
        if came != self.variant and f"{prefix}running_counts" in state_dict:
            errors.append(f"{prefix}running_counts must be of variant {self.variant!r}, got variant {came!r}")
            return
        super()._load_from_state_dict(state_dict, prefix, local_metadata, strict, missing, unexpected, errors)

    def extra_repr(self) -> str:
        shown = {name: getattr(self, name) for name in (*self._settings[1:], "sync")}
        return ", ".join(f"{name}={value!r}" for name, value in shown.items())


def _note_variant(module: HarmonizedLoss, state_dict, prefix: str, metadata: dict) -> None:
    """The counts of the two variants differ in meaning, even where they have the same shape."""
    metadata["variant"] = module.variant


class GHMCLoss(HarmonizedLoss):
    r"""Gradient harmonizing classification loss, GHM-C, times `loss_weight`. The module keeps the moving average.

    .. math:: L = \frac{1}{N} \sum_i \beta_i \, CE(x_i, t_i), \quad \beta_i = \frac{N}{S_{j(i)} M}, \quad
              j(i) = \text{unit region of } g_i = |\sigma(x_i) - t_i|

    S_j is the moving average of the number of elements in region j (Li, Liu, Wang, AAAI 2019, eq. 3, 8 to 13).
    :func:`ghm_triton.ghmc_loss` is the functional form.

    Args:
        class_dim: -1 lets integers beside a last dimension of one be class indices; otherwise they are refused.
        bins: M, the number of unit regions of the gradient norm, from 1 to 4096.
        momentum: a of the moving average S_j <- a S_j + (1 - a) R_j of the counts per region, in [0, 0.999]. 0: no
            average. The default is the paper's 0.75. The functions keep no state and default to 0. The drop-ins
            :class:`ghm_triton.GHMC` and :class:`ghm_triton.GHMR` default to 0, as mmdetection's classes do.
        variant: "paper" divides by M, averages every region and corrects the start of the average. "mmdet" divides by
            the number of regions that have elements, averages only those, and does not correct the start.
        loss_weight: A factor of the loss.
        reduction: "mean" (divides by the number of counted elements), "sum" or "none".
        backend: "triton", "eager", or None, which means Triton on devices that support it.
        sync: If True and torch.distributed is initialized, the density is that of all processes, which takes one
            all-reduce of bins + 1 numbers. Every process must make the call. The running counts are then equal on all
            processes. In `eval()`, a module with a moving average does not communicate.
        exponent: rho in [0, 1] of the tempered density: the share of region k in the total weight is proportional to
            S_k^(1 - rho). 1 is the paper, and 0 is plain cross entropy. 0.5 is recommended except to reproduce the
            paper.

    Shape:
        - input: logits of any shape, or a list of levels.
        - target: `input.shape` with values in [0, 1], or integer class indices of shape `input.shape[:-1]`.
        - weight: None, `input.shape` or `input.shape[:-1]`. Elements with a positive weight count.
        - output: a scalar, or `input.shape` for reduction "none"; float32, or float64 for float64 input.

    Attributes:
        running_counts (Tensor or None): The moving average, float32, also after `.half()`. Shape [bins + 1] for
            "paper", with the average of the constant 1 at the end; [bins] for "mmdet"; None for momentum 0.

    In `eval()`, the "paper" variant takes the weights from the state and does not update it. Regions that the state has
    never seen, or whose average has decayed below 1e-6 elements, use the counts of the call. The "mmdet" variant
    updates the state in every call, as mmdetection does.

    Raises:
        TypeError, ValueError: An argument is not as described.

    Example:
        >>> loss = GHMCLoss(bins=30, momentum=0.75, exponent=0.5)
        >>> loss(torch.randn(1000, 80, requires_grad=True), torch.randint(-1, 80, (1000,))).backward()
    """

    def __init__(
        self,
        *,
        class_dim: int | None = None,
        bins: int = 30,
        momentum: float = 0.75,
        variant: Variant = "paper",
        loss_weight: float = 1.0,
        reduction: Reduction = "mean",
        backend: Backend | None = None,
        sync: bool = False,
        exponent: float = 1.0,
    ):
        options = Options(
            loss="ghmc",
            bins=bins,
            exponent=exponent,
            momentum=momentum,
            reduction=reduction,
            loss_weight=loss_weight,
            variant=variant,
        )
        super().__init__(options, backend, sync)
        self.class_dim = class_dim


class GHMRLoss(HarmonizedLoss):
    r"""Gradient harmonizing regression loss, GHM-R, times `loss_weight`. The module keeps the moving average.

    .. math:: L = \frac{1}{N} \sum_i \beta_i \, ASL_1(d_i), \quad ASL_1(d) = \sqrt{d^2 + \mu^2} - \mu, \quad
              g_i = \frac{|d_i|}{\sqrt{d_i^2 + \mu^2}}

    d = input - target, and beta is that of :class:`GHMCLoss` with the regions of this g (Li, Liu, Wang, AAAI 2019,
    eq. 15 to 18). :func:`ghm_triton.ghmr_loss` is the functional form.

    Args:
        mu: The transition point of ASL1 from quadratic to linear, in the units of the deltas, from 1e-15 to 1e12.
        bins: M, the number of unit regions of the gradient norm, from 1 to 4096.
        momentum: a of the moving average S_j <- a S_j + (1 - a) R_j of the counts per region, in [0, 0.999]. 0: no
            average. The default is the paper's 0.75. The functions keep no state and default to 0. The drop-ins
            :class:`ghm_triton.GHMC` and :class:`ghm_triton.GHMR` default to 0, as mmdetection's classes do.
        variant: "paper" divides by M, averages every region and corrects the start of the average. "mmdet" divides by
            the number of regions that have elements, averages only those, and does not correct the start.
        loss_weight: A factor of the loss.
        reduction: "mean" (divides by the number of counted elements), "sum" or "none".
        backend: "triton", "eager", or None, which means Triton on devices that support it.
        sync: If True and torch.distributed is initialized, the density is that of all processes, which takes one
            all-reduce of bins + 1 numbers. Every process must make the call. The running counts are then equal on all
            processes. In `eval()`, a module with a moving average does not communicate.
        exponent: rho in [0, 1] of the tempered density: the share of region k in the total weight is proportional to
            S_k^(1 - rho). 1 is the paper, and 0 is plain ASL1. 0.5 is recommended except to reproduce the
            paper.

    Shape:
        - input: box deltas of any shape, or a list of levels.
        - target: `input.shape`, floating point.
        - weight: None, `input.shape` or `input.shape[:-1]`. Elements with a positive weight count. For "mmdet",
          N is the sum of the weights instead of their number.
        - output: a scalar, or `input.shape` for reduction "none"; float32, or float64 for float64 input.

    Attributes:
        running_counts (Tensor or None): The moving average, float32, also after `.half()`. Shape [bins + 1] for
            "paper", with the average of the constant 1 at the end; [bins] for "mmdet"; None for momentum 0.

    In `eval()`, the "paper" variant takes the weights from the state and does not update it. Regions that the state has
    never seen, or whose average has decayed below 1e-6 elements, use the counts of the call. The "mmdet" variant
    updates the state in every call, as mmdetection does.

    Raises:
        TypeError, ValueError: An argument is not as described.

    Example:
        >>> loss = GHMRLoss(mu=0.02, bins=10, exponent=0.5)
        >>> loss(torch.randn(64, 4, requires_grad=True), torch.randn(64, 4)).backward()
    """

    mu: float

    def __init__(
        self,
        *,
        mu: float = 0.02,
        bins: int = 10,
        momentum: float = 0.75,
        variant: Variant = "paper",
        loss_weight: float = 1.0,
        reduction: Reduction = "mean",
        backend: Backend | None = None,
        sync: bool = False,
        exponent: float = 1.0,
    ):
        options = Options(
            loss="ghmr",
            mu=mu,
            bins=bins,
            exponent=exponent,
            momentum=momentum,
            reduction=reduction,
            loss_weight=loss_weight,
            variant=variant,
        )
        super().__init__(options, backend, sync)
