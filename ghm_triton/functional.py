"""The losses as functions."""

from collections.abc import Sequence
from typing import TYPE_CHECKING, Literal, overload

import torch
from torch import Tensor

from .autograd import differentiable_loss
from .backend import check_float64, use_triton
from .checks import Names, check_options, check_population, check_running_counts
from .conventions import Population
from .distributed import group_name
from .options import Options, replaced
from .types import Backend, ClassificationOptions, Levels, Reduction, RegressionOptions, Variant

if TYPE_CHECKING:
    from typing_extensions import Unpack


@overload
def ghmc_loss(
    input: Tensor,
    target: Tensor,
    weight: Tensor | None = None,
    *,
    reduction: Reduction = "mean",
    **options: "Unpack[ClassificationOptions]",
) -> Tensor: ...
@overload
def ghmc_loss(
    input: Sequence[Tensor],
    target: Sequence[Tensor],
    weight: Sequence[Tensor] | None = None,
    *,
    reduction: Literal["mean", "sum"] = "mean",
    **options: "Unpack[ClassificationOptions]",
) -> Tensor: ...
@overload
def ghmc_loss(
    input: Sequence[Tensor],
    target: Sequence[Tensor],
    weight: Sequence[Tensor] | None = None,
    *,
    reduction: Literal["none"],
    **options: "Unpack[ClassificationOptions]",
) -> tuple[Tensor, ...]: ...
def ghmc_loss(
    input: Levels,
    target: Levels,
    weight: Levels | None = None,
    *,
    class_dim: int | None = None,
    bins: int = 30,
    momentum: float = 0.0,
    running_counts: Tensor | None = None,
    variant: Variant = "paper",
    reduction: Reduction = "mean",
    exponent: float = 1.0,
    backend: Backend | None = None,
    process_group: "torch.distributed.ProcessGroup | None" = None,
) -> Tensor | tuple[Tensor, ...]:
    r"""Gradient harmonizing classification loss, GHM-C.

    .. math:: L = \frac{1}{N} \sum_i \beta_i \, CE(x_i, t_i), \quad \beta_i = \frac{N}{S_{j(i)} M}, \quad
              j(i) = \text{unit region of } g_i = |\sigma(x_i) - t_i|

    M = `bins` is the number of unit regions of the gradient norm g. S_j is the number of elements in region j, or its
    moving average (Li, Liu, Wang, AAAI 2019, eq. 3, 8 to 13). The harmonizing weight beta is a constant: no gradient
    flows through it. `target` and `weight` receive no gradient either.

    Args:
        input: Logits of any shape, float32, float16, bfloat16 or float64. Or a list of such tensors (the levels of a
            feature pyramid), which share one density.
        target: Values in [0, 1] of the shape of `input`. Or integer class indices of shape `input.shape[:-1]`: 0 to
            C - 1 name the positive column of the last dimension, and all other values mean background.
        weight: None, or bool, integer or float of shape `input.shape` or `input.shape[:-1]`. An element counts where
            its weight is positive and is ignored elsewhere.
        class_dim: -1 lets integers beside a last dimension of one be class indices; otherwise they are refused.
        bins: M, the number of unit regions, from 1 to 4096.
        momentum: a of the moving average S_j <- a S_j + (1 - a) R_j, where R_j is the number of elements of this call
            in region j. In [0, 0.999]. The default is 0 because a function keeps no state. The modules keep one and
            default to the paper's 0.75.
        running_counts: The state of the average, float32 or float64, initially zeros. The call updates it in place.
            Required if momentum > 0. Shape [bins + 1] for "paper": S, followed by the same average of the constant
            1, which is 1 - a^t after t calls; S is divided by it. Shape [bins] for "mmdet".
        variant: "paper" divides by M and averages every region. "mmdet" divides by the number of regions that have
            elements, averages only those, and does not correct the start of the average.
        reduction: "mean" (divides by N), "sum" or "none".
        exponent: rho in [0, 1] of the tempered density, which is ours and not the paper's:
            :math:`\beta_i = N S_{j(i)}^{-\rho} / \sum_k S_k^{1 - \rho}`. Region k gets the share
            :math:`S_k^{1 - \rho}` of the total weight. 1 is the paper, and 0 is plain cross entropy. The sum is over
            all regions, or over those that have elements for "mmdet". 0.5 is recommended except to
            reproduce the paper, because rho = 1 gives each nearly empty region as much weight as the region that
            holds the background.
        backend: "triton", "eager", or None, which means Triton on devices that support it. The environment variable
            GHM_TRITON_BACKEND sets the default. float64 always uses the eager backend.
        process_group: If given, the density and N are those of all processes of this group, which takes one
            all-reduce of bins + 1 numbers. Every process must make the call, even without elements. "mean" and "sum"
            are multiplied by the number of processes. Their average over the processes, like the average of the
            gradients that DistributedDataParallel computes, then equals that of one process with all elements.
            None: the density of this process alone.

    Returns:
        Tensor or tuple[Tensor, ...]: float32, or float64 for float64 `input`. A scalar for "mean" and "sum". For
        "none" a tensor of the shape of `input`, or a tuple with one tensor per level.

    Raises:
        TypeError, ValueError: An argument is not as described. The message names the argument. No state has changed.
        RuntimeError: `backend` is "triton", but Triton cannot run.

    Example:
        >>> logits = torch.randn(1000, 80, requires_grad=True)
        >>> labels = torch.randint(-1, 80, (1000,))         # -1: background
        >>> ghmc_loss(logits, labels, exponent=0.5).backward()
    """
    options = Options(
        loss="ghmc", bins=bins, momentum=momentum, variant=variant, reduction=reduction, exponent=exponent
    )
    return checked_loss(
        input,
        target,
        weight,
        running_counts,
        options,
        class_dim=class_dim,
        backend=backend,
        process_group=process_group,
    )


@overload
def ghmr_loss(
    input: Tensor,
    target: Tensor,
    weight: Tensor | None = None,
    *,
    reduction: Reduction = "mean",
    **options: "Unpack[RegressionOptions]",
) -> Tensor: ...
@overload
def ghmr_loss(
    input: Sequence[Tensor],
    target: Sequence[Tensor],
    weight: Sequence[Tensor] | None = None,
    *,
    reduction: Literal["mean", "sum"] = "mean",
    **options: "Unpack[RegressionOptions]",
) -> Tensor: ...
@overload
def ghmr_loss(
    input: Sequence[Tensor],
    target: Sequence[Tensor],
    weight: Sequence[Tensor] | None = None,
    *,
    reduction: Literal["none"],
    **options: "Unpack[RegressionOptions]",
) -> tuple[Tensor, ...]: ...
def ghmr_loss(
    input: Levels,
    target: Levels,
    weight: Levels | None = None,
    *,
    mu: float = 0.02,
    bins: int = 10,
    momentum: float = 0.0,
    running_counts: Tensor | None = None,
    variant: Variant = "paper",
    reduction: Reduction = "mean",
    exponent: float = 1.0,
    backend: Backend | None = None,
    process_group: "torch.distributed.ProcessGroup | None" = None,
) -> Tensor | tuple[Tensor, ...]:
    r"""Gradient harmonizing regression loss, GHM-R.

    .. math:: L = \frac{1}{N} \sum_i \beta_i \, ASL_1(d_i), \quad ASL_1(d) = \sqrt{d^2 + \mu^2} - \mu, \quad
              g_i = \frac{|d_i|}{\sqrt{d_i^2 + \mu^2}}

    with d = input - target, and beta as in :func:`ghmc_loss` (Li, Liu, Wang, AAAI 2019, eq. 15 to 18).

    Args:
        input: Box deltas of any shape, or a list of levels, with the dtypes of :func:`ghmc_loss`.
        target: Floating point, of the shape of `input`. It receives a gradient if it requires one.
        weight: See :func:`ghmc_loss`. N is the number of elements with a positive weight; for "mmdet" it is the sum
            of the weights, at least 1.
        mu: The transition point of ASL1 from quadratic to linear, in the units of the deltas, from 1e-15 to 1e12.
        bins, momentum, running_counts, variant, reduction, exponent, backend, process_group: See :func:`ghmc_loss`.
            `exponent` 0 is plain ASL1.

    Returns:
        Tensor or tuple[Tensor, ...]: See :func:`ghmc_loss`.

    Raises:
        TypeError, ValueError, RuntimeError: See :func:`ghmc_loss`.

    Example:
        >>> deltas, targets = torch.randn(64, 4, requires_grad=True), torch.randn(64, 4)
        >>> ghmr_loss(deltas, targets, exponent=0.5).backward()
    """
    options = Options(
        loss="ghmr", mu=mu, bins=bins, momentum=momentum, variant=variant, reduction=reduction, exponent=exponent
    )
    return checked_loss(input, target, weight, running_counts, options, backend=backend, process_group=process_group)


def checked_loss(
    input: Levels,
    target: Levels,
    weight: Levels | None,
    running_counts: Tensor | None,
    options: Options,
    *,
    class_dim: int | None = None,
    backend: Backend | None,
    process_group: "torch.distributed.ProcessGroup | None" = None,
    names: Names | None = None,
) -> Tensor | tuple[Tensor, ...]:
    """Checks all arguments, then computes the loss. The functions and the modules share it.

    names: the names of the arguments in error messages.
    """
    names = names or Names()
    options = check_options(options)
    population = check_population(
        input, target, weight, class_index=options.loss == "ghmc", names=names, class_dim=class_dim
    )
    losses = harmonized_losses(population, running_counts, options, backend, process_group, names)
    return tuple(losses) if options.reduction == "none" and isinstance(input, (tuple, list)) else losses[0]


def harmonized_losses(
    population: Population,
    running_counts: Tensor | None,
    options: Options,
    backend: Backend | None,
    process_group: "torch.distributed.ProcessGroup | None",
    names: Names,
) -> list[Tensor]:
    """[loss], or the losses of each level for "none". Options and population are taken as checked."""
    first = population.inputs[0]
    check_running_counts(running_counts, options, first.device, names)
    triton = use_triton(backend, first.device, first.dtype, options.bins)
    if not triton:
        check_float64(first.device)
    group = group_name(process_group)
    processes = 1 if process_group is None else process_group.size()
    factor = 1 if options.reduction == "none" else processes
    if running_counts is not None and not options.update:  # evaluation: the weights are those of the state
        group, factor = None, factor if options.reduction == "mean" else factor * processes  # N: as if all had as many
    options = replaced(options, loss_weight=options.loss_weight * factor, group=group)
    return differentiable_loss(population, running_counts, options, triton=triton)
