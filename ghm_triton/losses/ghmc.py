"""GHM-C, for sigmoid classifiers: as a function and as a module."""

from collections.abc import Sequence
from typing import TYPE_CHECKING, Literal, overload

import torch
from torch import Tensor

from ..options import Options
from ..types import Backend, ClassificationOptions, Levels, Reduction
from .base import COMMON, HarmonizedLoss, elementwise_loss, refuse_class_weights

if TYPE_CHECKING:
    from typing_extensions import Unpack


@overload
def ghmc_loss(
    input: Tensor,
    target: Tensor,
    mask: Tensor | None = None,
    *,
    reduction: Reduction = "mean",
    **options: "Unpack[ClassificationOptions]",
) -> Tensor: ...
@overload
def ghmc_loss(
    input: Sequence[Tensor],
    target: Sequence[Tensor],
    mask: Sequence[Tensor] | None = None,
    *,
    reduction: Literal["mean", "sum"] = "mean",
    **options: "Unpack[ClassificationOptions]",
) -> Tensor: ...
@overload
def ghmc_loss(
    input: Sequence[Tensor],
    target: Sequence[Tensor],
    mask: Sequence[Tensor] | None = None,
    *,
    reduction: Literal["none"],
    **options: "Unpack[ClassificationOptions]",
) -> tuple[Tensor, ...]: ...
def ghmc_loss(
    input: Levels,
    target: Levels,
    mask: Levels | None = None,
    *,
    class_dim: int | None = None,
    ignore_index: int | None = None,
    bins: int = 30,
    exponent: float = 0.5,
    momentum: float = 0.0,
    running_counts: Tensor | None = None,
    reduction: Reduction = "mean",
    backend: Backend | None = None,
    process_group: "torch.distributed.ProcessGroup | None" = None,
) -> Tensor | tuple[Tensor, ...]:
    r"""Gradient harmonizing classification loss, GHM-C.

    .. math:: L = \frac{1}{N} \sum_i \beta_i \, CE(x_i, t_i), \quad
              \beta_i = \frac{N \, S_{j(i)}^{-\rho}}{\sum_{k=1}^{M} S_k^{1 - \rho}}, \quad
              j(i) = \text{unit region of } g_i = |\sigma(x_i) - t_i|

    M = `bins` is the number of unit regions of the gradient norm g. S_j is the number of elements in region j, or its
    moving average. rho = `exponent`: region k gets the share :math:`S_k^{1 - \rho}` of the total weight. ``exponent=1``
    is the paper (Li, Liu, Wang, AAAI 2019, eq. 3, 8 to 13), where :math:`\beta_i = N / (S_{j(i)} M)`, and 0 is plain
    cross entropy. The harmonizing weight beta is a constant: no gradient flows through it or to `target`.

    Args:
        input: Logits of any shape, float32, float16, bfloat16 or float64. Or a list of such tensors (the levels of a
            feature pyramid), which share one density.
        target: Values in [0, 1] of the shape of `input`. Or integer class indices of the shape of `input` without its
            class dimension: 0 to C - 1 name the positive class, and -1 or C means background. Beside a single class
            (C = 1), bool and floating point targets of that shape are masks of 0 and 1. Integers could be either, and
            are rejected unless `class_dim` is given, which makes them class indices.
        mask: None, or bool, True where an element counts. It must broadcast to the shape of `input`, or have that shape
            without the class dimension. For other weights, use ``reduction="none"`` and multiply.
        class_dim: The dimension of the classes, 1 for logits of segmentation [N, C, H, W]. None: the last. Another
            dimension than the last costs a copy of the logits. It must be given where sizes fit both.
        ignore_index: Elements with this target, or all elements of a class index of this value, do not count, such as
            255 in masks. None: all count.
        bins: M, the number of unit regions, from 1 to 510.
        exponent: rho in [0, 1].
        momentum: The decay a in the moving average S_j <- a S_j + (1 - a) R_j, where R_j is the number of elements of
            this call in region j. In [0, 0.999]. The default is 0 because a function keeps no state. The modules keep
            one and default to the paper's 0.75.
        running_counts: The state of the average, float32 or float64, initially zeros. The call updates it in place.
            Required if momentum > 0. Shape [bins + 1]: S, followed by the same average of the constant 1, which is
            1 - a^t after t calls; S is divided by it.
        reduction: "mean" (divides by N, the number of elements that count), "sum" or "none".
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
            The kernels do not check the values of targets, because that would synchronize with the GPU: there an
            index outside -1 to C is background, and a value outside [0, 1] gives a meaningless loss. With the
            environment variable ``GHM_TRITON_CHECK=1`` they raise too, and each call waits for the GPU.
        RuntimeError: `backend` is "triton", but Triton cannot run; or the device has no float64, which "eager" needs.

    Example:
        >>> logits = torch.randn(1000, 80, requires_grad=True)
        >>> labels = torch.randint(-1, 80, (1000,))  # -1: background
        >>> ghmc_loss(logits, labels).backward()
    """
    options = Options(
        loss="ghmc",
        class_dim=class_dim,
        ignore_index=ignore_index,
        bins=bins,
        exponent=exponent,
        momentum=momentum,
        reduction=reduction,
    )
    return elementwise_loss(input, target, mask, running_counts, options, backend, process_group)


class GHMCLoss(HarmonizedLoss):
    r"""Gradient harmonizing classification loss, GHM-C, times `loss_weight`. The module keeps the moving average.

    .. math:: L = \frac{1}{N} \sum_i \beta_i \, CE(x_i, t_i), \quad
              \beta_i = \frac{N \, S_{j(i)}^{-\rho}}{\sum_{k=1}^{M} S_k^{1 - \rho}}, \quad
              j(i) = \text{unit region of } g_i = |\sigma(x_i) - t_i|

    S_j is the moving average of the number of elements in region j. ``exponent=1`` is the paper (Li, Liu, Wang,
    AAAI 2019, eq. 3, 8 to 13). :func:`ghm_triton.ghmc_loss` is the functional form and explains the symbols. Give each
    head its own module: one module for two heads mixes their densities.

    Args:
        class_dim: The dimension of the classes, such as 1 for segmentation. None: the last.
        ignore_index: The target of elements that do not count, such as 255, or None.
        bins: M, the number of unit regions of the gradient norm, from 1 to 510.
        exponent: rho in [0, 1]: the share of region k in the total weight is proportional to S_k^(1 - rho). 0 is plain
            cross entropy.
        momentum: The decay a in the moving average S_j <- a S_j + (1 - a) R_j of the counts per region, in [0, 0.999].
            0: no average. The default is the paper's 0.75. The functions keep no state and default to 0.
        loss_weight: A factor of the loss.
        reduction: "mean" (divides by the number of counted elements), "sum" or "none".
        backend: "triton", "eager", or None, which means Triton on devices that support it.
        process_group: If given, the density is that of all processes of this group, which takes one all-reduce of
            bins + 1 numbers. Every process must make the call. The running counts are then equal on all processes.
            In `eval()`, a module with a moving average does not communicate. None: this process alone. Copies share the
            group, and a pickled module has none.

    Shape:
        - input: logits of any shape, or a list of levels.
        - target: values in [0, 1] of `input.shape`, or class indices of that shape without the class dimension, -1 or
          C for background.
        - mask: None, or bool, True where an element counts: what broadcasts to `input.shape`, or that shape without the
          class dimension.
        - output: a scalar, or `input.shape` for reduction "none"; float32, or float64 for float64 input.

    Attributes:
        running_counts (Tensor or None): The moving average, float32, also after `.half()`. Shape [bins + 1], with the
            average of the constant 1 at the end; None for momentum 0.

    In `eval()`, the module takes the weights from the state and does not update it. Regions that the state has never
    seen, or whose average has decayed below 1e-6 elements, use the counts of the call.

    Raises:
        TypeError, ValueError: An argument is not as described.

    Example:
        >>> loss = GHMCLoss()
        >>> loss(torch.randn(1000, 80, requires_grad=True), torch.randint(-1, 80, (1000,))).backward()
    """

    class_dim: int | None
    ignore_index: int | None

    @refuse_class_weights
    def __init__(
        self,
        *,
        class_dim: int | None = None,
        ignore_index: int | None = None,
        bins: int = 30,
        exponent: float = 0.5,
        momentum: float = 0.75,
        loss_weight: float = 1.0,
        reduction: Reduction = "mean",
        backend: Backend | None = None,
        process_group: "torch.distributed.ProcessGroup | None" = None,
    ):
        options = Options(
            loss="ghmc",
            class_dim=class_dim,
            ignore_index=ignore_index,
            bins=bins,
            exponent=exponent,
            momentum=momentum,
            loss_weight=loss_weight,
            reduction=reduction,
        )
        super().__init__(options, ("class_dim", "ignore_index", *COMMON), backend, process_group)
