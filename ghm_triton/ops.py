"""The operators: schemas, implementations, and fakes for tracing.

Lists hold one tensor a level; `weights` may be empty. `ghm_triton::eager` is ghm_triton.eager.compute, on any device. The
others are the launchers of ghm_triton.kernels.launch, which take contiguous tensors; their CPU implementation serves
Triton's interpreter.
"""

import torch

from . import eager
from .backend import kernels
from .eager_levels import compute_dtype
from .interpreter import interpreted

_POPULATION = "Tensor[] inputs, Tensor[] targets, Tensor[] weights"
_FORWARD = "float momentum, float loss_weight, bool mmdet, bool mean, bool update, str? group"
_EAGER = (
    f"eager({_POPULATION}, Tensor? running_counts, float? mu, int bins, float momentum, float loss_weight, bool mmdet, "
    "str reduction, bool update, bool grad, str? group) -> Tensor[]"
)
_SCHEMAS = [
    f"ghmc_forward({_POPULATION}, Tensor(a!)? running_counts, int bins, {_FORWARD}) -> (Tensor, Tensor)",
    f"ghmc_backward(Tensor[] grads, {_POPULATION}, Tensor coefficients, int bins) -> Tensor[]",
    f"ghmc_weigh({_POPULATION}, Tensor coefficients, int bins) -> Tensor[]",
    f"ghmr_forward({_POPULATION}, Tensor(a!)? running_counts, float mu, int bins, {_FORWARD}) -> (Tensor, Tensor)",
    f"ghmr_backward(Tensor[] grads, {_POPULATION}, Tensor coefficients, float mu, int bins) -> Tensor[]",
    f"ghmr_weigh({_POPULATION}, Tensor coefficients, float mu, int bins) -> Tensor[]",
]
_library = torch.library.Library("ghm_triton", "DEF")


def _slots(bins: int) -> int:
    return 1 << (bins + 1).bit_length()  # the power of two from bins + 2 up, as ghm_triton.kernels has it


def _fake_eager(
    inputs, targets, weights, running_counts, mu, bins, momentum, loss_weight, mmdet, reduction, update, grad, group
):
    dtype = compute_dtype(inputs[0].dtype)
    whole = [input.new_empty(input.shape, dtype=dtype) for input in inputs]
    losses = whole if reduction == "none" else [inputs[0].new_empty((), dtype=dtype)]
    grads = [torch.empty_like(tensor) for tensor in whole] if grad else []
    state = [torch.empty_like(running_counts)] if update and running_counts is not None else []
    return losses + grads + state


def _fake_forward(inputs, bins):
    return inputs[0].new_empty((), dtype=torch.float32), inputs[0].new_empty(_slots(bins), dtype=torch.float32)


def _fake_like_inputs(dtype=None):
    return lambda inputs: [torch.empty_like(input, dtype=dtype) for input in inputs]


_FAKES = {
    "ghmc_forward": lambda inputs, targets, weights, running_counts, bins, *_: _fake_forward(inputs, bins),
    "ghmc_backward": lambda grads, inputs, *_: _fake_like_inputs()(inputs),
    "ghmc_weigh": lambda inputs, *_: _fake_like_inputs(torch.float32)(inputs),
    "ghmr_forward": lambda inputs, targets, weights, running_counts, mu, bins, *_: _fake_forward(inputs, bins),
    "ghmr_backward": lambda grads, inputs, *_: _fake_like_inputs()(inputs),
    "ghmr_weigh": lambda inputs, *_: _fake_like_inputs(torch.float32)(inputs),
}

for _schema in _SCHEMAS:
    _name = _schema.split("(")[0]
    _library.define(_schema)
    if kernels is not None:
        _launch = getattr(kernels, f"launch_{_name}")
        for _key, _implementation in {"CPU": interpreted(_launch), "CUDA": _launch, "XPU": _launch}.items():
            _library.impl(_name, _implementation, _key)
    torch.library.register_fake(f"ghm_triton::{_name}", _FAKES[_name], lib=_library)

_library.define(_EAGER)
_library.impl("eager", eager.compute, "CompositeExplicitAutograd")
torch.library.register_fake("ghm_triton::eager", _fake_eager, lib=_library)
