"""Losses and gradients beside the eager backend in float64 on the same data, in units of the tolerance."""

import math
from typing import NamedTuple

import torch
from torch import Tensor

from ..losses.cross_entropy import ghm_cross_entropy
from ..losses.ghmc import ghmc_loss
from ..losses.ghmr import ghmr_loss
from .cases import Case
from .data import IGNORED, MU, Data, make_data, norms

FUNCTIONS = {"ghmc": ghmc_loss, "ghmr": ghmr_loss, "cross_entropy": ghm_cross_entropy}
# Relative errors in float32 with the same regions. Softmax: |z - max| up to 30 rounds p by 30 * 2^-24.
LOSS = {"ghmc": 1e-6, "ghmr": 1e-6, "cross_entropy": 4e-6}
ELEMENT = {"ghmc": 2e-6, "ghmr": 2e-6, "cross_entropy": 4e-6}
STATE = 1e-6  # rounded once per call
# Half a step of a 16-bit number, and of the smallest ones. Below 1e-38 float32 has no full precision.
ROUNDING = {torch.float32: 0.0, torch.float16: 2**-11, torch.bfloat16: 2**-8}
SMALLEST = {torch.float32: 1e-38, torch.float16: 2**-25, torch.bfloat16: 1e-38}


class Results(NamedTuple):
    """What a call computes: losses of the levels or one loss, gradients of the levels times N, state."""

    losses: list[Tensor]
    gradients: list[Tensor]
    state: Tensor | None


class Errors(NamedTuple):
    """The largest errors in units of the tolerance, and the relative error of a mean."""

    loss: float
    gradient: float
    state: float
    relative: float

    @property
    def worst(self) -> float:
        """The largest of the three in units; NaN counts as infinite."""
        return max(math.inf if math.isnan(unit) else unit for unit in (self.loss, self.gradient, self.state))


def _softmax(case: Case) -> float:
    """Return the relative error of a float32 sum of C exponentials: PyTorch's is half of this with 32,768 classes."""
    return 2 * case.shape[1] ** 0.5 * 2**-24 if case.loss == "cross_entropy" else 0.0


def _cancelled(case: Case) -> float:
    """Return the error of p - t where it cancels, for soft targets and for the class of a label: units of p and t."""
    return (4 if case.loss == "ghmc" else 8) * 2**-24 + _softmax(case)


def check_values(case: Case, backend: str, device: torch.device) -> Errors:
    """Compute `case` with the backend and in float64, and compare."""
    data = make_data(case, device)
    expected = compute(case._replace(repeats=1), _double(data), "eager")  # repeats change neither mean nor gradient
    absolute = _cancellation(case, data, expected)
    large = data
    if case.repeats > 1:
        large = Data(*([_repeat(one, case.repeats) for one in tensors] for tensors in data[:3]), *data[3:])
    return compare(case, compute(case, large, backend), expected, absolute)


def compute(case: Case, data: Data, backend: str) -> Results:
    """Call the loss and its gradient; with a moving average twice, first with half of the rows."""
    for x in data.inputs:
        torch.full_like(x, math.nan)  # what a kernel does not write is then likely to hold NaN
    options = {"bins": case.bins, "exponent": case.exponent, "reduction": case.reduction, "backend": backend}
    options |= {"mu": MU} if case.loss == "ghmr" else {}
    options |= {"label_smoothing": case.smoothing} if case.loss == "cross_entropy" else {}
    options |= {"ignore_index": IGNORED[case.loss]} if case.mask == "index" else {}
    state = None
    if case.momentum:
        state = torch.zeros(case.bins + 1, device=data.inputs[0].device)
        options |= {"momentum": case.momentum, "running_counts": state}
        half = [[one[: len(one) // 2] for one in tensors] for tensors in data[:3]]
        _call(case, *half, options)
    inputs = [x.detach().requires_grad_() for x in data.inputs]
    losses = _call(case, inputs, data.targets, data.masks, options)
    number = data.counted.sum() * case.repeats if case.reduction == "mean" else torch.ones_like(losses[0])
    factors = [number.to(loss.dtype).expand_as(loss) for loss in losses] if len(losses) == 1 else None
    factors = factors or [torch.ones_like(loss) for loss in losses]
    gradients = torch.autograd.grad(losses, inputs, factors)
    return Results([loss.detach() for loss in losses], list(gradients), state)


def _call(case: Case, inputs, targets, masks, options) -> list[Tensor]:
    several = len(inputs) > 1
    arguments = [tensors if several else tensors[0] for tensors in (inputs, targets, masks) if tensors]
    result = FUNCTIONS[case.loss](*arguments, **options)
    return list(result) if isinstance(result, tuple) else [result]


def _double(data: Data) -> Data:
    inputs, targets = ([x.double() if x.is_floating_point() else x for x in tensors] for tensors in data[:2])
    return Data(inputs, targets, *data[2:])


def _repeat(tensor: Tensor, repeats: int) -> Tensor:
    return tensor.repeat(repeats, *[1] * (tensor.dim() - 1))


def _cancellation(case: Case, data: Data, expected: Results) -> Tensor | None:
    """Return the absolute tolerance of gradients whose p - t cancels, in the shape of the input, or None."""
    if case.loss == "ghmr" or (case.loss == "ghmc" and case.target != "soft"):
        return None
    gradient = torch.cat(expected.gradients).abs()
    norm = norms(case, torch.cat(data.inputs), data.dense)
    lengths = gradient.sum(1) / 2 if case.loss == "cross_entropy" else gradient
    region = (norm * case.bins).long().clamp_(max=case.bins - 1)
    coefficients = torch.zeros(case.bins, dtype=torch.float64, device=norm.device)
    ratios = torch.where(norm > 1e-9, lengths / norm, 0.0)
    coefficients.scatter_reduce_(0, region.view(-1), ratios.view(-1), "amax")
    absolute = _cancelled(case) * torch.where(data.counted, coefficients[region], 0.0)
    if case.loss == "ghmc":
        return absolute
    cancels = data.dense != 0 if case.smoothing == 0 else torch.ones_like(data.dense, dtype=torch.bool)
    return absolute.unsqueeze(1) * cancels


def compare(case: Case, found: Results, expected: Results, absolute: Tensor | None) -> Errors:
    """Compare results with those in float64. `absolute`: an additional tolerance of the gradients."""
    scalar = case.reduction != "none"
    relative = LOSS[case.loss] if scalar else ELEMENT[case.loss]
    least = 1e-38
    if case.loss == "cross_entropy":  # log p cancels as 1 - p does; the mean of the weights is 1 or less
        least = _cancelled(case) if scalar else 1e-38 + absolute.amax(1)
    pairs = zip(found.losses, expected.losses, strict=True)
    loss = max(_units(one, other, relative, least) for one, other in pairs)
    absolutes = [0.0] * len(expected.gradients)
    if absolute is not None:
        absolutes = absolute.split([len(one) for one in expected.gradients])
    gradient = 0.0
    for one, other, extra in zip(found.gradients, expected.gradients, absolutes, strict=True):
        bound = ELEMENT[case.loss] + _softmax(case) + ROUNDING[one.dtype]
        if one.dtype != getattr(torch, case.dtype):
            raise TypeError(f"the gradient has the dtype {one.dtype}")
        for part in one.split(len(other)):  # the repeats of large cases
            gradient = max(gradient, _units(part, other, bound, SMALLEST[one.dtype] + extra))
    state = 0.0 if found.state is None else _units(found.state, expected.state, STATE, 1e-38)
    first, other = found.losses[0], expected.losses[0]
    off = ((first - other).abs() / other.abs()).item() if scalar else math.nan
    return Errors(loss, gradient, state, off)


def _units(found: Tensor, expected: Tensor, relative: float, absolute: Tensor | float) -> float:
    """Return the largest |found - expected| / (relative * |expected| + absolute), infinite for NaN."""
    if found.shape != expected.shape:
        raise ValueError(f"the result has shape {tuple(found.shape)} instead of {tuple(expected.shape)}")
    if found.numel() == 0:
        return 0.0
    units = (found.double() - expected.double()).abs() / (relative * expected.double().abs() + absolute)
    return units.nan_to_num(nan=math.inf, posinf=math.inf).max().item()
