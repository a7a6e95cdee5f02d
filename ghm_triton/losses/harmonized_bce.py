"""GHM-C per element with the total of another loss, for criteria that divide the sum by a number of positives."""

from typing import Literal, get_args

import torch
from torch import Tensor
from torch.nn import functional

from ..autograd import transformed
from ..backend import checks_targets
from ..checks import check_choice, check_dense, check_device, check_floats
from ..eager.targets import check_targets
from ..options import Options, replaced
from ..population import Level, compute_dtype
from ..types import Backend
from .base import HarmonizedLoss, elementwise_loss
from .calls import call_following, follow_gradients

Preserve = Literal["value", "gradient"]
_NO_GRAPH = 'value must be computed from input, which requires grad, for preserve="gradient", got a constant'


class HarmonizedBCELoss(HarmonizedLoss):
    r"""GHM-C per element, scaled so that its total is that of binary cross entropy, or of another loss.

    .. math:: \ell_i = c \, \beta_i \, \mathrm{CE}(x_i, t_i), \quad
              c = \frac{\sum_k v_k}{\sum_k \beta_k \mathrm{CE}(x_k, t_k)}

    beta is the harmonizing weight of :class:`GHMCLoss` (Li, Liu, Wang, AAAI 2019, eq. 9). v is binary cross entropy, or
    the `value` of the call. With ``preserve="gradient"``, c keeps the L1 norm of the gradient instead:

    .. math:: c = \frac{\sum_k |\partial v_k / \partial x_k|}{\sum_k \beta_k |\sigma(x_k) - t_k|}

    Use this loss where a framework sums an elementwise loss and divides the sum by the number of positives, or by the
    sum of the targets. The size of :class:`GHMCLoss`, a mean over all elements, does not fit there. The divisor and the
    loss weight of the framework stay. What changes is which elements the gradient comes from. c and beta are constants
    of the step: no gradient flows through them.

    Where gradients are disabled, as in validation, the call returns v itself and does not change the state. If `value`
    is a total, these are the values of binary cross entropy, scaled to it.

    Args:
        preserve: "value" keeps the sum of v, and "gradient" the L1 norm of its gradient with respect to the logits.
        bins, exponent, momentum: See :class:`GHMCLoss`.
        backend: "triton", "eager", or None, which means Triton on devices that support it.
        process_group: If given, the density is that of all processes of this group. Each process has its own c. See
            :class:`GHMCLoss`.

    Shape:
        - input: logits of any shape.
        - target: values in [0, 1] of `input.shape`.
        - value: None, the elementwise loss of the framework, of `input.shape`, or its total, a scalar. Not negative.
        - output: `input.shape`; float32, or float64 for float64 input.

    Attributes:
        running_counts (Tensor or None): See :class:`GHMCLoss`.

    Raises:
        TypeError, ValueError: An argument is not as described.

    Example:
        >>> loss = HarmonizedBCELoss()
        >>> logits, target = torch.randn(2, 300, 10, requires_grad=True), torch.zeros(2, 300, 10)
        >>> target[0, 7, 3] = 1
        >>> (loss(logits, target).sum() / target.sum()).backward()
    """

    preserve: Preserve

    def __init__(
        self,
        *,
        preserve: Preserve = "value",
        bins: int = 30,
        exponent: float = 0.5,
        momentum: float = 0.75,
        backend: Backend | None = None,
        process_group: "torch.distributed.ProcessGroup | None" = None,
    ):
        check_choice("preserve", preserve, get_args(Preserve))
        options = Options(loss="ghmc", bins=bins, exponent=exponent, momentum=momentum, reduction="none")
        super().__init__(options, ("bins", "exponent", "momentum"), backend, process_group)
        self.preserve = preserve

    def forward(self, input: Tensor, target: Tensor, value: Tensor | None = None) -> Tensor:  # type: ignore[override]
        """Compute the losses and, in training, update `running_counts`.

        Args:
            input: Logits of any shape, float32, float16, bfloat16 or float64.
            target: Values in [0, 1] of the shape of `input`.
            value: The losses v of the shape of `input`, or a scalar, their total, at least 0. None: BCE. For
                ``preserve="value"`` it is read as a constant. For ``preserve="gradient"`` it must have been computed
                from `input`, and its graph is freed.

        Returns:
            Tensor: The losses, of the shape of `input`. float32, or float64 for float64 `input`.
        """
        self._check(input, target, value)
        if not follow_gradients(self):
            return _plain(input, target, value)
        self.restore_buffers()
        if self.preserve == "value":
            losses = self._harmonized(input, target)
            wanted = _cross_entropy(input, target) if value is None else value.detach()
            return losses * _ratio(wanted, losses.detach())
        wanted = _residual(input, target) if value is None else _gradient(value, input)
        logits = input.to(compute_dtype(input.dtype))  # the norm of a 16-bit gradient would be rounded
        if not logits.requires_grad:
            logits = logits.detach().requires_grad_()
        losses = self._harmonized(logits, target)
        (gradient,) = torch.autograd.grad(losses.sum(), logits, retain_graph=True)
        losses = losses * _ratio(wanted.abs(), gradient.abs())
        return losses if input.requires_grad else losses.detach()

    def options(self) -> Options:
        """Return the current settings, and whether a call updates the state."""
        return replaced(super().options(), reduction="none")

    def extra_repr(self) -> str:
        """Return the settings."""
        return f"preserve={self.preserve!r}, {super().extra_repr()}"

    def _harmonized(self, logits: Tensor, target: Tensor) -> Tensor:
        state, options = self.running_counts, self.options()
        return call_following(
            self, elementwise_loss, logits, target, None, state, options, self.backend, self.process_group
        )

    def _check(self, input: Tensor, target: Tensor, value: Tensor | None) -> None:
        check_choice("preserve", self.preserve, get_args(Preserve))
        check_dense("input", input)
        check_floats("input", input)
        given = {"target": target} if value is None else {"target": target, "value": value}
        for name, tensor in given.items():
            check_dense(name, tensor)
            check_device(name, tensor, "input", input.device)
            if tensor.shape != input.shape and not (name == "value" and tensor.dim() == 0):
                other = ", or be a scalar" if name == "value" else ""
                raise ValueError(
                    f"{name} must have the shape of input, {tuple(input.shape)}{other}, got {tuple(tensor.shape)}"
                )
        if self.preserve == "gradient" and value is not None and torch.is_grad_enabled():
            if not (value.requires_grad and input.requires_grad):
                raise ValueError(_NO_GRAPH)
        self._check_values(input, target, value)

    def _check_values(self, input: Tensor, target: Tensor, value: Tensor | None) -> None:
        """Check the total of `value`, and the target where gradients are disabled. Otherwise, the operator checks it.

        As for the operators, a GPU is not waited for unless the environment asks for it.
        """
        on_cpu = input.device.type == "cpu"
        if torch.compiler.is_compiling() or transformed() or not (on_cpu or checks_targets()):
            return
        if not torch.is_grad_enabled():
            check_targets(Level(input, target, None))
        if value is not None and (total := value.detach().sum()) < 0:
            raise ValueError(f"value must hold losses, with a total of at least 0, got a total of {total.item()}")


def _plain(input: Tensor, target: Tensor, value: Tensor | None) -> Tensor:
    """v, element by element."""
    if value is not None and value.shape == input.shape:
        return value.to(compute_dtype(input.dtype))
    losses = _cross_entropy(input, target)
    return losses if value is None else losses * _ratio(value, losses)


@torch.no_grad()
def _cross_entropy(input: Tensor, target: Tensor) -> Tensor:
    dtype = compute_dtype(input.dtype)
    return functional.binary_cross_entropy_with_logits(input.to(dtype), target.to(dtype), reduction="none")


@torch.no_grad()
def _residual(input: Tensor, target: Tensor) -> Tensor:
    """sigmoid(x) - t, the derivative of binary cross entropy."""
    dtype = compute_dtype(input.dtype)
    return input.to(dtype).sigmoid() - target.to(dtype)


def _gradient(value: Tensor, input: Tensor) -> Tensor:
    (gradient,) = torch.autograd.grad(value.sum(), input, allow_unused=True)
    if gradient is None:
        raise ValueError(_NO_GRAPH)
    return gradient.to(compute_dtype(input.dtype))


@torch.no_grad()
def _ratio(wanted: Tensor, given: Tensor) -> Tensor:
    """Return the quotient of the sums, without a division by zero."""
    return wanted.to(given.dtype).sum() / given.sum().clamp(min=torch.finfo(given.dtype).tiny)
