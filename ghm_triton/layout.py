"""Check the tensors of GHM-C or GHM-R against one another, and bring them into the layout that the backends take.

Backends take levels of any shape with the classes last. Tensors that already have this layout are not copied. For GHM
cross entropy see row_layout.py.
"""

from typing import NamedTuple

import torch
from torch import Tensor

from .checks import NUMBERS, check_dense, check_device, check_floats
from .options import Options
from .population import Population


class Names(NamedTuple):
    """The names of the arguments in error messages."""

    input: str = "input"
    target: str = "target"
    mask: str = "mask"
    running_counts: str = "running_counts"


def lay_out_elements(input, target, mask, options: Options, names: Names) -> Population:
    """Lay out the arguments of GHM-C or GHM-R, which are tensors or lists of levels.

    mask: bool tensors, or for mmdetection's formulas weights of any number type.
    """
    inputs = _levels(names.input, input)
    targets = _levels(names.target, target, input, len(inputs), names.input)
    masks = [] if mask is None else _levels(names.mask, mask, input, len(inputs), names.input)
    levels = []
    for i, x in enumerate(inputs):
        here = names
        if isinstance(input, (tuple, list)):
            here = Names(f"{names.input}[{i}]", f"{names.target}[{i}]", f"{names.mask}[{i}]")
        check_floats(here.input, x)
        if x.dtype != inputs[0].dtype:
            raise TypeError(f"{here.input} must have the dtype of the first level, {inputs[0].dtype}, got {x.dtype}")
        check_device(here.input, x, "the first level", inputs[0].device)
        levels.append(_lay_out_level(x, targets[i], masks[i] if masks else None, options, here))
    outputs, aims, counted = map(list, zip(*levels))
    for name, of_levels in ((names.target, aims), (names.mask, counted)) if len(levels) > 1 else ():
        rows = [tensor is not None and tensor.dim() < x.dim() for x, tensor in zip(inputs, of_levels)]
        if len(set(rows)) > 1:
            kind = "hold class indices" if name == names.target else "be given per element"
            raise ValueError(f"{name} must {kind} for all levels or for none, got both kinds")
    return Population(outputs, aims, [] if counted[0] is None else counted)


def restore_layout(losses: list[Tensor], input, options: Options) -> Tensor | tuple[Tensor, ...]:
    """Give the losses of :func:`lay_out_elements` the layout of `input`."""
    if options.reduction != "none":
        return losses[0]
    if options.class_dim not in (None, -1):
        losses = [loss.movedim(-1, options.class_dim) for loss in losses]
    return tuple(losses) if isinstance(input, (tuple, list)) else losses[0]


def _lay_out_level(x: Tensor, target: Tensor, mask: Tensor | None, options: Options, names: Names):
    """Return (input, target, mask or None) with the classes last."""
    at = _class_dim(x, options, names.input)
    check_device(names.target, target, names.input, x.device)
    _check_number_type(names.target, target)
    rows = tuple(x.shape[:at] + x.shape[at + 1 :]) if x.dim() else None
    target = _class_target(target, x, at, rows, options, names) if options.loss == "ghmc" else _boxes(target, x, names)
    if mask is not None:
        mask = _lay_out_mask(mask, x, at, rows, options, names)
    if at != x.dim() - 1:
        x, target, mask = (
            tensor.movedim(at, -1) if tensor is not None and tensor.dim() == x.dim() else tensor
            for tensor in (x, target, mask)
        )
    if options.ignore_index is not None:
        mask = _without(options.ignore_index, target, mask)
    return x, target, mask


def _class_dim(x: Tensor, options: Options, name: str) -> int:
    """Return the dimension of the classes, counted from the front."""
    dims = max(1, x.dim())
    given = -1 if options.class_dim is None else options.class_dim
    if not -dims <= given < dims:
        raise ValueError(f"class_dim must be a dimension of {name}, which has {x.dim()}, got {given}")
    return given % dims


def _class_target(target: Tensor, x: Tensor, at: int, rows, options: Options, names: Names) -> Tensor:
    """Return class indices [*rows], or one value per element."""
    if target.shape == x.shape:
        return target
    whole = not target.is_floating_point() and target.dtype != torch.bool
    if rows is None or target.shape != rows:
        raise ValueError(_wrong_shape(target, x, rows, whole, options, names))
    one_class = x.shape[at] == 1
    if whole and options.class_dim is None:
        if one_class:
            raise ValueError(
                f"{names.target} must be bool or floating point beside one class, where integers could mean a mask "
                f"or class indices, got {target.dtype}: pass target.float() for a mask of 0 and 1, or class_dim=-1 "
                "for class indices, of which 0 names the class and -1 the background"
            )
        if x.dim() > 2 and target.shape == x.shape[:1] + x.shape[2:]:
            raise ValueError(
                f"class_dim must be given where both dimension 1 and the last of {names.input} could be the classes, "
                f"got None with {names.input} of shape {_shape(x)} and {names.target} of shape {_shape(target)}"
            )
    if whole or one_class:
        return target if whole else target.unsqueeze(at)
    if target.dtype == torch.bool:
        raise TypeError(f"{names.target} must hold class indices of an integer type, got {target.dtype}")
    raise ValueError(_wrong_shape(target, x, rows, whole, options, names) + ": pass target.long()")


def _wrong_shape(target: Tensor, x: Tensor, rows, whole: bool, options: Options, names: Names) -> str:
    hint = ""
    if x.dim() > 2 and options.class_dim is None and target.shape == x.shape[:1] + x.shape[2:]:
        hint = ": pass class_dim=1"
    if whole and target.dim() < x.dim():
        return f"{names.target} must have shape {rows} for class indices, got {_shape(target)}{hint}"
    other = f", or {rows} with integer class indices" if rows is not None else ""
    got = f"{_shape(target)} with {target.dtype}"
    return f"{names.target} must have the shape of {names.input}, {_shape(x)}{other}, got {got}{hint}"


def _boxes(target: Tensor, x: Tensor, names: Names) -> Tensor:
    if not target.is_floating_point():
        raise TypeError(f"{names.target} must be a floating point tensor, got {target.dtype}: pass target.float()")
    if target.shape != x.shape:
        got = f"{_shape(target)} with {target.dtype}"
        raise ValueError(f"{names.target} must have the shape of {names.input}, {_shape(x)}, got {got}")
    return target


def _lay_out_mask(mask: Tensor, x: Tensor, at: int, rows, options: Options, names: Names) -> Tensor:
    """Return the mask with the shape [*rows] or that of x."""
    check_device(names.mask, mask, names.input, x.device)
    if options.variant == "mmdet":
        _check_number_type(names.mask, mask)
    elif mask.dtype != torch.bool:
        raise TypeError(
            f"{names.mask} must be bool, where True counts, got {mask.dtype}: pass mask > 0, or for weights "
            'reduction="none" and multiply the losses'
        )
    if mask.shape == x.shape or mask.shape == rows:
        return mask
    if rows is not None and mask.dim() == x.dim() and mask.shape[at] == 1 and _fits(mask.squeeze(at).shape, rows):
        return mask.squeeze(at).expand(rows)
    if not _fits(mask.shape, x.shape):
        other = f" or {rows}" if rows is not None else ""
        raise ValueError(f"{names.mask} must have shape {_shape(x)}{other}, or broadcast to it, got {_shape(mask)}")
    return mask.expand(x.shape)


def _fits(shape, whole) -> bool:
    """Whether the shape broadcasts to `whole`."""
    return len(shape) <= len(whole) and all(a in (1, b) for a, b in zip(reversed(shape), reversed(whole)))


def _without(ignore_index: int, target: Tensor, mask: Tensor | None) -> Tensor | None:
    """Return the mask without the elements, or the rows, whose target is `ignore_index`."""
    if target.dtype != torch.bool and not _holds(target.dtype, ignore_index):
        return mask
    counted = target != ignore_index
    if mask is None:
        return counted
    if mask.dim() < counted.dim():
        mask = mask.unsqueeze(-1)
    return mask & (counted.unsqueeze(-1) if counted.dim() < mask.dim() else counted)


def _holds(dtype: torch.dtype, index: int) -> bool:
    """Whether a tensor of this dtype can hold the number. A comparison would round it: 257 to 256 in bfloat16."""
    if not dtype.is_floating_point:
        return torch.iinfo(dtype).min <= index <= torch.iinfo(dtype).max
    odd = abs(index) // max(abs(index) & -abs(index), 1)  # the digits of its significand
    return odd < 2 / torch.finfo(dtype).eps and abs(index) <= torch.finfo(dtype).max


def _levels(name: str, value, input=None, count: int | None = None, of: str = "") -> list[Tensor]:
    """Return `value` as a list with as many levels as `input`, whose name is `of`."""
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
        check_dense(f"{name}[{i}]" if of_levels else name, level)
    return levels


def _check_number_type(name: str, tensor: Tensor) -> None:
    if tensor.dtype not in NUMBERS:
        raise TypeError(
            f"{name} must be bool, uint8, a signed integer or a float of 16 bits or more, got {tensor.dtype}"
        )


def _shape(tensor: Tensor) -> tuple[int, ...]:
    return tuple(tensor.shape)
