"""Code that the losses share: the path from arguments to operators, and the module that keeps the state."""

import copy
import functools
from collections.abc import Callable, Sequence
from typing import TypeVar, overload

import torch
from torch import Tensor, nn

from ..autograd import differentiable_loss
from ..backend import check_backend, check_float64, use_triton
from ..checks import check_options, check_running_counts
from ..density import Density, density_of
from ..distributed import group_name
from ..layout import Names, lay_out_elements, restore_layout
from ..options import Options, replaced
from ..population import Population
from ..regions import state_size
from ..types import Backend, Levels, Reduction

COMMON = ("bins", "exponent", "momentum", "loss_weight", "reduction")  # settings of all modules


def elementwise_loss(
    input: Levels,
    target: Levels,
    mask: Levels | None,
    running_counts: Tensor | None,
    options: Options,
    backend: Backend | None = None,
    process_group: "torch.distributed.ProcessGroup | None" = None,
    names: Names | None = None,
) -> Tensor | tuple[Tensor, ...]:
    """Check all arguments, then compute GHM-C or GHM-R. names: of the arguments, in error messages."""
    names = names or Names()
    options = check_options(options)
    population = lay_out_elements(input, target, mask, options, names)
    losses = harmonized_loss(population, running_counts, options, backend, process_group, names)
    return restore_layout(losses, input, options)


def harmonized_loss(
    population: Population,
    running_counts: Tensor | None,
    options: Options,
    backend: Backend | None,
    process_group: "torch.distributed.ProcessGroup | None",
    names: Names,
) -> list[Tensor]:
    """Compute [loss], or the losses of each level for "none". Options and population must already be checked."""
    first = population.inputs[0]
    check_running_counts(running_counts, options, first.device, name=names.running_counts, of=names.input)
    triton = use_triton(backend, first)
    if not triton:
        check_float64(first.device)
    group = group_name(process_group)
    processes = 1 if process_group is None else process_group.size()
    factor = 1 if options.reduction == "none" else processes
    if running_counts is not None and not options.update:  # evaluation: the weights come from the state
        group, factor = None, factor if options.reduction == "mean" else factor * processes  # N: as if all had as many
    options = replaced(options, loss_weight=options.loss_weight * factor, group=group)
    return differentiable_loss(population, running_counts, options, triton=triton)


Init = TypeVar("Init", bound=Callable[..., None])


def refuse_class_weights(init: Init) -> Init:
    """Decorate `__init__` so that the arguments `weight` and `pos_weight` of PyTorch's losses have a helpful error."""

    @functools.wraps(init)
    def checked(self, *args, **options):
        for name in ("weight", "pos_weight"):
            if name in options:
                raise TypeError(
                    f"{name} must be left out, got {type(options[name]).__name__}: the density replaces the weights of "
                    'classes. To weight examples too, use reduction="none" and multiply the losses'
                )
        init(self, *args, **options)

    return checked  # type: ignore[return-value]


class Fp32Buffers(nn.Module):
    """A module whose buffers move between devices but stay float32. 16 bits cannot hold counts."""

    def _apply(self, fn, recurse=True):
        super()._apply(lambda tensor: _restore(fn(tensor), tensor), recurse)
        return self

    def _load_from_state_dict(self, *args):
        super()._load_from_state_dict(*args)
        self.restore_buffers()  # `assign=True` takes the dtype of the checkpoint

    def restore_buffers(self) -> None:
        """Convert buffers back to float32 that were cast by assignment, as FSDP1's `buffer_dtype` does."""
        for name, buffer in self._buffers.items():
            if buffer is not None and buffer.dtype != torch.float32:
                setattr(self, name, buffer.float())


def _restore(moved: Tensor, original: Tensor) -> Tensor:
    return moved if moved.dtype == original.dtype else original.to(moved.device)


class HarmonizedLoss(Fp32Buffers):
    """The base of the modules. Each setting is an attribute with the name of its argument, which each call reads."""

    bins: int
    exponent: float
    momentum: float
    loss_weight: float
    reduction: Reduction
    backend: Backend | None
    process_group: "torch.distributed.ProcessGroup | None"
    running_counts: Tensor | None
    _settings: tuple[str, ...]  # of COMMON and of the loss

    def __init__(
        self,
        options: Options,
        settings: tuple[str, ...],
        backend: Backend | None,
        process_group: "torch.distributed.ProcessGroup | None",
    ):
        super().__init__()
        options = check_options(options)
        check_backend(backend)
        group_name(process_group)
        self._loss, self._settings = options.loss, settings
        for name in settings:
            setattr(self, name, getattr(options, name))
        self.backend, self.process_group = backend, process_group
        size = state_size(options.bins, options.variant)
        self.register_buffer("running_counts", torch.zeros(size, dtype=torch.float32) if options.momentum > 0 else None)
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Reset the moving average, for example after :meth:`~torch.nn.Module.to_empty`."""
        if self.running_counts is not None:
            self.running_counts.zero_()

    @overload
    def forward(self, input: Tensor, target: Tensor, mask: Tensor | None = None) -> Tensor: ...
    @overload
    def forward(
        self, input: Sequence[Tensor], target: Sequence[Tensor], mask: Sequence[Tensor] | None = None
    ) -> Tensor | tuple[Tensor, ...]: ...
    def forward(self, input: Levels, target: Levels, mask: Levels | None = None) -> Tensor | tuple[Tensor, ...]:
        """Compute the loss and, in training, update `running_counts`.

        Args:
            input, target, mask: See :func:`ghm_triton.ghmc_loss` and :func:`ghm_triton.ghmr_loss`.

        Returns:
            Tensor or tuple[Tensor, ...]: A scalar, or for reduction "none" a tensor of the shape of `input`, or one
            per level. float32, or float64 for float64 `input`.
        """
        self.restore_buffers()
        state = self.running_counts
        return elementwise_loss(input, target, mask, state, self.options(), self.backend, self.process_group)

    def options(self) -> Options:
        """Return the current settings, and whether a call updates the state."""
        settings = {name: getattr(self, name) for name in self._settings}
        return Options(loss=self._loss, update=self.training, **settings)

    def density(self) -> Density:
        """Return the density of the gradient norm in the state of the loss, and the harmonizing weights it gives.

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
        return density_of(self.running_counts, self.exponent)

    def __deepcopy__(self, memo):
        memo[id(self.process_group)] = self.process_group  # a copy shares the group, which cannot be copied
        copied = self.__class__.__new__(self.__class__)
        memo[id(self)] = copied
        copied.__dict__ = copy.deepcopy(self.__dict__, memo)
        return copied

    def __getstate__(self):
        return self.__dict__ | {"process_group": None}  # a group cannot be pickled

    def extra_repr(self) -> str:
        """Return the settings for `repr`."""
        return ", ".join(f"{name}={getattr(self, name)!r}" for name in self._settings)
