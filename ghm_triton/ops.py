"""The operators: schemas, implementations, fakes for tracing, and rules for vmap. ghm_triton.autograd adds derivatives.

    eager      GHM-C (mu None) or GHM-R by ghm_triton.eager, on any device
    forward    the same by the kernels
    backward   its gradients with respect to `inputs`, from the incoming `grads` and the coefficients

Lists hold one tensor a level; `weights` may be empty. eager and forward return the loss, or the losses of each level for
"none"; then what backward needs: for eager the gradients if `grad`, for forward the coefficients; then the new
running_counts if there are any and `update`. Those of the kernels take contiguous tensors; on the CPU they run in
Triton's interpreter.
"""

import torch

from . import eager
from .backend import kernels
from .eager_levels import compute_dtype
from .interpreter import interpreted

_POPULATION = "Tensor[] inputs, Tensor[] targets, Tensor[] weights"
_LOSS = (
    f"({_POPULATION}, Tensor? running_counts, float? mu, int bins, float momentum, float loss_weight, "
    "float? max_weight, bool mmdet, str reduction, bool update, bool grad, str? group) -> Tensor[]"
)
library = torch.library.Library("ghm_triton", "DEF")
library.define(f"eager{_LOSS}")
library.define(f"forward{_LOSS}")
library.define(f"backward(Tensor[] grads, {_POPULATION}, Tensor coefficients, float? mu, int bins) -> Tensor[]")

library.impl("eager", eager.compute, "CompositeExplicitAutograd")
if kernels is not None:
    for _name, _launch in {"forward": kernels.launch_forward, "backward": kernels.launch_backward}.items():
        library.impl(_name, interpreted(_launch), "CPU")
        library.impl(_name, _launch, "CUDA")
        library.impl(_name, _launch, "XPU")


def _slots(bins: int) -> int:
    return 1 << (bins + 1).bit_length()  # the power of two from bins + 2 up, as ghm_triton.kernels has it


def _fake_outputs(inputs, running_counts, reduction, update, kept):
    dtype = compute_dtype(inputs[0].dtype)
    losses = [input.new_empty(input.shape if reduction == "none" else (), dtype=dtype) for input in inputs]
    state = [torch.empty_like(running_counts)] if update and running_counts is not None else []
    return (losses if reduction == "none" else losses[:1]) + kept + state


def _fake_eager(
    inputs, targets, weights, running_counts, mu, bins, a, factor, most, mmdet, reduction, update, grad, group
):
    dtype = compute_dtype(inputs[0].dtype)
    grads = [input.new_empty(input.shape, dtype=dtype) for input in inputs] if grad else []
    return _fake_outputs(inputs, running_counts, reduction, update, grads)


def _fake_forward(
    inputs, targets, weights, running_counts, mu, bins, a, factor, most, mmdet, reduction, update, grad, group
):
    coefficients = inputs[0].new_empty(_slots(bins), dtype=torch.float32)
    return _fake_outputs(inputs, running_counts, reduction, update, [coefficients])


def _fake_backward(grads, inputs, targets, weights, coefficients, mu, bins):
    return [torch.empty_like(input) for input in inputs]


def _at(value, dims, i: int):
    """Population i of an argument, a tensor or a list of tensors, that vmap has stacked along `dims`."""
    if isinstance(value, (list, tuple)):
        return [_at(one, dim, i) for one, dim in zip(value, dims)]
    return value if dims is None else value.select(dims, i).contiguous()


def _one_by_one(name: str):
    """The rule for vmap: every population has a density of its own."""

    def rule(info, in_dims, *args):
        if name != "backward" and args[3] is not None and in_dims[3] is None:
            raise RuntimeError(
                "running_counts must be batched under vmap, a state for each population, got one state for "
                f"{info.batch_size} of them"
            )
        operator = getattr(torch.ops.ghm_triton, name)
        outputs = [operator(*[_at(*pair, i) for pair in zip(args, in_dims)]) for i in range(info.batch_size)]
        stacked = [torch.stack(of_all) for of_all in zip(*outputs)]
        return stacked, [0] * len(stacked)

    return rule


for _name, _fake in {"eager": _fake_eager, "forward": _fake_forward, "backward": _fake_backward}.items():
    torch.library.register_fake(f"ghm_triton::{_name}", _fake, lib=library)
    torch.library.register_vmap(f"ghm_triton::{_name}", _one_by_one(_name), lib=library)
