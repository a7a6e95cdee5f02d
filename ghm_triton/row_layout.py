"""Check the tensors of GHM cross entropy against each other, and bring them into the layout that the backends take.

Backends take logits [A, C] or [A, C, S]. Tensors that already have this layout are not copied.
"""

import math

from torch import Tensor

from .checks import INDICES, check_dense, check_device, check_floats
from .options import Options
from .population import Population


def lay_out_rows(input, target, options: Options) -> tuple[Population, tuple[int, ...]]:
    """Lay out the arguments of GHM cross entropy. Return the population and the shape of the class indices."""
    check_dense("input", input)
    check_floats("input", input)
    at = min(1, input.dim() - 1)
    if input.dim() == 0 or input.shape[at] == 0:
        raise ValueError(f"input must have shape [C], [N, C] or [N, C, d1, ...] with C > 0, got {tuple(input.shape)}")
    check_dense("target", target)
    check_device("target", target, "input", input.device)
    rows = tuple(input.shape[:at] + input.shape[at + 1 :])
    if target.is_floating_point():
        _check_probabilities(target, input, rows, options)
    else:
        _check_indices(target, input, rows)
    return _in_rows(input, target, at), rows


def _check_probabilities(target: Tensor, input: Tensor, rows: tuple[int, ...], options: Options) -> None:
    check_floats("target", target)
    if target.shape != input.shape:
        hint = ": pass target.long()" if target.shape == rows else ""
        if _has_channel(target, rows):
            hint = ": pass target.squeeze(1).long()"
        raise ValueError(
            f"target must have the shape of input, {tuple(input.shape)}, for probabilities, or hold integer class "
            f"indices, got {tuple(target.shape)} with {target.dtype}{hint}"
        )
    if options.ignore_index is not None and options.ignore_index >= 0:
        raise ValueError(f"ignore_index must be negative when target holds probabilities, got {options.ignore_index}")


def _check_indices(target: Tensor, input: Tensor, rows: tuple[int, ...]) -> None:
    if target.dtype not in INDICES:
        raise TypeError(f"target must hold class indices of an integer type, or probabilities, got {target.dtype}")
    if target.shape != rows:
        hint = ": pass target.squeeze(1)" if _has_channel(target, rows) else ""
        if input.dim() > 2 and target.shape == input.shape[:-1]:
            hint = ": the classes are dimension 1, pass input.movedim(-1, 1)"
        raise ValueError(f"target must have shape {rows} for class indices, got {tuple(target.shape)}{hint}")


def _has_channel(target: Tensor, rows: tuple[int, ...]) -> bool:
    """Whether the labels have a channel dimension of size 1, like those of MONAI and nnU-Net."""
    return target.dim() > 1 and target.shape[1] == 1 and target.shape[:1] + target.shape[2:] == rows


def _in_rows(input: Tensor, target: Tensor, at: int) -> Population:
    """Return the logits as [A, C] or [A, C, S] and a target that matches. at: the dimension of the classes."""
    if input.dim() == 2 and input.is_contiguous() and target.is_contiguous():
        return Population([input], [target], [])
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
