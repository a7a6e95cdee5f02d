"""The operators of the Triton path: schemas, implementations that launch the kernels, and fakes for tracing.

Lists hold one contiguous tensor a level; `weights` may be empty. See ghm_triton.kernels.launch for shapes and dtypes.
Triton is imported when a kernel first runs. The CPU implementation serves Triton's interpreter.
"""

import torch

_POPULATION = "Tensor[] inputs, Tensor[] targets, Tensor[] weights"
_FORWARD = "float momentum, float loss_weight, bool mmdet, bool mean, bool update"
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


def _fake_forward(inputs, bins):
    return inputs[0].new_empty((), dtype=torch.float32), inputs[0].new_empty(_slots(bins), dtype=torch.float32)


def _ghmc_forward(inputs, targets, weights, running_counts, bins, momentum, loss_weight, mmdet, mean, update):
    from .kernels import launch_ghmc_forward

    return launch_ghmc_forward(
        inputs,
        targets,
        weights,
        running_counts,
        bins=bins,
        momentum=momentum,
        loss_weight=loss_weight,
        mmdet=mmdet,
        mean=mean,
        update=update,
    )


def _ghmc_backward(grads, inputs, targets, weights, coefficients, bins):
    from .kernels import launch_ghmc_backward

    return launch_ghmc_backward(grads, inputs, targets, weights, coefficients, bins=bins)


def _ghmc_weigh(inputs, targets, weights, coefficients, bins):
    from .kernels import launch_ghmc_weigh

    return launch_ghmc_weigh(inputs, targets, weights, coefficients, bins=bins)


def _ghmr_forward(inputs, targets, weights, running_counts, mu, bins, momentum, loss_weight, mmdet, mean, update):
    from .kernels import launch_ghmr_forward

    return launch_ghmr_forward(
        inputs,
        targets,
        weights,
        running_counts,
        mu=mu,
        bins=bins,
        momentum=momentum,
        loss_weight=loss_weight,
        mmdet=mmdet,
        mean=mean,
        update=update,
    )


def _ghmr_backward(grads, inputs, targets, weights, coefficients, mu, bins):
    from .kernels import launch_ghmr_backward

    return launch_ghmr_backward(grads, inputs, targets, weights, coefficients, mu=mu, bins=bins)


def _ghmr_weigh(inputs, targets, weights, coefficients, mu, bins):
    from .kernels import launch_ghmr_weigh

    return launch_ghmr_weigh(inputs, targets, weights, coefficients, mu=mu, bins=bins)


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
    for _key in ("CPU", "CUDA", "XPU"):
        _library.impl(_name, globals()[f"_{_name}"], _key)
    torch.library.register_fake(f"ghm_triton::{_name}", _FAKES[_name], lib=_library)
