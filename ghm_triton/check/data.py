"""The tensors of a case.

No gradient norm lies so close to an edge of a region that float32 and float64 could disagree about the region: such
an element, or example, is made an easy one.
"""

from typing import NamedTuple

import torch
from torch import Tensor

from .cases import Case

MU = 0.02  # of GHM-R
POSITIVE_ROWS = 0.005  # the share of the anchors that have an object
NEAR = {"ghmc": 2e-6, "ghmr": 2e-6, "cross_entropy": 3e-5}  # of a norm to an edge: float32 errs by less
IGNORED = {"ghmc": 255, "cross_entropy": -100}  # ignore_index


class Data(NamedTuple):
    """The arguments of a call, with a tensor per level, and what the comparison needs.

    Attributes:
        inputs, targets, masks: Of the levels. `masks` may be empty.
        dense: The whole target with one value per element, float32 or the dtype of the input.
        counted: The elements, or the examples of cross entropy, that count.
    """

    inputs: list[Tensor]
    targets: list[Tensor]
    masks: list[Tensor]
    dense: Tensor
    counted: Tensor


def make_data(case: Case, device: torch.device) -> Data:
    """Make the tensors of `case`, the same in every run on one kind of device."""
    generator = torch.Generator(device).manual_seed(case.seed)
    x, dense = {"ghmc": _classification, "ghmr": draw_deltas, "cross_entropy": _softmax}[case.loss](case, generator)
    x, dense = x.to(getattr(torch, case.dtype)), dense.to(getattr(torch, case.dtype))
    _move_from_edges(case, x, dense)
    target = _target(case, dense)
    off = torch.rand(_mask_shape(case), device=device, generator=generator) < 0.1
    masks = []
    if case.mask == "index":
        target = target.masked_fill(off, IGNORED[case.loss])
    elif case.mask:
        masks = list(_split(~off, case.levels))
    counted = ~off if case.mask else torch.ones_like(off)
    if case.loss != "cross_entropy":
        counted = (counted.unsqueeze(1) if counted.dim() < x.dim() else counted).expand(x.shape)
    return Data(list(_split(x, case.levels)), list(_split(target, case.levels)), masks, dense, counted)


def norms(case: Case, x: Tensor, dense: Tensor) -> Tensor:
    """Return the gradient norms in float64, of each element or of each example."""
    x, dense = x.double(), dense.double()
    if case.loss == "ghmc":
        return (x.sigmoid() - dense).abs()
    if case.loss == "ghmr":
        difference = x - dense
        return difference.abs() / torch.hypot(difference, torch.full_like(difference, MU))
    smooth = (1 - case.smoothing) * dense + case.smoothing / x.shape[1]
    return (x.softmax(1) * smooth.sum(1, keepdim=True) - smooth).abs().sum(1) / 2


def _move_from_edges(case: Case, x: Tensor, dense: Tensor) -> None:
    scaled = norms(case, x, dense) * case.bins
    edge = scaled.round()
    near = ((scaled - edge).abs() < NEAR[case.loss] * case.bins) & (edge > 0) & (edge < case.bins)
    if case.loss == "ghmr":
        x.copy_(torch.where(near, dense, x))
        return
    if case.loss == "cross_entropy":
        near = near.unsqueeze(1)
        dense.copy_(torch.where(near, torch.zeros_like(dense).scatter_(1, dense.argmax(1, keepdim=True), 1), dense))
        x.copy_(torch.where(near, 20 * dense, x))
        return
    dense.copy_(torch.where(near, dense.round(), dense))
    x.copy_(torch.where(near, 18 * dense - 9, x))


def draw_logits(case: Case, generator: torch.Generator) -> tuple[Tensor, Tensor, Tensor]:
    """Make the logits of a detector, and the rows that have an object, with its class: one anchor of 200.

    A trained head found most of them: their logits are N(0, 2).
    """
    (rows, classes), device = case.shape, generator.device
    mean, std = {"start": (-4.6, 0.1), "trained": (-7.0, 1.2), "uniform": (0.0, 1.5)}[case.distribution]
    x = torch.empty(rows, classes, device=device).normal_(mean, std, generator=generator)
    count = max(5, round(rows * POSITIVE_ROWS))
    row = torch.randint(rows, (count,), device=device, generator=generator).unique()
    label = torch.randint(classes, row.shape, device=device, generator=generator)
    if case.distribution == "trained":
        x[row, label] = torch.randn(row.shape, device=device, generator=generator) * 2
    return x, row, label


def draw_deltas(case: Case, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    """Make box deltas and targets: near 0 at the start, near the target when trained, or with uniform norms."""
    target = torch.randn(case.shape, device=generator.device, generator=generator)
    noise = torch.randn(case.shape, device=generator.device, generator=generator)
    if case.distribution == "start":
        return 0.01 * noise, target
    if case.distribution == "trained":
        return target + 0.1 * noise, target
    norm = torch.empty_like(noise).uniform_(0.001, 0.999, generator=generator)
    return target + noise.sign() * MU * norm / (1 - norm * norm).sqrt(), target


def draw_softmax(case: Case, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    """Make logits N(0, 1) apart from the labels', from which the probability of the label follows.

    That probability is sigmoid(N(4, 2)) after training, or uniform. At the start, all logits are near 0.

    Returns:
        The logits, and the labels with one class: [N, 1, ...].
    """
    x = torch.randn(case.shape, device=generator.device, generator=generator)
    shape = (case.shape[0], 1, *case.shape[2:])
    label = torch.randint(case.shape[1], shape, device=x.device, generator=generator)
    if case.distribution == "start":
        return x.mul_(0.1), label
    if case.distribution == "trained":
        odds = torch.empty(shape, device=x.device).normal_(4, 2, generator=generator)
    else:
        odds = torch.empty(shape, device=x.device).uniform_(0.001, 0.999, generator=generator).logit_()
    others = x.scatter_(1, label, -torch.inf).logsumexp(1, keepdim=True)
    return x.scatter_(1, label, others + odds), label


def _classification(case: Case, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    x, row, label = draw_logits(case, generator)
    dense = torch.zeros_like(x)
    soft = torch.rand(row.shape, device=x.device, generator=generator)
    dense[row, label] = soft if case.target == "soft" else 1.0
    return x, dense


def _softmax(case: Case, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    x, label = draw_softmax(case, generator)
    dense = torch.zeros_like(x).scatter_(1, label, 1.0)
    if case.target == "soft":
        dense = 0.9 * dense + 0.1 * torch.rand(x.shape, device=x.device, generator=generator).softmax(1)
    return x, dense


def _target(case: Case, dense: Tensor) -> Tensor:
    """Return the target as the call gets it. Background is -1 in even rows, and C in odd ones."""
    if case.target == "bool":
        return dense > 0
    if case.target != "index":
        return dense
    label = dense.argmax(1)
    if case.loss == "cross_entropy":
        return label
    row = torch.arange(len(dense), device=dense.device)
    return torch.where(dense.amax(1) > 0, label, torch.where(row % 2 == 0, -1, dense.shape[1]))


def _mask_shape(case: Case) -> tuple[int, ...]:
    if case.loss == "cross_entropy":
        return (case.shape[0], *case.shape[2:])
    return case.shape if case.mask == "elements" else case.shape[:1]


def _split(tensor: Tensor, levels: int) -> tuple[Tensor, ...]:
    """Rows of a feature pyramid: each level has about a fourth of those of the level before."""
    sizes, rest = [], len(tensor)
    for _ in range(levels - 1):
        sizes.append(rest - rest // 4)
        rest //= 4
    return tensor.split([*sizes, rest])
