"""The operators: schemas, implementations, fakes for tracing, and rules for vmap. ghm_triton.autograd adds derivatives.

    eager_loss        GHM-C, GHM-R or GHM cross entropy (`Options.loss`) by ghm_triton.eager, on any device
    triton_loss       the same loss by the kernels
    triton_gradient   its gradients with respect to `inputs`, from the incoming `grads` and what the loss `kept`

Lists hold one tensor per level; `weights` may be empty. The losses return the loss, or the losses of each level for
"none". The inputs of the gradient follow: the gradients themselves for eager_loss with `grad`, the coefficients for
triton_loss, and for cross entropy the maximum, the factor of exp(input - maximum) and the slot of each row after them.
The new running_counts come last, if there are any and `update` is set. The options are separate arguments in the order
of ghm_triton.options. The operators of the kernels take contiguous tensors, and on the CPU they run in Triton's
interpreter.

eager_loss is opaque to torch.compile. Its choices depend on data (which blocks are easy) and would break a traced
graph; without them the compiled code is slower than the plain call.
"""

import contextlib
import contextvars
from collections.abc import Iterator

import torch

from . import eager
from .backend import checks_targets, kernels
from .interpreter import check_interpreter
from .options import SCHEMA, Options, replaced
from .population import Population, compute_dtype, loss_shape
from .regions import slots_of_kernels

_POPULATION = "Tensor[] inputs, Tensor[] targets, Tensor[] weights"
library = torch.library.Library("ghm_triton", "DEF")
library.define(f"eager_loss({_POPULATION}, Tensor? running_counts, {SCHEMA}) -> Tensor[]")
library.define(f"triton_loss({_POPULATION}, Tensor? running_counts, {SCHEMA}) -> Tensor[]")
library.define(f"triton_gradient(Tensor[] grads, {_POPULATION}, Tensor[] kept, {SCHEMA}) -> Tensor[]")


def eager_loss(population: Population, running_counts: torch.Tensor | None, options: Options) -> list[torch.Tensor]:
    """Compute the operator of this name without the dispatcher."""
    return _updating_once(eager.compute_loss, population, running_counts, options)


def triton_loss(population: Population, running_counts: torch.Tensor | None, options: Options) -> list[torch.Tensor]:
    """Compute the operator of this name without the dispatcher."""
    if population.inputs[0].is_cpu:
        check_interpreter()
    if checks_targets():
        eager.check_population(population, options)
    return _updating_once(kernels.launch_loss, population, running_counts, options)


def triton_gradient(
    grads: list[torch.Tensor], population: Population, kept: list[torch.Tensor], options: Options
) -> list[torch.Tensor]:
    """Compute the operator of this name without the dispatcher."""
    if population.inputs[0].is_cpu:
        check_interpreter()
    return kernels.launch_gradient(grads, population, kept, options)


_first_in_backward = contextvars.ContextVar("first_in_backward", default=False)


@contextlib.contextmanager
def updates_in_backward() -> Iterator[None]:
    """Let calls in a backward pass update the state, because their first forward pass did not."""
    token = _first_in_backward.set(True)
    try:
        yield
    finally:
        _first_in_backward.reset(token)


def _updating_once(compute, population: Population, running_counts: torch.Tensor | None, options: Options):
    """Call `compute`. Do not update the state in a backward pass, where checkpointing repeats a forward pass.

    A first pass without gradients may have left the update to the repeated one: :func:`updates_in_backward`.

    The operators decide this when they run, because a compiled graph is the same in both passes. The repeated forward
    pass takes the weights from the current state. If a later forward pass has updated the state in between, these are
    the weights of the later state.
    """
    first = torch._C._current_graph_task_id() == -1 or _first_in_backward.get()
    if running_counts is None or not options.update or first:
        return compute(population, running_counts, options)
    return compute(population, running_counts, replaced(options, update=False)) + [running_counts.clone()]


def _loss_operator(compute):
    def operator(inputs, targets, weights, running_counts, *options):
        return compute(Population(inputs, targets, weights), running_counts, Options(*options))

    return operator


def _gradient_operator(grads, inputs, targets, weights, kept, *options):
    return triton_gradient(grads, Population(inputs, targets, weights), kept, Options(*options))


library.impl("eager_loss", _loss_operator(eager_loss), "CompositeExplicitAutograd")
if kernels is not None:
    for _device in ("CPU", "CUDA", "XPU"):  # on the CPU in the interpreter
        library.impl("triton_loss", _loss_operator(triton_loss), _device)
        library.impl("triton_gradient", _gradient_operator, _device)


def _fake_loss(inputs, running_counts, options, kept):
    dtype = compute_dtype(inputs[0].dtype)
    losses = [input.new_empty(loss_shape(input, options) if options.unreduced else (), dtype=dtype) for input in inputs]
    state = [torch.empty_like(running_counts)] if options.update and running_counts is not None else []
    return (losses if options.unreduced else losses[:1]) + kept + state


def _fake_eager_loss(inputs, targets, weights, running_counts, *options):
    options, dtype = Options(*options), compute_dtype(inputs[0].dtype)
    grads = [input.new_empty(input.shape, dtype=dtype) for input in inputs] if options.grad else []
    return _fake_loss(inputs, running_counts, options, grads)


def _fake_triton_loss(inputs, targets, weights, running_counts, *options):
    options = Options(*options)
    coefficients = inputs[0].new_empty(slots_of_kernels(options.bins), dtype=torch.float32)
    kept = [coefficients]
    if options.loss == "cross_entropy":
        shape = loss_shape(inputs[0], options)
        kept += [inputs[0].new_empty(shape, dtype=dtype) for dtype in (torch.float32, torch.float32, torch.int16)]
    return _fake_loss(inputs, running_counts, options, kept)


def _fake_triton_gradient(grads, inputs, targets, weights, kept, *options):
    return [torch.empty_like(input) for input in inputs]


_FAKES = {
    "eager_loss": _fake_eager_loss,
    "triton_loss": _fake_triton_loss,
    "triton_gradient": _fake_triton_gradient,
}


def _at(value, dims, i: int):
    """Return population i of an argument (a tensor or a list of tensors) that vmap has stacked along `dims`."""
    if isinstance(value, (list, tuple)):
        return [_at(one, dim, i) for one, dim in zip(value, dims)]
    return value if dims is None else value.select(dims, i).contiguous()


def _blank(value, dims):
    """Return an empty tensor of the shape of one population, for an argument that holds no population."""
    if isinstance(value, (list, tuple)):
        return [_blank(one, dim) for one, dim in zip(value, dims)]
    return value if dims is None else value.new_empty(value.shape[:dims] + value.shape[dims + 1 :])


def _one_by_one(name: str):
    """Return the rule for vmap: each population has its own density."""

    def rule(info, in_dims, *args):
        if name != "triton_gradient" and args[3] is not None and in_dims[3] is None:
            raise RuntimeError(
                "running_counts must be batched under vmap, one state per population, got one state for "
                f"{info.batch_size} of them"
            )
        if info.batch_size == 0:
            one = _FAKES[name](*[_blank(*pair) for pair in zip(args, in_dims)])
            return [output.new_empty(0, *output.shape) for output in one], [0] * len(one)
        operator = getattr(torch.ops.ghm_triton, name)
        outputs = [operator(*[_at(*pair, i) for pair in zip(args, in_dims)]) for i in range(info.batch_size)]
        stacked = [torch.stack(of_all) for of_all in zip(*outputs)]
        return stacked, [0] * len(stacked)

    return rule


for _name, _fake in _FAKES.items():
    torch.library.register_fake(f"ghm_triton::{_name}", _fake, lib=library)
    torch.library.register_vmap(f"ghm_triton::{_name}", _one_by_one(_name), lib=library)
