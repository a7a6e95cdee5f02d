"""GHM for softmax classifiers: cross entropy with one harmonizing weight per example, as a function and as a module."""

import torch
from torch import Tensor

from ..checks import check_options
from ..layout import Names
from ..options import Options
from ..row_layout import lay_out_rows
from ..types import Backend, Reduction
from .base import COMMON, HarmonizedLoss, harmonized_loss, refuse_class_weights


def ghm_cross_entropy(
    input: Tensor,
    target: Tensor,
    *,
    ignore_index: int | None = -100,
    label_smoothing: float = 0.0,
    bins: int = 30,
    exponent: float = 0.5,
    momentum: float = 0.0,
    running_counts: Tensor | None = None,
    reduction: Reduction = "mean",
    backend: Backend | None = None,
    process_group: "torch.distributed.ProcessGroup | None" = None,
) -> Tensor:
    r"""Gradient harmonizing cross entropy for softmax classifiers.

    .. math:: L = \frac{1}{N} \sum_i \beta_i \, CE_i, \quad CE_i = -\sum_c y_{ic} \log p_{ic}, \quad
              j(i) = \text{unit region of } g_i = \frac{1}{2} \sum_c |p_{ic} - y_{ic}|

    p is the softmax of the logits, y is the target distribution, and N is the number of examples that are not ignored.
    g is half the L1 norm of p - y, the gradient of CE with respect to the logits. For a class index it is
    :math:`1 - p_y`. beta is that of :func:`ghmc_loss` with the density of g over the N examples. Each example has one
    weight, so the direction of its gradient does not change. With two classes the loss is GHM-C of the difference of
    the two logits. The paper (Li, Liu, Wang, AAAI 2019) stops at two classes; this extension is ours. The harmonizing
    weight beta is a constant: no gradient flows through it or to `target`. ``exponent=1`` has the density of the paper.

    The calling convention is that of :func:`torch.nn.functional.cross_entropy`. With ``bins=1`` or ``exponent=0``, the
    values are equal too. Class weights are not supported: the density already sets the weight of each example, and
    a second weight per class would undo the shares that it gives to the regions.

    Args:
        input: Logits of shape [C], [N, C] or [N, C, d1, ...], float32, float16, bfloat16 or float64.
        target: Class indices of any integer dtype and of shape [], [N], or [N, d1, ...]. Or floating point
            probabilities of the shape of `input`, in [0, 1]. They should sum to 1, which is not checked, as in PyTorch:
            a sum is a factor of the loss, and a norm above 1 counts in the last region.
        ignore_index: An example with this class index has no loss and no gradient, and is not counted. None: every
            example counts. It must be negative or None when `target` holds probabilities.
        label_smoothing: In [0, 1]. y becomes (1 - label_smoothing) y + label_smoothing / C.
        bins, exponent, momentum, running_counts, backend, process_group: See :func:`ghmc_loss`.
        reduction: "mean" (divides by N), "sum" or "none".

    Returns:
        Tensor: float32, or float64 for float64 `input`. A scalar for "mean" and "sum". For "none" the losses of the
        examples, in the shape of class indices. The mean is 0, not NaN, if all examples are ignored.

    Raises:
        TypeError, ValueError: An argument is not as described. The message names the argument. No state has changed.
        IndexError: A class index is neither from 0 to C - 1 nor `ignore_index`. The Triton kernels do not look at the
            values of `target`, because that would synchronize with the GPU: they ignore an example with such an index,
            and a probability outside [0, 1] gives a meaningless loss. They raise with ``GHM_TRITON_CHECK=1``, see
            :func:`ghmc_loss`.
        RuntimeError: `backend` is "triton", but Triton cannot run.

    Example:
        >>> logits = torch.randn(32, 1000, requires_grad=True)
        >>> labels = torch.randint(1000, (32,))
        >>> ghm_cross_entropy(logits, labels).backward()
    """
    options = Options(
        loss="cross_entropy",
        bins=bins,
        exponent=exponent,
        momentum=momentum,
        reduction=reduction,
        ignore_index=ignore_index,
        label_smoothing=label_smoothing,
    )
    return _rowwise_loss(input, target, running_counts, options, backend, process_group)


def _rowwise_loss(
    input: Tensor,
    target: Tensor,
    running_counts: Tensor | None,
    options: Options,
    backend: Backend | None,
    process_group: "torch.distributed.ProcessGroup | None",
) -> Tensor:
    """Check all arguments, then compute the loss. The function and the module share it."""
    options = check_options(options)
    population, shape = lay_out_rows(input, target, options)
    loss = harmonized_loss(population, running_counts, options, backend, process_group, Names())[0]
    return loss.view(shape) if options.reduction == "none" else loss


class GHMCrossEntropyLoss(HarmonizedLoss):
    r"""Gradient harmonizing cross entropy for softmax classifiers, times `loss_weight`.

    .. math:: L = \frac{1}{N} \sum_i \beta_i \, CE_i, \quad CE_i = -\sum_c y_{ic} \log p_{ic}, \quad
              j(i) = \text{unit region of } g_i = \frac{1}{2} \sum_c |p_{ic} - y_{ic}|

    The module keeps the moving average of the density. :func:`ghm_triton.ghm_cross_entropy` is the functional form and
    explains the symbols.

    Args:
        ignore_index: Class index of the examples that do not count, or None.
        label_smoothing: e in [0, 1]: the target is (1 - e) y + e / C.
        bins: M, the number of unit regions of the gradient norm, from 1 to 510.
        exponent: rho in [0, 1]: the share of region k in the total weight is proportional to S_k^(1 - rho). 1 has the
            density of the paper, and 0 is plain cross entropy.
        momentum: The decay a in the moving average S_j <- a S_j + (1 - a) R_j of the counts per region, in [0, 0.999].
            0: no average. The default is the paper's 0.75. The functions keep no state and default to 0.
        loss_weight: A factor of the loss.
        reduction: "mean" (divides by the number of counted examples), "sum" or "none".
        backend: "triton", "eager", or None, which means Triton on devices that support it.
        process_group: See :class:`ghm_triton.GHMCLoss`.

    Shape:
        - input: logits [C], [N, C] or [N, C, d1, ...].
        - target: class indices [], [N] or [N, d1, ...], or probabilities in the shape of the input.
        - output: a scalar, or the shape of class indices for reduction "none"; float32, or float64 for float64 input.

    Attributes:
        running_counts (Tensor or None): See :class:`ghm_triton.GHMCLoss`.

    In `eval()`, the module takes the weights from the state and does not update it, like
    :class:`ghm_triton.GHMCLoss`.

    Raises:
        TypeError, ValueError: An argument is not as described.

    Example:
        >>> loss = GHMCrossEntropyLoss(label_smoothing=0.1)
        >>> loss(torch.randn(32, 1000, requires_grad=True), torch.randint(1000, (32,))).backward()
    """

    ignore_index: int | None
    label_smoothing: float

    @refuse_class_weights
    def __init__(
        self,
        *,
        ignore_index: int | None = -100,
        label_smoothing: float = 0.0,
        bins: int = 30,
        exponent: float = 0.5,
        momentum: float = 0.75,
        loss_weight: float = 1.0,
        reduction: Reduction = "mean",
        backend: Backend | None = None,
        process_group: "torch.distributed.ProcessGroup | None" = None,
    ):
        options = Options(
            loss="cross_entropy",
            ignore_index=ignore_index,
            label_smoothing=label_smoothing,
            bins=bins,
            exponent=exponent,
            momentum=momentum,
            loss_weight=loss_weight,
            reduction=reduction,
        )
        super().__init__(options, ("ignore_index", "label_smoothing", *COMMON), backend, process_group)

    def forward(self, input: Tensor, target: Tensor) -> Tensor:  # type: ignore[override]
        """Compute the loss and, in training, update `running_counts`.

        Args:
            input, target: See :func:`ghm_triton.ghm_cross_entropy`.

        Returns:
            Tensor: A scalar, or for reduction "none" the losses of the examples. float32, or float64 for float64
            `input`.
        """
        self.restore_buffers()
        state = self.running_counts
        return _rowwise_loss(input, target, state, self.options(), self.backend, self.process_group)
