"""Checks of arguments. Each error names the argument, what was expected, and what was given.

ghm_triton.layout checks the tensors.
"""

import functools
import math
import operator
from collections.abc import Sequence
from typing import get_args

import torch
from torch import Tensor

from .options import Options, replaced
from .regions import state_size
from .types import Reduction

REDUCTIONS = get_args(Reduction)
FLOATS = (torch.float32, torch.float16, torch.bfloat16, torch.float64)
MAX_BINS = 510  # with the slots of NaN and ignored elements, a row of counts fits the registers of a warp
INDICES = (torch.uint8, torch.int8, torch.int16, torch.int32, torch.int64)
NUMBERS = (*FLOATS, torch.bool, *INDICES)


def check_choice(name: str, value, choices: Sequence[str]) -> None:
    """Check that `value` is one of `choices`."""
    if value not in choices:
        raise ValueError(f"{name} must be one of {', '.join(map(repr, choices))}, got {value!r}")


def check_int(name: str, value) -> int:
    """Convert anything with `__index__`, such as NumPy's and PyTorch's integers, to an int."""
    if isinstance(value, int) and not isinstance(value, bool):
        return value
    if hasattr(type(value), "__index__") and not _is_bool(value):
        try:
            return operator.index(value)
        except (TypeError, ValueError):
            pass  # a float, or more than one number
    raise TypeError(f"{name} must be an int, got {value!r} of type {type(value).__name__}")


def check_float(name: str, value) -> float:
    """Convert anything with `__float__` or `__index__`, such as NumPy's numbers and one-element tensors, to a float."""
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
    """Return the number of regions as an int."""
    bins = check_int("bins", bins)
    if not 1 <= bins <= MAX_BINS:
        raise ValueError(f"bins must be from 1 to {MAX_BINS}, got {bins}")
    return bins


def check_exponent(exponent, *, name: str = "exponent") -> float:
    """Return a number in [0, 1] as a float."""
    return check_number(name, exponent, 0, "in [0, 1]", below=math.nextafter(1, 2), low_allowed=True)


def check_number(name: str, value, low: float, expected: str, *, below: float = math.inf, low_allowed=False) -> float:
    """Return a number above `low` and below `below` as a float. low_allowed: `low` itself is allowed too."""
    number = check_float(name, value)
    if not (low < number < below or (low_allowed and number == low)):
        raise ValueError(f"{name} must be {expected}, got {value}")
    return number


def check_momentum(momentum) -> float:
    """Return the momentum as a float."""
    most = 0.999  # float32 cannot hold a longer average: at 0.9999 it would be off by 2e-4
    return check_number("momentum", momentum, 0, f"in [0, {most}]", below=math.nextafter(most, 1), low_allowed=True)


def check_mu(mu) -> float:
    """Return the transition point of ASL1 as a float."""
    number = check_number("mu", mu, 0, "positive and finite")
    if not 1e-15 <= number <= 1e12:  # mu^2 must fit float32, and vanish beside a d^2 that does not
        raise ValueError(f"mu must be from 1e-15 to 1e12, got {mu}")
    return number


def check_ignore_index(ignore_index) -> int | None:
    """Return the index as an int, or None."""
    if ignore_index is None:
        return None
    ignore_index = check_int("ignore_index", ignore_index)
    if not -(2**63) <= ignore_index < 2**63:
        raise ValueError(f"ignore_index must fit in int64, got {ignore_index}")
    return ignore_index


def check_options(options: Options) -> Options:
    """Return the options with each number converted to an int or a float."""
    if torch.compiler.is_compiling() or not _BUILTIN.issuperset(map(type, options)):
        return _check_options(*options)
    return _checked_before(*options)


def _check_options(*values) -> Options:
    options = Options(*values)
    check_choice("reduction", options.reduction, REDUCTIONS)
    return replaced(
        options,
        bins=check_bins(options.bins),
        momentum=check_momentum(options.momentum),
        exponent=check_exponent(options.exponent),
        loss_weight=check_number("loss_weight", options.loss_weight, -math.inf, "finite"),
        mu=check_mu(options.mu) if options.loss == "ghmr" else 0.0,
        class_dim=None if options.class_dim is None else check_int("class_dim", options.class_dim),
        ignore_index=check_ignore_index(options.ignore_index),
        label_smoothing=check_exponent(options.label_smoothing, name="label_smoothing"),
    )


_BUILTIN = {int, float, str, bool, type(None)}  # their values do not change, as those of arrays can
_checked_before = functools.lru_cache(maxsize=256, typed=True)(_check_options)  # a tenth of the time


def check_running_counts(running_counts, options: Options, device: torch.device, *, name: str, of: str) -> None:
    """Check the state. name, of: the names of the argument and of the input."""
    bins, variant = options.bins, options.variant
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
        raise ValueError(f"{name} must have shape {expected} for bins={bins}, got {tuple(running_counts.shape)}")
    if running_counts.dtype not in (torch.float32, torch.float64):
        raise TypeError(f"{name} must be float32 or float64, got {running_counts.dtype}")
    if running_counts.device != device:
        raise ValueError(f"{name} must be on the device of {of}, {device}, got {running_counts.device}")
    if not running_counts.is_contiguous():
        raise ValueError(f"{name} must be contiguous, got strides {running_counts.stride()}")


def check_dense(name: str, value) -> None:
    """Check that `value` is a plain dense tensor."""
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
    """Check that the dtype is floating point, of 16 bits or more."""
    if tensor.dtype not in FLOATS:
        raise TypeError(f"{name} must be float32, float16, bfloat16 or float64, got {tensor.dtype}")


def check_device(name: str, tensor: Tensor, of: str, device: torch.device) -> None:
    """Check that the tensor is on `device`, the device of the argument named `of`."""
    if tensor.device != device:
        raise ValueError(f"{name} must be on the device of {of}, {device}, got {tensor.device}")
