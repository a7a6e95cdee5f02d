"""Argument checks of the public functions. Each error names the argument, what it must be and what it was."""

import math
import operator
from collections.abc import Sequence
from typing import NamedTuple, get_args

import torch
from torch import Tensor

from .conventions import Population, state_size
from .options import Options, replaced
from .types import Reduction, Variant

VARIANTS, REDUCTIONS = get_args(Variant), get_args(Reduction)
FLOATS = (torch.float32, torch.float16, torch.bfloat16, torch.float64)
MAX_BINS = 4096  # float32 norms resolve no finer regions: with 10,000 bins the loss is off by 5e-4
INDICES = (torch.uint8, torch.int8, torch.int16, torch.int32, torch.int64)
NUMBERS = (*FLOATS, torch.bool, *INDICES)


class Names(NamedTuple):
    """The names of the arguments in error messages."""

    input: str = "input"
    target: str = "target"
    weight: str = "weight"
    running_counts: str = "running_counts"


def check_choice(name: str, value, choices: Sequence[str]) -> None:
    if value not in choices:
        raise ValueError(f"{name} must be one of {', '.join(map(repr, choices))}, got {value!r}")


def check_int(name: str, value) -> int:
    """An int from what has `__index__`: NumPy's and PyTorch's integers too."""
    if isinstance(value, int) and not isinstance(value, bool):
        return value
    if hasattr(type(value), "__index__") and not _is_bool(value):
        try:
            return operator.index(value)
        except (TypeError, ValueError):
            pass  # a float, or more than one number
    raise TypeError(f"{name} must be an int, got {value!r} of type {type(value).__name__}")


def check_float(name: str, value) -> float:
    """A float from what has `__float__` or `__index__`: NumPy's numbers and tensors of one number too."""
    if isinstance(value, (int, float)) and not isinstance(value, bool):
        return float(value)
    if (hasattr(type(value), "__float__") or hasattr(type(value), "__index__")) and not _is_bool(value):
        try:
            return float(value)
        except (TypeError, ValueError, RuntimeError):
            pass  # complex, or more than one number
    raise TypeError(f"{name} must be a number, got {value!r} of type {type(value).__name__}")


def _is_bool(value) -> bool:
    return isinstance(value, bool) or str(getattr(value, "dtype", "")) in ("bool", "torch.bool")


def check_bins(bins) -> int:
    bins = check_int("bins", bins)
    if not 1 <= bins <= MAX_BINS:
        raise ValueError(f"bins must be from 1 to {MAX_BINS}, got {bins}")
    return bins


def check_exponent(exponent, *, name: str = "exponent") -> float:
    return check_number(name, exponent, 0, "in [0, 1]", below=math.nextafter(1, 2), low_allowed=True)


def check_number(name: str, value, low: float, expected: str, *, below: float = math.inf, low_allowed=False) -> float:
    number = check_float(name, value)
    if not (low < number < below or (low_allowed and number == low)):
        raise ValueError(f"{name} must be {expected}, got {value}")
    return number


def check_momentum(momentum) -> float:
    most = 0.999  # float32 cannot hold a longer average: at 0.9999 it would be off by 2e-4
    return check_number("momentum", momentum, 0, f"in [0, {most}]", below=math.nextafter(most, 1), low_allowed=True)


def check_mu(mu) -> float:
    number = check_number("mu", mu, 0, "positive and finite")
    if not 1e-15 <= number <= 1e12:  # mu^2 must fit float32, and vanish beside a d^2 that does not
        raise ValueError(f"mu must be from 1e-15 to 1e12, got {mu}")
    return number


def check_ignore_index(ignore_index) -> int | None:
    if ignore_index is None:
        return None
    ignore_index = check_int("ignore_index", ignore_index)
    if not -(2**63) <= ignore_index < 2**63:
        raise ValueError(f"ignore_index must fit in int64, got {ignore_index}")
    return ignore_index


def check_options(options: Options) -> Options:
    """The options with each number as the int or the float that it stands for."""
    check_choice("variant", options.variant, VARIANTS)
    check_choice("reduction", options.reduction, REDUCTIONS)
    return replaced(
        options,
        bins=check_bins(options.bins),
        momentum=check_momentum(options.momentum),
        exponent=check_exponent(options.exponent),
        loss_weight=check_number("loss_weight", options.loss_weight, -math.inf, "finite"),
        mu=check_mu(options.mu) if options.loss == "ghmr" else 0.0,
        ignore_index=check_ignore_index(options.ignore_index),
        label_smoothing=check_exponent(options.label_smoothing, name="label_smoothing"),
    )


def check_running_counts(running_counts, options: Options, device: torch.device, names: Names) -> None:
    name, bins, variant = names.running_counts, options.bins, options.variant
    if running_counts is None:
        if options.momentum > 0:
            raise ValueError(
                f"{name} must be a tensor of {state_size(bins, variant)} zeros at the start when momentum > 0, "
                f"got None with momentum={options.momentum}"
            )
        return
    if not isinstance(running_counts, Tensor):
        raise TypeError(f"{name} must be a tensor, got {type(running_counts).__name__}")
    expected = (state_size(bins, variant),)
    if tuple(running_counts.shape) != expected:
        raise ValueError(
            f"{name} must have shape {expected} for bins={bins} and variant={variant!r}, "
            f"got {tuple(running_counts.shape)}"
        )
    if running_counts.dtype not in (torch.float32, torch.float64):
        raise TypeError(f"{name} must be float32 or float64, got {running_counts.dtype}")
    if running_counts.device != device:
        raise ValueError(f"{name} must be on the device of {names.input}, {device}, got {running_counts.device}")
    if not running_counts.is_contiguous():
        raise ValueError(f"{name} must be contiguous, got strides {running_counts.stride()}")


def check_population(
    input, target, weight, *, class_index: bool, names: Names, class_dim: int | None = None
) -> Population:
    """Splits input, target and weight into levels and checks them against one another.

    class_dim: the last dimension, or None. class_index: whether integer targets of shape input.shape[:-1] are allowed
    (GHM-C; not GHM-R).
    """
    inputs = _levels(names.input, input)
    targets = _levels(names.target, target, input, len(inputs), names.input)
    weights = [] if weight is None else _levels(names.weight, weight, input, len(inputs), names.input)
    for i, x in enumerate(inputs):
        of_level = f"[{i}]" if isinstance(input, (tuple, list)) else ""
        name = names.input + of_level
        check_floats(name, x)
        if x.dtype != inputs[0].dtype:
            raise TypeError(f"{name} must have the dtype of the first level, {inputs[0].dtype}, got {x.dtype}")
        check_device(name, x, "the first level", inputs[0].device)
        _check_target(names.target + of_level, targets[i], x, class_index, names.input)
        if class_index and class_dim is None and targets[i].dim() < x.dim() and x.shape[-1] == 1:
            raise ValueError(
                f"{names.target + of_level} must be floating point beside one class, where integers could mean a mask "
                f"or class indices, got {targets[i].dtype}: pass target.float() in the shape of {name} for a mask of 0 "
                "and 1, or class_dim=-1 for class indices, of which 0 names the class and -1 the background"
            )
        if (targets[i].dim() < x.dim()) != (targets[0].dim() < inputs[0].dim()):
            raise ValueError(f"{names.target} must hold class indices for all levels or for none, got both kinds")
        if weights:
            _check_weight(names.weight + of_level, weights[i], x, names.input)
            if (weights[i].dim() < x.dim()) != (weights[0].dim() < inputs[0].dim()):
                raise ValueError(f"{names.weight} must be given per element for all levels or for none, got both kinds")
    return Population(inputs, targets, weights)


def _levels(name: str, value, input=None, count: int | None = None, of: str = "") -> list[Tensor]:
    """`value` as a list of levels: as many as `input`, whose name is `of`, has."""
    of_levels = isinstance(value, (tuple, list))
    if count is not None and of_levels != isinstance(input, (tuple, list)):
        expected = f"a list of {count} tensors" if not of_levels else "a tensor"
        raise ValueError(f"{name} must be {expected}, as {of} is, got {type(value).__name__}")
    levels = list(value) if of_levels else [value]
    if not levels:
        raise ValueError(f"{name} must hold at least one level, got an empty {type(value).__name__}")
    if count is not None and len(levels) != count:
        raise ValueError(f"{name} must have as many levels as {of}, {count}, got {len(levels)}")
    for i, level in enumerate(levels):
        where = f"{name}[{i}]" if of_levels else name
        check_dense(where, level)
    return levels


def check_dense(name: str, value) -> None:
    if not isinstance(value, Tensor):
        raise TypeError(f"{name} must be a tensor, got {type(value).__name__}")
    if value.layout != torch.strided or value.is_nested:
        kind = "a nested tensor" if value.is_nested else f"the layout {value.layout}"
        raise TypeError(f"{name} must be a dense tensor (torch.strided), got {kind}")
    if hasattr(value, "device_mesh"):
        raise TypeError(
            f"{name} must be a plain tensor, got a DTensor: "
            "pass its to_local() with process_group=, or its full_tensor()"
        )


def check_floats(name: str, tensor: Tensor) -> None:
    if tensor.dtype not in FLOATS:
        raise TypeError(f"{name} must be float32, float16, bfloat16 or float64, got {tensor.dtype}")


def check_device(name: str, tensor: Tensor, of: str, device: torch.device) -> None:
    if tensor.device != device:
        raise ValueError(f"{name} must be on the device of {of}, {device}, got {tensor.device}")


def _check_number_type(name: str, tensor: Tensor) -> None:
    if tensor.dtype not in NUMBERS:
        raise TypeError(
            f"{name} must be bool, uint8, a signed integer or a float of 16 bits or more, got {tensor.dtype}"
        )


def _check_target(name: str, target: Tensor, input: Tensor, class_index: bool, of: str) -> None:
    check_device(name, target, of, input.device)
    _check_number_type(name, target)
    if class_index and not (target.is_floating_point() or target.is_complex()) and target.dim() < input.dim():
        if target.dtype == torch.bool:
            raise TypeError(f"{name} must hold class indices of an integer type, got {target.dtype}")
        if target.shape != input.shape[:-1]:
            raise ValueError(f"{name} must have shape {_index_shape(input)} for class indices, got {_shape(target)}")
        return
    if not target.is_floating_point() and (target.is_complex() or not class_index):
        raise TypeError(f"{name} must be a floating point tensor, got {target.dtype}")
    if target.shape != input.shape:
        other = f", or {_index_shape(input)} with integer class indices" if class_index and input.dim() else ""
        got = f"{_shape(target)} with {target.dtype}"
        raise ValueError(f"{name} must have the shape of {of}, {_shape(input)}{other}, got {got}")


def _check_weight(name: str, weight: Tensor, input: Tensor, of: str) -> None:
    check_device(name, weight, of, input.device)
    _check_number_type(name, weight)
    if weight.shape != input.shape and not (input.dim() and weight.shape == input.shape[:-1]):
        other = f" or {_index_shape(input)}" if input.dim() else ""
        raise ValueError(f"{name} must have shape {_shape(input)}{other}, got {_shape(weight)}")


def _shape(tensor: Tensor) -> tuple[int, ...]:
    return tuple(tensor.shape)


def _index_shape(input: Tensor) -> tuple[int, ...]:
    return tuple(input.shape[:-1])
