"""The operators of the Triton path: schemas, the launchers as implementations, and fakes for tracing.

Lists hold one contiguous tensor a level; `weights` may be empty. See ghm_triton.kernels.launch for shapes and dtypes.
The CPU implementation serves Triton's interpreter.
"""

import torch

from .backend import kernels

_POPULATION = "Tensor[] inputs, Tensor[] targets, Tensor[] weights"
_OPTIONS = "float momentum, float loss_weight, bool mmdet, bool mean, bool update"
_SCHEMAS = [
    f"ghmc_forward({_POPULATION}, Tensor(a!)? running_counts, int bins, {_OPTIONS}) -> (Tensor, Tensor)",
    f"ghmc_backward(Tensor[] grads, {_POPULATION}, Tensor coefficients, int bins) -> Tensor[]",
    f"ghmc_weigh({_POPULATION}, Tensor coefficients, int bins) -> Tensor[]",
    f"ghmr_forward({_POPULATION}, Tensor(a!)? running_counts, float mu, int bins, {_OPTIONS}) -> (Tensor, Tensor)",
    f"ghmr_backward(Tensor[] grads, {_POPULATION}, Tensor coefficients, float mu, int bins) -> Tensor[]",
    f"ghmr_weigh({_POPULATION}, Tensor coefficients, float mu, int bins) -> Tensor[]",
]
_library = torch.library.Library("ghm_triton", "DEF")


def _slots(bins: int) -> int:
    return 1 << (bins + 1).bit_length()  # the power of two from bins + 2 up, as ghm_triton.kernels has it


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
    for _key in ("CPU", "CUDA", "XPU") if kernels is not None else ():
        _library.impl(_name, getattr(kernels, f"launch_{_name}"), _key)
    torch.library.register_fake(f"ghm_triton::{_name}", _FAKES[_name], lib=_library)
