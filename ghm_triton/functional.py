"""The losses as functions."""

from collections.abc import Sequence

import torch
from torch import Tensor

from .autograd import differentiable_loss
from .backend import use_triton
from .checks import Names, check_mu, check_options, check_population, check_running_counts
from .conventions import Population
from .distributed import group_name
from .options import Options

Levels = Tensor | Sequence[Tensor]


def ghmc_loss(
    input: Levels,
    target: Levels,
    weight: Levels | None = None,
    *,
    bins: int = 30,
    momentum: float = 0.0,
    running_counts: Tensor | None = None,
    variant: str = "paper",
    reduction: str = "mean",
    exponent: float = 1.0,
    backend: str | None = None,
    process_group: "torch.distributed.ProcessGroup | None" = None,
) -> Tensor | tuple[Tensor, ...]:
    r"""Gradient harmonizing classification loss, GHM-C.

    .. math:: L = \frac{1}{N} \sum_i \beta_i \, CE(x_i, t_i), \quad \beta_i = \frac{N}{S_{j(i)} M}, \quad
              j(i) = \text{unit region of } g_i = |\sigma(x_i) - t_i|

    with M = `bins` regions of the gradient norm g and S_j the number of elements in region j, or its moving average
    (Li, Liu, Wang, AAAI 2019, eq. 3, 8 to 13). No gradient flows through beta, to `target` or to `weight`.

    Args:
        input: Logits of any shape, float32, float16, bfloat16 or float64; or a list of such tensors (the levels of a
            feature pyramid), which then share one density.
        target: Of the shape of `input`, with values in [0, 1]; or integer class indices of shape `input.shape[:-1]`,
            of which 0 .. C-1 name the positive column of the last dimension and all others mean background.
        weight: None, or of shape `input.shape` or `input.shape[:-1]`, bool, integer or float. An element counts where
            weight > 0, and is ignored elsewhere.
        bins: M, the number of unit regions.
        momentum: a of the moving average S_j <- a S_j + (1 - a) R_j, in [0, 1).
        running_counts: The state of the average, updated in place, float32 or float64, zeros at the start. Needed
            when momentum > 0. Shape [bins + 1] for "paper": S, then the same average of the constant 1, by which S is
            divided (it is 1 - a^t after t calls). Shape [bins] for "mmdet".
        variant: "paper": divide by M, average every region. "mmdet": divide by the number of regions that have
            elements, average only those, and do not correct the start of the average.
        reduction: "mean" (divided by N), "sum" or "none".
        exponent: rho in [0, 1] of the tempered density, ours:
            :math:`\beta_i = N S_{j(i)}^{-\rho} / \sum_k S_k^{1 - \rho}`, so that region k has the share
            :math:`S_k^{1 - \rho}` of the total weight. 1: the paper. 0: plain cross entropy. Between them nearly empty
            regions weigh less. The sum is over all regions, in "mmdet" over those that have elements.
        backend: "triton", "eager" or None: Triton where the device has it. The environment variable
            GHM_TRITON_BACKEND sets the default. float64 always runs eagerly.
        process_group: Takes the density and N over all processes of this group, with one all-reduce of bins + 1
            numbers, to which each of them has to come, also without elements. "mean" and "sum" are this process's part
            times the number of processes: averaged, as DistributedDataParallel does with their gradients, they are
            those of one process that has all elements. None: of this process alone.

    Returns:
        float32, or float64 for float64 `input`: a scalar for "mean" and "sum", else a tensor of the shape of `input`,
        or a tuple of one tensor a level.

    Raises:
        TypeError, ValueError: An argument is not as described; the message names it. No state has changed.
        RuntimeError: `backend` is "triton" where Triton cannot run.

    Example:
        >>> logits = torch.randn(1000, 80, requires_grad=True)
        >>> labels = torch.randint(-1, 80, (1000,))         # -1: background
        >>> ghmc_loss(logits, labels, bins=30).backward()
    """
    options = Options(None, bins, momentum, variant, reduction, exponent)
    return checked_loss(input, target, weight, running_counts, options, backend=backend, process_group=process_group)


def ghmr_loss(
    input: Levels,
    target: Levels,
    weight: Levels | None = None,
    *,
    mu: float = 0.02,
    bins: int = 10,
    momentum: float = 0.0,
    running_counts: Tensor | None = None,
    variant: str = "paper",
    reduction: str = "mean",
    exponent: float = 1.0,
    backend: str | None = None,
    process_group: "torch.distributed.ProcessGroup | None" = None,
) -> Tensor | tuple[Tensor, ...]:
    r"""Gradient harmonizing regression loss, GHM-R.

    .. math:: L = \frac{1}{N} \sum_i \beta_i \, ASL_1(d_i), \quad ASL_1(d) = \sqrt{d^2 + \mu^2} - \mu, \quad
              g_i = \frac{|d_i|}{\sqrt{d_i^2 + \mu^2}}

    with d = input - target and beta as in :func:`ghmc_loss` (Li, Liu, Wang, AAAI 2019, eq. 15 to 18).

    Args:
        input: Box deltas of any shape, or a list of levels; dtypes as for :func:`ghmc_loss`.
        target: Of the shape of `input`, floating point. Gets a gradient if it requires one.
        weight: As for :func:`ghmc_loss`. In "mmdet" N is the sum of the weights (at least 1), else the number of
            elements with weight > 0.
        mu: Where ASL1 turns from quadratic to linear, in the units of the deltas; positive.
        bins, momentum, running_counts, variant, reduction, exponent, backend, process_group: As for
            :func:`ghmc_loss`. `exponent` 0 is plain ASL1.

    Returns, Raises:
        As :func:`ghmc_loss`.

    Example:
        >>> deltas, targets = torch.randn(64, 4, requires_grad=True), torch.randn(64, 4)
        >>> ghmr_loss(deltas, targets, bins=10).backward()
    """
    check_mu(mu)
    options = Options(mu, bins, momentum, variant, reduction, exponent)
    return checked_loss(input, target, weight, running_counts, options, backend=backend, process_group=process_group)


def checked_loss(
    input: Levels,
    target: Levels,
    weight: Levels | None,
    running_counts: Tensor | None,
    options: Options,
    *,
    backend: str | None,
    process_group: "torch.distributed.ProcessGroup | None" = None,
    names: Names | None = None,
) -> Tensor | tuple[Tensor, ...]:
    """Checks everything, then computes the loss: what the functions and the modules share. names: of the arguments."""
    names = names or Names()
    options = check_options(options)
    population = check_population(input, target, weight, class_index=options.loss == "ghmc", names=names)
    losses = harmonized_losses(population, running_counts, options, backend, process_group, names)
    return tuple(losses) if options.unreduced and isinstance(input, (tuple, list)) else losses[0]


def harmonized_losses(
    population: Population,
    running_counts: Tensor | None,
    options: Options,
    backend: str | None,
    process_group: "torch.distributed.ProcessGroup | None",
    names: Names,
) -> list[Tensor]:
    """[loss], or the losses of each level for "none". Options and population are taken as checked."""
    first = population.inputs[0]
    check_running_counts(running_counts, options, first.device, names)
    triton = use_triton(backend, first.device, first.dtype, options.bins)
    group = group_name(process_group)
    shares = 1 if process_group is None or options.unreduced else process_group.size()
    options = options._replace(loss_weight=options.loss_weight * shares, group=group)
    return differentiable_loss(population, running_counts, options, triton=triton)
