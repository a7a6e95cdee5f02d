"""GHM for softmax classifiers: cross entropy with one harmonizing weight per example, as a function and as a module."""

import torch
from torch import Tensor

from .checks import Names, check_options
from .class_scores import check_examples
from .distributed import world
from .functional import harmonized_losses
from .modules import HarmonizedLoss
from .options import Options


def ghm_cross_entropy(
    input: Tensor,
    target: Tensor,
    *,
    ignore_index: int = -100,
    label_smoothing: float = 0.0,
    bins: int = 30,
    momentum: float = 0.0,
    running_counts: Tensor | None = None,
    exponent: float = 1.0,
    reduction: str = "mean",
    backend: str | None = None,
    process_group: "torch.distributed.ProcessGroup | None" = None,
) -> Tensor:
    r"""Gradient harmonizing cross entropy for softmax classifiers.

    .. math:: L = \frac{1}{N} \sum_i \beta_i \, CE_i, \quad CE_i = -\sum_c y_{ic} \log p_{ic}, \quad
              g_i = \frac{1}{2} \sum_c |p_{ic} - y_{ic}|

    p is the softmax of the logits, y the target distribution, and N the number of examples that are not ignored. The
    gradient norm g is half the L1 norm of p - y, the gradient of CE with respect to the logits; it is :math:`1 - p_y`
    for a class index. beta is that of :func:`ghmc_loss`, from the density of g over the N examples: one weight per
    example, so the direction of each example's gradient stays. With two classes the loss is GHM-C of the difference of
    the logits; the extension to more classes is ours, not the paper's. No gradient flows through beta or to `target`.

    The shapes are those of :func:`torch.nn.functional.cross_entropy`, and with ``bins=1`` or ``exponent=0`` so are the
    values. Class weights are not supported: they would rescale the gradient norms that beta is about to equalize.

    Args:
        input: Logits, float32, float16, bfloat16 or float64. Shape [C], [N, C] or [N, C, d1, ...].
        target: Class indices of any integer dtype, shape [], [N] or [N, d1, ...]. Or probabilities in the shape of
            `input`, floating point.
        ignore_index: Examples with this class index have no loss and no gradient, and count nowhere. Only with class
            indices.
        label_smoothing: In [0, 1]. y becomes (1 - label_smoothing) y + label_smoothing / C.
        bins, momentum, running_counts, exponent, backend, process_group: As for :func:`ghmc_loss` with
            ``variant="paper"``; ``exponent=0`` is plain cross entropy.
        reduction: "mean" (divided by N), "sum" or "none".

    Returns:
        float32, or float64 for float64 `input`: a scalar for "mean" and "sum", else a tensor with the losses of the
        examples, in the shape of the class indices. The mean is 0, not NaN, if all examples are ignored.

    Raises:
        TypeError, ValueError: An argument is not as described. The message names the argument. No state has changed.
        IndexError: A class index is neither in 0 .. C - 1 nor `ignore_index`. The Triton kernels, which do not wait
            for the GPU, ignore such examples instead.
        RuntimeError: `backend` is "triton" where Triton cannot run.

    Example:
        >>> logits = torch.randn(32, 1000, requires_grad=True)
        >>> labels = torch.randint(1000, (32,))
        >>> ghm_cross_entropy(logits, labels, exponent=0.5).backward()
    """
    options = Options(None, bins, momentum, "paper", reduction, exponent)
    options = options._replace(ignore_index=ignore_index, label_smoothing=label_smoothing)
    return _checked_loss(input, target, running_counts, options, backend, process_group)


def _checked_loss(
    input: Tensor,
    target: Tensor,
    running_counts: Tensor | None,
    options: Options,
    backend: str | None,
    process_group: "torch.distributed.ProcessGroup | None",
) -> Tensor:
    options = check_options(options)
    population, shape = check_examples(input, target, options)
    loss = harmonized_losses(population, running_counts, options, backend, process_group, Names())[0]
    return loss.view(shape) if options.unreduced else loss


class GHMCrossEntropyLoss(HarmonizedLoss):
    """:func:`ghm_triton.ghm_cross_entropy` times `loss_weight`, with its state in the buffer `running_counts`.

    Args:
        ignore_index, label_smoothing, bins, momentum, exponent, reduction, backend: As for
            :func:`ghm_triton.ghm_cross_entropy`.
        loss_weight: Factor of the loss.
        sync: Take the density over all processes, if torch.distributed is initialized. All processes then have the
            same running counts.

    State and `eval()` as for :class:`GHMCLoss` with ``variant="paper"``.

    Shape:
        - input: [C], [N, C] or [N, C, d1, ...]
        - target: [], [N] or [N, d1, ...] with class indices, or probabilities in the shape of the input
        - output: [], or the shape of the class indices for reduction "none"

    Raises:
        TypeError, ValueError: An argument is not as described.

    Example:
        >>> loss = GHMCrossEntropyLoss(exponent=0.5, label_smoothing=0.1)
        >>> loss(torch.randn(32, 1000, requires_grad=True), torch.randint(1000, (32,))).backward()
    """

    def __init__(
        self,
        *,
        ignore_index: int = -100,
        label_smoothing: float = 0.0,
        bins: int = 30,
        momentum: float = 0.75,
        loss_weight: float = 1.0,
        reduction: str = "mean",
        backend: str | None = None,
        sync: bool = False,
        exponent: float = 1.0,
    ):
        options = Options(None, bins, momentum, "paper", reduction, exponent, loss_weight)
        options = options._replace(ignore_index=ignore_index, label_smoothing=label_smoothing)
        super().__init__(options, backend, sync)

    def forward(self, input: Tensor, target: Tensor) -> Tensor:
        """Computes the loss and, in training, updates `running_counts`. Shapes and dtypes are in the class docstring."""
        return _checked_loss(input, target, self.running_counts, self.options(), self.backend, world(self.sync))
