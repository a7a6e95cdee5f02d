"""GHM-R, for box regression: as a function and as a module."""

from collections.abc import Sequence
from typing import TYPE_CHECKING, Literal, overload

import torch
from torch import Tensor

from ..options import Options
from ..types import Backend, Levels, Reduction, RegressionOptions
from .base import COMMON, HarmonizedLoss, elementwise_loss

if TYPE_CHECKING:
    from typing_extensions import Unpack


@overload
def ghmr_loss(
    input: Tensor,
    target: Tensor,
    mask: Tensor | None = None,
    *,
    reduction: Reduction = "mean",
    **options: "Unpack[RegressionOptions]",
) -> Tensor: ...
@overload
def ghmr_loss(
    input: Sequence[Tensor],
    target: Sequence[Tensor],
    mask: Sequence[Tensor] | None = None,
    *,
    reduction: Literal["mean", "sum"] = "mean",
    **options: "Unpack[RegressionOptions]",
) -> Tensor: ...
@overload
def ghmr_loss(
    input: Sequence[Tensor],
    target: Sequence[Tensor],
    mask: Sequence[Tensor] | None = None,
    *,
    reduction: Literal["none"],
    **options: "Unpack[RegressionOptions]",
) -> tuple[Tensor, ...]: ...
def ghmr_loss(
    input: Levels,
    target: Levels,
    mask: Levels | None = None,
    *,
    mu: float = 0.02,
    bins: int = 10,
    exponent: float = 0.5,
    momentum: float = 0.0,
    running_counts: Tensor | None = None,
    reduction: Reduction = "mean",
    backend: Backend | None = None,
    process_group: "torch.distributed.ProcessGroup | None" = None,
) -> Tensor | tuple[Tensor, ...]:
    r"""Gradient harmonizing regression loss, GHM-R.

    .. math:: L = \frac{1}{N} \sum_i \beta_i \, ASL_1(d_i), \quad ASL_1(d) = \sqrt{d^2 + \mu^2} - \mu, \quad
              g_i = \frac{|d_i|}{\sqrt{d_i^2 + \mu^2}}

    with d = input - target, and beta as in :func:`ghmc_loss`. ``exponent=1`` is the paper (Li, Liu, Wang, AAAI 2019,
    eq. 15 to 18), and 0 is plain ASL1.

    Args:
        input: Box deltas of any shape, or a list of levels, with the dtypes of :func:`ghmc_loss`.
        target: Floating point, of the shape of `input`. It receives a gradient if it requires one.
        mask: None, or bool, True where an element counts. It must broadcast to the shape of `input`, or have the shape
            `input.shape[:-1]`.
        mu: The transition point of ASL1 from quadratic to linear, in the units of the deltas, from 1e-15 to 1e12.
        bins, exponent, momentum, running_counts, reduction, backend, process_group: See :func:`ghmc_loss`.

    Returns:
        Tensor or tuple[Tensor, ...]: See :func:`ghmc_loss`.

    Raises:
        TypeError, ValueError, RuntimeError: See :func:`ghmc_loss`.

    Example:
        >>> deltas, targets = torch.randn(64, 4, requires_grad=True), torch.randn(64, 4)
        >>> ghmr_loss(deltas, targets).backward()
    """
    options = Options(loss="ghmr", mu=mu, bins=bins, exponent=exponent, momentum=momentum, reduction=reduction)
    return elementwise_loss(input, target, mask, running_counts, options, backend, process_group)


class GHMRLoss(HarmonizedLoss):
    r"""Gradient harmonizing regression loss, GHM-R, times `loss_weight`. The module keeps the moving average.

    .. math:: L = \frac{1}{N} \sum_i \beta_i \, ASL_1(d_i), \quad ASL_1(d) = \sqrt{d^2 + \mu^2} - \mu, \quad
              g_i = \frac{|d_i|}{\sqrt{d_i^2 + \mu^2}}

    d = input - target, and beta is that of :class:`GHMCLoss` with the regions of this g. ``exponent=1`` is the paper
    (Li, Liu, Wang, AAAI 2019, eq. 15 to 18). :func:`ghm_triton.ghmr_loss` is the functional form.

    Args:
        mu: The transition point of ASL1 from quadratic to linear, in the units of the deltas, from 1e-15 to 1e12.
        bins: M, the number of unit regions of the gradient norm, from 1 to 510.
        exponent: rho in [0, 1]: the share of region k in the total weight is proportional to S_k^(1 - rho). 0 is plain
            ASL1.
        momentum: The decay a in the moving average S_j <- a S_j + (1 - a) R_j of the counts per region, in [0, 0.999].
            0: no average. The default is the paper's 0.75. The functions keep no state and default to 0.
        loss_weight: A factor of the loss.
        reduction: "mean" (divides by the number of counted elements), "sum" or "none".
        backend: "triton", "eager", or None, which means Triton on devices that support it.
        process_group: See :class:`GHMCLoss`.

    Shape:
        - input: box deltas of any shape, or a list of levels.
        - target: `input.shape`, floating point.
        - mask: None, or bool, True where an element counts: what broadcasts to `input.shape`, or `input.shape[:-1]`.
        - output: a scalar, or `input.shape` for reduction "none"; float32, or float64 for float64 input.

    Attributes:
        running_counts (Tensor or None): The moving average, float32, also after `.half()`. Shape [bins + 1], with the
            average of the constant 1 at the end; None for momentum 0.

    In `eval()`, the module takes the weights from the state and does not update it. Regions that the state has never
    seen, or whose average has decayed below 1e-6 elements, use the counts of the call.

    Raises:
        TypeError, ValueError: An argument is not as described.

    Example:
        >>> loss = GHMRLoss(mu=0.02, bins=10)
        >>> loss(torch.randn(64, 4, requires_grad=True), torch.randn(64, 4)).backward()
    """

    mu: float

    def __init__(
        self,
        *,
        mu: float = 0.02,
        bins: int = 10,
        exponent: float = 0.5,
        momentum: float = 0.75,
        loss_weight: float = 1.0,
        reduction: Reduction = "mean",
        backend: Backend | None = None,
        process_group: "torch.distributed.ProcessGroup | None" = None,
    ):
        options = Options(
            loss="ghmr",
            mu=mu,
            bins=bins,
            exponent=exponent,
            momentum=momentum,
            loss_weight=loss_weight,
            reduction=reduction,
        )
        super().__init__(options, ("mu", *COMMON), backend, process_group)
