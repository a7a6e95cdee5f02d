"""The losses as differentiable functions of lists of levels. No gradient flows through the harmonizing weights.

There are two paths to one derivative:

- Compiled and exported graphs call the operators, whose derivative `_register` registers.
- A plain call goes through an autograd.Function: `_PlainLoss`, or `_Loss` under torch.func, which does not support the
  derivatives of `torch.library.register_autograd`, at least not when nested (pytorch issues 168393, 170834, 179652).
"""

import sys

import torch
from torch import Tensor

from . import ops
from .options import Options, replaced
from .population import Population, kept_by_kernels, loss_shape

_modes = torch._C._len_torch_dispatch_stack  # the number of modes of torch.utils._python_dispatch, or of tracing
_is_exporting = getattr(torch.compiler, "is_exporting", torch.compiler.is_compiling)  # PyTorch 2.7


def differentiable_loss(
    population: Population, running_counts: Tensor | None, options: Options, *, triton: bool
) -> list[Tensor]:
    """Return [loss], or the losses of each level for reduction "none". Update running_counts in place."""
    compiling, count = torch.compiler.is_compiling(), len(population.inputs)
    inputs, targets, weights = population
    targets = targets if options.loss == "ghmr" else [_constant(target) for target in targets]
    tensors = [*inputs, *targets, *(_constant(weight) for weight in weights)]
    traced = transformed()
    grad = traced or (torch.is_grad_enabled() and any(tensor.requires_grad for tensor in tensors))
    options = replaced(options, grad=grad)
    if not (compiling or torch.is_inference_mode_enabled()):  # autograd cannot save inference tensors
        tensors = [tensor.clone() if tensor.is_inference() else tensor for tensor in tensors]
    if triton:
        tensors = [_for_kernels(tensor) for tensor in tensors]
    if compiling:
        outputs = _run(_operator(triton), options, running_counts, _split(tensors, count))
    else:
        function = _PlainLoss if not traced and _is_plain(tensors) else _Loss
        outputs = function.apply(triton, options, running_counts, count, *tensors)
    return list(outputs[: _losses(options, count)])


def _constant(tensor: Tensor) -> Tensor:
    return tensor.detach() if tensor.requires_grad else tensor


def transformed() -> bool:
    """Whether a gradient may be needed although no tensor has `requires_grad`.

    A graph that is traced from this call outlives it. Nested transforms of torch.func show only the innermost level.
    """
    if torch.compiler.is_compiling():
        return _is_exporting()
    if torch.jit.is_tracing() or torch._C._are_functorch_transforms_active():
        return True
    tracing = sys.modules.get("torch.fx.experimental.proxy_tensor")  # not imported: no make_fx
    return bool(_modes() and tracing is not None and tracing.get_proxy_mode() is not None)


def _losses(options: Options, count: int) -> int:
    return count if options.reduction == "none" else 1


def _for_kernels(tensor: Tensor) -> Tensor:
    """Return the tensor contiguous, with bool as uint8: kernels would read True as -1."""
    tensor = tensor.contiguous()
    return tensor.view(torch.uint8) if tensor.dtype == torch.bool else tensor


def _is_plain(tensors) -> bool:
    """Whether a call of an operator would reach its implementation, and nothing else would see it."""
    return not _modes() and all(
        type(tensor) in (Tensor, torch.nn.Parameter) and not tensor.is_meta for tensor in tensors
    )


def _split(tensors, count: int) -> Population:
    return Population(list(tensors[:count]), list(tensors[count : 2 * count]), list(tensors[2 * count :]))


def _operator(triton: bool):
    """Return the operator of the loss, with the arguments of its implementation."""
    operator = torch.ops.ghm_triton.triton_loss if triton else torch.ops.ghm_triton.eager_loss
    return lambda population, running_counts, options: operator(*population, running_counts, *options)


def _run(compute, options: Options, running_counts: Tensor | None, population: Population) -> list[Tensor]:
    """Return the losses of the operator, followed by the tensors that its gradient needs."""
    outputs = compute(population, running_counts, options)
    if running_counts is not None and options.update:
        *outputs, state = outputs
        running_counts.copy_(state)
    return outputs


def _remember(ctx, triton: bool, options: Options, population: Population, outputs) -> None:
    """Save the gradients without the incoming factor (eager), or the inputs and what the kernels kept (Triton)."""
    ctx.triton, ctx.options, ctx.count = triton, options, len(population.inputs)
    ctx.dtypes = [tensor.dtype for tensor in population.inputs + population.targets]
    ctx.set_materialize_grads(False)
    first = _losses(options, ctx.count)
    if triton:
        ctx.kept = kept_by_kernels(options)
        kept = outputs[first : first + ctx.kept]
        ctx.save_for_backward(*kept, *population.inputs, *population.targets, *population.weights)
    elif options.grad:
        ctx.save_for_backward(*outputs[first : first + ctx.count])


def _gradients(ctx, factors, needs_grad: list[bool]) -> list[Tensor | None]:
    """Return the gradients of the inputs, then of the targets. For GHM-R, the latter are the negatives."""
    options, count = ctx.options, ctx.count
    factors = factors[: _losses(options, count)]
    found = [None] * (2 * count)
    if all(factor is None for factor in factors):
        return found
    saved = ctx.saved_tensors  # read once: each access may run saved-tensor hooks, such as those of checkpointing
    if ctx.triton:
        population = _split(saved[ctx.kept :], count)
        with torch.no_grad():
            grads = _by_kernels(factors, population, list(saved[: ctx.kept]), options, any(needs_grad[count:]))
    else:
        factors = factors if options.unreduced else factors * count
        grads = [_scaled(grad, factor, options) for grad, factor in zip(saved, factors, strict=True)]
    for i, grad in enumerate(grads):
        if needs_grad[i]:
            found[i] = grad if grad.dtype == ctx.dtypes[i] else grad.to(ctx.dtypes[i])
        if needs_grad[count + i] and options.loss == "ghmr":
            found[count + i] = grad.neg().to(ctx.dtypes[count + i])
    if torch.is_grad_enabled():  # create_graph=True
        found = [grad if grad is None else _Once.apply(grad, saved[0]) for grad in found]
    return found


def _scaled(grad: Tensor, factor: Tensor | None, options: Options) -> Tensor:
    if factor is None:
        return torch.zeros_like(grad)
    if options.unreduced:  # the factor of an ignored element may be inf or NaN
        factor = factor.unsqueeze(1) if options.loss == "cross_entropy" else factor
        return torch.where(grad == 0, 0.0, grad * factor)
    if torch._C._are_functorch_transforms_active():  # vmap over 0 populations has no rule for a product with a number
        factor = factor.expand_as(grad)
    return grad * factor


def _by_kernels(factors, population: Population, kept: list[Tensor], options: Options, of_targets: bool):
    inputs, targets, weights = population
    if of_targets and options.loss == "ghmr":  # which may be wider than inputs
        inputs = [input.float() for input in inputs]
    shapes = [loss_shape(input, options) for input in inputs] if options.unreduced else [()]
    given = [
        kept[0].new_zeros(shape) if factor is None else factor.contiguous()
        for shape, factor in zip(shapes, factors, strict=True)
    ]
    batched = any(_batched(factor) for factor in given)
    if batched:
        given = [kept[0].new_ones(shape) for shape in shapes]
    if not transformed() and _is_plain([*given, *inputs, *targets, *weights]):
        grads = ops.triton_gradient(given, Population(inputs, targets, weights), kept, options)
    else:
        grads = torch.ops.ghm_triton.triton_gradient(given, inputs, targets, weights, kept, *options)
    if batched:
        factors = factors if options.unreduced else factors * len(grads)
        grads = [_scaled(grad.float(), factor, options) for grad, factor in zip(grads, factors, strict=True)]
    return grads


def _batched(factor: Tensor) -> bool:
    """Whether `is_grads_batched=True` stacked the factor. Its vmap has no rule for operators that return a list."""
    return not torch.compiler.is_compiling() and torch._C._functorch.is_legacy_batchedtensor(factor)


class _Loss(torch.autograd.Function):
    """apply(triton, options, running_counts, number of levels, *inputs, *targets, *weights) returns like `_run`."""

    generate_vmap_rule = True

    @staticmethod
    def forward(triton, options, running_counts, count, *tensors):
        return tuple(_run(_operator(triton), options, running_counts, _split(tensors, count)))

    @staticmethod
    def setup_context(ctx, inputs, output):
        triton, options, _, count, *tensors = inputs
        _remember(ctx, triton, options, _split(tensors, count), output)

    @staticmethod
    def backward(ctx, *factors):
        needs_grad = ctx.needs_input_grad[4:]
        found = _gradients(ctx, factors, needs_grad[: 2 * ctx.count])
        return None, None, None, None, *found, *[None] * (len(needs_grad) - len(found))


class _PlainLoss(torch.autograd.Function):
    """`_Loss` for plain tensors, without torch.func and the dispatcher: half the time of the host."""

    @staticmethod
    def forward(ctx, triton, options, running_counts, count, *tensors):
        population = _split(tensors, count)
        outputs = tuple(_run(ops.triton_loss if triton else ops.eager_loss, options, running_counts, population))
        _remember(ctx, triton, options, population, outputs)
        return outputs

    backward = _Loss.backward


class _Once(torch.autograd.Function):
    """A gradient that raises an error when it is differentiated. Without it, second derivatives would silently be 0.

    `kept` is a tensor that the node of the loss saved, so that the result depends on the inputs of the loss.
    """

    generate_vmap_rule = True

    @staticmethod
    def forward(grad, kept):
        return grad.view_as(grad)

    @staticmethod
    def setup_context(ctx, inputs, output):
        pass

    @staticmethod
    def backward(ctx, *_):
        raise RuntimeError(
            "the GHM losses can be differentiated once: their gradient was used in another backward pass"
        )


def _register(name: str) -> None:
    triton = name == "triton_loss"

    def setup_context(ctx, inputs, output):
        *population, running_counts = inputs[:4]
        options = Options(*inputs[4:])
        _remember(ctx, triton, options, Population(*map(list, population)), output)
        if running_counts is not None and options.update:
            ctx.mark_non_differentiable(output[-1])

    def backward(ctx, factors):
        of_inputs, of_targets, of_weights, *others = ctx.needs_input_grad
        found = _gradients(ctx, tuple(factors), [*of_inputs, *of_targets])
        return found[: ctx.count], found[ctx.count :], [None] * len(of_weights), *[None] * len(others)

    torch.library.register_autograd(f"ghm_triton::{name}", backward, setup_context=setup_context, lib=ops.library)


_register("eager_loss")
_register("triton_loss")
