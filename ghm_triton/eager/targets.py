"""Check the values of targets: one pass for GHM-C, and a second one only if something is wrong."""

import torch
from torch import Tensor

from ..options import Options
from ..population import Level, Population

ROUNDING = 0.01  # soft targets, such as overlaps of boxes, may lie outside [0, 1] by their rounding, in bfloat16 too


def check_population(population: Population, options: Options) -> None:
    """Check the targets for the kernels, which do not check them. This waits for a GPU.

    Raises:
        ValueError, IndexError: See :func:`check_targets`, :func:`check_classes`, and :func:`check_probabilities`.
    """
    for level in population.levels():
        if options.loss == "ghmc" and not options.mmdet:
            check_targets(level)
        elif options.loss == "cross_entropy" and level.class_index:
            check_classes(level.target.long(), level.input.shape[1], options.ignore_index)
        elif options.loss == "cross_entropy":
            check_probabilities(level.target)


def check_classes(target: Tensor, classes: int, ignore_index: int | None) -> Tensor | None:
    """Return where the int64 class indices of GHM cross entropy are `ignore_index`; None if nowhere.

    Raises:
        IndexError: Another index is not from 0 to C - 1. The message shows it.
    """
    if not target.numel():
        return None
    least, most = [value.item() for value in target.aminmax()]
    if 0 <= least and most < classes and not (ignore_index is not None and least <= ignore_index <= most):
        return None
    ignored = target == ignore_index if ignore_index is not None else torch.zeros_like(target, dtype=torch.bool)
    wrong = ~(((target >= 0) & (target < classes)) | ignored)
    if wrong.any():
        allowed = "" if ignore_index is None else f" or ignore_index ({ignore_index})"
        found = target[wrong][0].item()
        hint = {classes: ": class indices start at 0", 255: ": pass ignore_index=255?"}.get(found, "")
        raise IndexError(f"target must hold class indices from 0 to {classes - 1}{allowed}, got {found}" + hint)
    return ignored


def check_probabilities(target: Tensor) -> None:
    """Look for probabilities outside [0, 1] in the targets of GHM cross entropy. Their sums are not checked.

    Raises:
        ValueError: There is one. The message shows it. A NaN is allowed.
    """
    if target.numel() == 0:
        return
    least, most = (value.item() for value in target.aminmax())
    if least >= -ROUNDING and most <= 1 + ROUNDING:
        return
    wrong = (target < -ROUNDING) | (target > 1 + ROUNDING)
    if wrong.any():
        raise ValueError(f"target must hold probabilities in [0, 1], or class indices, got {target[wrong][0].item()}")


def check_targets(level: Level) -> tuple[float, float]:
    """Look for class indices other than -1 .. C, or values outside [0, 1], of elements that count.

    Returns:
        tuple[float, float]: The least and the largest target, also of elements that do not count. NaN if one is.

    Raises:
        ValueError: There is one. The message shows it. A NaN is allowed.
    """
    target = level.target
    if target.numel() == 0 or target.dtype == torch.bool:
        return 0, 1
    low, high = (-1, level.input.shape[-1]) if level.class_index else (0, 1)
    slack = ROUNDING if target.is_floating_point() else 0
    least, most = [value.item() for value in target.aminmax()]
    if least >= low - slack and most <= high + slack:
        return least, most
    target = target if target.is_floating_point() else target.long()  # uint8 has no -1, and int8 no 200 to compare with
    wrong = ((target < low - slack) | (target > high + slack)) & _counted(level)
    if wrong.any():
        allowed = f"class indices from 0 to {high - 1}, or -1 or {high} for the background" if level.class_index else ""
        allowed = allowed or "values in [0, 1], or class indices without the class dimension"
        found = target[wrong][0].item()
        hint = ": pass ignore_index=255?" if found == 255 else ""
        if hint and not level.class_index:
            hint = ": pass ignore_index=255, or divide a mask of 0 and 255 by 255"
        raise ValueError(f"target must hold {allowed}, got {found}{hint}")
    return least, most


def _counted(level: Level) -> Tensor | bool:
    """Return which elements count, broadcastable to the shape of the target. True: all."""
    if level.weight is None:
        return True
    counted = level.weight > 0
    if level.class_index:
        return counted if level.anchor_weight else counted.any(-1)
    return counted.unsqueeze(-1) if level.anchor_weight else counted
