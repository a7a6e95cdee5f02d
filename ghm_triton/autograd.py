"""The losses as differentiable functions of lists of levels. The harmonizing weights are constants: none flows through.

Autograd functions in the style that torch.func and torch.compile take: forward without context, and everything that
backward needs among the inputs and outputs.
"""

from typing import NamedTuple

import torch
from torch import Tensor

from . import ops  # noqa: F401  (registers torch.ops.ghm_triton)
from .checks import Population


class Options(NamedTuple):
    """What one call asks for.

    mu is None for GHM-C; `update` tells whether running_counts takes this call in, `grad` whether a gradient will be
    asked for; group is the name of the process group that shares the density, or None.
    """

    mu: float | None
    bins: int
    momentum: float
    loss_weight: float
    mmdet: bool
    reduction: str
    update: bool
    grad: bool
    group: str | None


def evaluate(population: Population, running_counts: Tensor | None, options: Options, *, triton: bool) -> list[Tensor]:
    """[loss], or the losses of each level for reduction "none"; running_counts is updated in place."""
    function = _TritonLoss if triton else _EagerLoss
    count = len(population.inputs)
    compiling = torch.compiler.is_compiling()
    tensors = [tensor for tensors in population for tensor in tensors]
    if not (compiling or torch.is_inference_mode_enabled()):  # autograd refuses to keep what inference mode made
        tensors = [tensor.clone() if tensor.is_inference() else tensor for tensor in tensors]
    if triton:
        tensors = [_for_kernels(tensor) for tensor in tensors]
    if compiling and not options.grad:  # of such a function Dynamo would trace the context as well
        outputs = function.forward(options, running_counts, count, *tensors)
    else:
        outputs = function.apply(options, running_counts, count, *tensors)
    return list(outputs[: _losses(options, count)])


def _losses(options: Options, count: int) -> int:
    return count if options.reduction == "none" else 1


def _for_kernels(tensor: Tensor) -> Tensor:
    """Contiguous, and bytes for bool, of which kernels would see the sign."""
    tensor = tensor.contiguous()
    return tensor.view(torch.uint8) if tensor.dtype == torch.bool else tensor


def _split(tensors, count: int) -> Population:
    return Population(list(tensors[:count]), list(tensors[count : 2 * count]), list(tensors[2 * count :]))


def _all_gradients(ctx, grads: list[Tensor | None]):
    """From the inputs' gradients to those of apply's arguments; a GHM-R target's is the negative of its input's."""
    options, count, dtypes = ctx.options, ctx.count, ctx.dtypes
    wanted = ctx.needs_input_grad[3:]
    pairs = [
        *[(grad, i) for i, grad in enumerate(grads)],
        *[(grad, count + i) for i, grad in enumerate(grads) if options.mu is not None],
    ]
    found = [None] * len(wanted)
    for grad, i in pairs:
        if wanted[i] and grad is not None:
            found[i] = (grad if i < count else grad.neg()).to(dtypes[i])
    if torch.is_grad_enabled() and not torch.compiler.is_compiling():  # create_graph=True
        found = [grad if grad is None else _Once.apply(grad.detach().requires_grad_()) for grad in found]
    return None, None, None, *found


class _Once(torch.autograd.Function):
    """The identity on a gradient that must not be differentiated itself: a graph through it would be wrong in silence."""

    generate_vmap_rule = True

    @staticmethod
    def forward(grad):
        return grad.view_as(grad)

    @staticmethod
    def setup_context(ctx, inputs, output):
        pass

    @staticmethod
    def backward(ctx, *_):
        raise RuntimeError("the GHM losses can be differentiated once: their gradient was used in another backward pass")


class _Loss(torch.autograd.Function):
    """apply(options, running_counts, number of levels, *inputs, *targets, *weights): losses, and what backward needs."""

    @staticmethod
    def _remember(ctx, inputs, output):
        """(what was computed for backward, apply's tensors)."""
        ctx.options, _, ctx.count, *tensors = inputs
        ctx.dtypes = [tensor.dtype for tensor in tensors]
        kept = output[_losses(ctx.options, ctx.count) :]
        ctx.mark_non_differentiable(*kept)
        ctx.set_materialize_grads(False)
        return kept, tensors

    @classmethod
    def _vmap(cls, info, in_dims, options, running_counts, count, *tensors):
        """One population after the other: each has a density, and running counts, of its own."""
        _, state_dim, _, *dims = in_dims
        if running_counts is not None and state_dim is None:
            raise RuntimeError(
                "running_counts must be batched under vmap, one state for each population, got one state for "
                f"{info.batch_size} of them"
            )
        outputs = []
        for i in range(info.batch_size):
            one = [tensor if dim is None else tensor.select(dim, i).contiguous() for tensor, dim in zip(tensors, dims)]
            state = None if running_counts is None else running_counts.select(state_dim, i).contiguous()
            outputs.append(cls.apply(options, state, count, *one))
            if state is not None:
                running_counts.select(state_dim, i).copy_(state)
        return tuple(map(torch.stack, zip(*outputs))), (0,) * len(outputs[0])


class _EagerLoss(_Loss):
    """Computes the gradients of the inputs with the loss, up to the factor that backward brings."""

    @staticmethod
    def forward(options, running_counts, count, *tensors):
        outputs = torch.ops.ghm_triton.eager(*_split(tensors, count), running_counts, *options)
        if options.update and running_counts is not None:
            *outputs, state = outputs
            running_counts.copy_(state)
        return tuple(outputs)

    @staticmethod
    def setup_context(ctx, inputs, output):
        grads, _ = _Loss._remember(ctx, inputs, output)
        ctx.save_for_backward(*grads)

    @staticmethod
    def backward(ctx, *factors):
        factors = factors[: _losses(ctx.options, ctx.count)]
        factors = factors * ctx.count if len(factors) < ctx.count else factors
        grads = zip(ctx.saved_tensors, factors)
        return _all_gradients(ctx, [None if factor is None else grad * factor.detach() for grad, factor in grads])

    @staticmethod
    def vmap(*args):
        return _EagerLoss._vmap(*args)


class _TritonLoss(_Loss):
    """Launches the kernels: forward keeps one coefficient a region, backward reads the inputs again."""

    @staticmethod
    def forward(options, running_counts, count, *tensors):
        population = _split([tensor.detach() for tensor in tensors], count)
        forward, _, weigh = _operators(options)
        loss, coefficients = forward(
            *population,
            running_counts,
            *_scalars(options),
            options.momentum,
            options.loss_weight,
            options.mmdet,
            options.reduction == "mean",
            options.update,
            options.group,
        )
        losses = [loss] if options.reduction != "none" else weigh(*population, coefficients, *_scalars(options))
        return *losses, coefficients

    @staticmethod
    def setup_context(ctx, inputs, output):
        coefficients, tensors = _Loss._remember(ctx, inputs, output)
        ctx.save_for_backward(*coefficients, *tensors)

    @staticmethod
    def backward(ctx, *factors):
        options = ctx.options
        coefficients, *tensors = ctx.saved_tensors
        population = _split([tensor.detach() for tensor in tensors], ctx.count)
        factors = factors[: _losses(options, ctx.count)]
        if all(factor is None for factor in factors):
            return None, None, None, *[None] * len(tensors)
        factors = [
            torch.zeros_like(population.inputs[i], dtype=torch.float32)
            if factor is None
            else factor.detach().contiguous()
            for i, factor in enumerate(factors)
        ]
        if options.mu is not None and any(ctx.needs_input_grad[3 + ctx.count :]):  # targets may be wider than inputs
            population = population._replace(inputs=[input.float() for input in population.inputs])
        _, backward, _ = _operators(options)
        return _all_gradients(ctx, backward(factors, *population, coefficients, *_scalars(options)))

    @staticmethod
    def vmap(*args):
        return _TritonLoss._vmap(*args)


def _operators(options: Options):
    """(forward, backward, weigh) of the loss."""
    name = "ghmc" if options.mu is None else "ghmr"
    return [getattr(torch.ops.ghm_triton, f"{name}_{step}").default for step in ("forward", "backward", "weigh")]


def _scalars(options: Options) -> list:
    return [options.bins] if options.mu is None else [options.mu, options.bins]
