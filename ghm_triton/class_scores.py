"""The arguments of a softmax classifier's loss: their checks, and their layout in the backends.

Backends take logits [A, C], in which the classes of an example are consecutive, or [A, C, S], in which they are S
elements apart.
"""

import math

from torch import Tensor

from .checks import INDICES, check_dense, check_device, check_floats
from .conventions import Population
from .options import Options


def check_examples(input, target, options: Options) -> tuple[Population, tuple[int, ...]]:
    """(population, shape of the class indices). Nothing is copied that is contiguous, channels first or last."""
    check_dense("input", input)
    check_floats("input", input)
    at = min(1, input.dim() - 1)
    if input.dim() == 0 or input.shape[at] == 0:
        raise ValueError(f"input must have shape [C], [N, C] or [N, C, d1, ...] with C > 0, got {tuple(input.shape)}")
    check_dense("target", target)
    check_device("target", target, "input", input.device)
    shape = tuple(input.shape[:at] + input.shape[at + 1 :])
    if target.is_floating_point():
        _check_probabilities(target, input, options)
    else:
        _check_indices(target, input, shape)
    return _in_rows(input, target, at), shape


def _check_probabilities(target: Tensor, input: Tensor, options: Options) -> None:
    check_floats("target", target)
    if target.shape != input.shape:
        raise ValueError(
            f"target must have the shape of input, {tuple(input.shape)}, for probabilities, or hold integer class "
            f"indices, got {tuple(target.shape)} with {target.dtype}"
        )
    if options.ignore_index is not None and options.ignore_index >= 0:
        raise ValueError(f"ignore_index must be negative when target holds probabilities, got {options.ignore_index}")


def _check_indices(target: Tensor, input: Tensor, shape: tuple[int, ...]) -> None:
    if target.dtype not in INDICES:
        raise TypeError(f"target must hold class indices of an integer type, or probabilities, got {target.dtype}")
    if target.shape != shape:
        raise ValueError(f"target must have shape {shape} for class indices, got {tuple(target.shape)}")


def _in_rows(input: Tensor, target: Tensor, at: int) -> Population:
    """The logits as [A, C] or [A, C, S], the target to match. at: the dimension of the classes."""
    classes = input.shape[at]
    probabilities = input.dim() == target.dim()
    classes_last = input.movedim(at, -1)
    if input.dim() <= 2 or classes_last.is_contiguous():
        rows = math.prod(classes_last.shape[:-1])  # vmap over 0 populations cannot infer it
        target = target.movedim(at, -1).reshape(rows, classes) if probabilities else target.reshape(rows)
        return Population([classes_last.reshape(rows, classes)], [target], [])
    outer, inner = input.shape[0], math.prod(input.shape[2:])
    input = input.reshape(outer, classes, inner)
    return Population([input], [target.reshape(input.shape if probabilities else (outer, inner))], [])
