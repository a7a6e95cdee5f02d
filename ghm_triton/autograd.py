"""The losses as differentiable functions of lists of levels. The harmonizing weights are constants: none flows through."""

from typing import NamedTuple

import torch
from torch import Tensor

from . import eager, ops  # noqa: F401  (ops registers torch.ops.ghm_triton)
from .checks import Population


class Options(NamedTuple):
    """What one call asks for. mu is None for GHM-C; `update` tells whether running_counts takes this call in."""

    mu: float | None
    bins: int
    momentum: float
    mmdet: bool
    reduction: str
    loss_weight: float
    update: bool


def evaluate(population: Population, running_counts: Tensor | None, options: Options, *, triton: bool) -> list[Tensor]:
    """[loss], or the losses of each level for reduction "none"; running_counts is updated in place."""
    function = _TritonLoss if triton else _EagerLoss
    losses = function.apply(
        options, running_counts, len(population.inputs), *population.inputs, *population.targets, *population.weights
    )
    return [losses] if isinstance(losses, Tensor) else list(losses)


def _split(tensors, count: int) -> Population:
    return Population(list(tensors[:count]), list(tensors[count : 2 * count]), list(tensors[2 * count :]))


def _all_gradients(ctx, grads: list[Tensor]):
    """From the inputs' gradients to those of apply's arguments; a GHM-R target's is the negative of its input's."""
    options, count, dtypes = ctx.options, ctx.count, ctx.dtypes
    wanted = ctx.needs_input_grad[3:]
    of_inputs = [grad.to(dtypes[i]) if wanted[i] else None for i, grad in enumerate(grads)]
    of_targets = [
        grad.neg().to(dtypes[count + i]) if wanted[count + i] and options.mu is not None else None
        for i, grad in enumerate(grads)
    ]
    if torch.is_grad_enabled():  # create_graph=True
        of_inputs, of_targets = (
            [grad if grad is None else _Once.apply(grad.detach().requires_grad_()) for grad in grads]
            for grads in (of_inputs, of_targets)
        )
    return None, None, None, *of_inputs, *of_targets, *[None] * (len(wanted) - 2 * count)


class _Once(torch.autograd.Function):
    """The identity on a gradient that must not be differentiated itself: a graph through it would be wrong in silence."""

    @staticmethod
    def forward(ctx, grad):
        return grad.view_as(grad)

    @staticmethod
    def backward(ctx, *_):
        raise RuntimeError("the GHM losses can be differentiated once: their gradient was used in another backward pass")


def _remember(ctx, options, count, tensors):
    ctx.options, ctx.count = options, count
    ctx.dtypes = [tensor.dtype for tensor in tensors]


class _EagerLoss(torch.autograd.Function):
    """Computes the gradients of the inputs with the loss, up to the factor that backward brings."""

    @staticmethod
    def forward(ctx, options, running_counts, count, *tensors):
        _remember(ctx, options, count, tensors)
        arguments = options._asdict() | {"grad": any(ctx.needs_input_grad)}
        loss = eager.ghmc if arguments["mu"] is None else eager.ghmr
        if arguments["mu"] is None:
            del arguments["mu"]
        losses, grads = loss(*_split(tensors, count), running_counts, **arguments)
        if arguments["grad"]:
            ctx.save_for_backward(*grads)
        if options.reduction != "none":
            return losses[0]
        return tuple(torch.empty_like(loss).copy_(loss) for loss in losses)  # no views, which could not be changed in place

    @staticmethod
    def backward(ctx, *factors):
        factors = factors * ctx.count if len(factors) < ctx.count else factors
        return _all_gradients(ctx, [grad * factor.detach() for grad, factor in zip(ctx.saved_tensors, factors)])


class _TritonLoss(torch.autograd.Function):
    """Launches the kernels: forward keeps one coefficient a region, backward reads the inputs again."""

    @staticmethod
    def forward(ctx, options, running_counts, count, *tensors):
        _remember(ctx, options, count, tensors)
        tensors = [_for_kernels(tensor) for tensor in tensors]
        population = _split(tensors, count)
        scalars = [options.bins] if options.mu is None else [options.mu, options.bins]
        forward, _, weigh = _operators(options)
        loss, coefficients = forward(
            *population,
            running_counts,
            *scalars,
            options.momentum,
            options.loss_weight,
            options.mmdet,
            options.reduction == "mean",
            options.update,
        )
        ctx.save_for_backward(coefficients, *tensors)
        return loss if options.reduction != "none" else tuple(weigh(*population, coefficients, *scalars))

    @staticmethod
    def backward(ctx, *factors):
        options = ctx.options
        coefficients, *tensors = ctx.saved_tensors
        scalars = [options.bins] if options.mu is None else [options.mu, options.bins]
        _, backward, _ = _operators(options)
        factors = [factor.detach().contiguous() for factor in factors]
        population = _split(tensors, ctx.count)
        if options.mu is not None and any(ctx.needs_input_grad[3 + ctx.count :]):  # targets may be wider than inputs
            population = population._replace(inputs=[input.float() for input in population.inputs])
        return _all_gradients(ctx, backward(factors, *population, coefficients, *scalars))


def _operators(options: Options):
    """(forward, backward, weigh) of the loss."""
    name = "ghmc" if options.mu is None else "ghmr"
    return [getattr(torch.ops.ghm_triton, f"{name}_{step}").default for step in ("forward", "backward", "weigh")]


def _for_kernels(tensor: Tensor) -> Tensor:
    """Contiguous, and bytes for bool, of which kernels would see the sign."""
    if tensor.is_inference() and not torch.is_inference_mode_enabled():
        tensor = tensor.clone()  # so that it can be saved for backward
    tensor = tensor.detach().contiguous()
    return tensor.view(torch.uint8) if tensor.dtype == torch.bool else tensor
