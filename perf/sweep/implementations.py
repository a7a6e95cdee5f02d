"""The implementations that the sweep compares. Each computes a mean loss of (case, data).

Losses in plain PyTorch get 16-bit inputs cast to fp32, as torch.autocast does for binary cross entropy and as
mmdetection's heads do for GHM. In 16 bits the losses of easy negatives would round to 0.
"""

import dataclasses
from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor

import ghm_triton
from ghm_triton import backend as ghm_backend

from ..exact_density import exact_ghmc_loss
from .cases import Case
from .data import MU, Data

ALPHA, GAMMA = 0.25, 2.0  # focal loss
BETA = 1 / 9  # smooth L1
DENSE, SOFTMAX = ("ghmc", "ghmr"), ("cross_entropy",)  # losses
ALL = DENSE + SOFTMAX
BASELINES = {"ghmc": "bce", "ghmr": "bce", "cross_entropy": "cross_entropy"}  # by loss


@dataclasses.dataclass(frozen=True)
class Implementation:
    """One way to compute a loss.

    Attributes:
        name: Its name in the CSV.
        losses: The losses of the cases that it runs on.
        formula: What it computes, by its name in reference.py.
        call: From (case, data) to the loss.
        takes_one_hot: Whether it reads data.one_hot instead of data.target.
        waits: Whether it waits for the GPU, so that no CUDA graph can hold it.
        compiles: Whether it uses torch.compile. Then it is timed in fewer cases, after a call that compiles.
    """

    name: str
    losses: tuple[str, ...]
    formula: str
    call: Callable[[Case, Data], Tensor]
    takes_one_hot: bool = False
    waits: bool = False
    compiles: bool = False

    def least_bytes(self, case: Case, mode: str) -> int:
        """Bytes to read the arguments once per pass and to write the gradient once."""
        size = case.torch_dtype.itemsize
        dense = 4 if self.takes_one_hot else size
        index = case.target == "index" and not self.takes_one_hot
        read = case.elements * size + (case.rows * 8 if index else case.elements * dense)
        write = case.elements * size
        return {"backward": read + write, "forward_backward": 2 * read + write}.get(mode, read)


def _ours(backend: str, wrap: Callable = lambda function: function) -> Callable[[Case, Data], Tensor]:
    ghmc, ghmr = wrap(ghm_triton.ghmc_loss), wrap(ghm_triton.ghmr_loss)
    cross_entropy = wrap(ghm_triton.ghm_cross_entropy)

    def call(case, data):
        if case.loss == "ghmc":
            return ghmc(data.input, data.target, bins=case.bins, backend=backend)
        if case.loss == "cross_entropy":
            return cross_entropy(data.input, data.target, bins=case.bins, backend=backend)
        return ghmr(data.input, data.target, mu=MU, bins=case.bins, backend=backend)

    return call


def _compiled() -> list[Implementation]:
    """Eager and the baselines through torch.compile, for fixed shapes: call torch.compiler.reset() before each case."""

    def wrap(function):
        return torch.compile(function, dynamic=False)

    bce = wrap(lambda input, target: F.binary_cross_entropy_with_logits(input.float(), target))
    cross_entropy = wrap(lambda input, target: F.cross_entropy(input.float(), target))
    return [
        Implementation("eager_compiled", ALL, "ghm_paper", _ours("eager", wrap), waits=True, compiles=True),
        Implementation(
            "bce_compiled",
            DENSE,
            "bce",
            lambda case, data: bce(data.input, data.one_hot),
            takes_one_hot=True,
            compiles=True,
        ),
        Implementation(
            "cross_entropy_compiled",
            SOFTMAX,
            "cross_entropy",
            lambda case, data: cross_entropy(data.input, data.target),
            compiles=True,
        ),
    ]


def region_weights(norm: Tensor, valid: Tensor, bins: int) -> tuple[Tensor, float]:
    """(harmonizing weights, N) by a loop over the regions that waits for each count, as public code has it."""
    total = max(valid.float().sum().item(), 1.0)
    weights = torch.zeros_like(norm)
    filled = 0
    for j in range(bins):
        upper = (j + 1) / bins if j < bins - 1 else 2.0
        inside = (norm >= j / bins) & (norm < upper) & valid
        count = inside.sum().item()
        if count > 0:
            weights[inside] = total / count
            filled += 1
    return weights / max(filled, 1), total


def _region_loop(case, data):
    input = data.input.float()
    if case.loss == "ghmr":
        difference = input - data.target.float()
        root = (difference * difference + MU * MU).sqrt()
        weights, total = region_weights((difference / root).detach().abs(), data.weight > 0, case.bins)
        return ((root - MU) * weights).sum() / total
    target, weight = data.target, data.weight
    if case.target == "index":
        target = torch.zeros_like(input)
        anchor = ((data.target >= 0) & (data.target < case.columns)).nonzero().view(-1)
        target[anchor, data.target[anchor]] = 1
        weight = weight.view(-1, 1).expand(input.shape)
    target = target.float()
    weights, total = region_weights((input.detach().sigmoid() - target).abs(), weight > 0, case.bins)
    return (F.binary_cross_entropy_with_logits(input, target, reduction="none") * weights).sum() / total


def _softmax_region_loop(case, data):
    input = data.input.float()
    label = data.target.unsqueeze(1)
    norm = 1 - input.detach().softmax(1).gather(1, label).squeeze(1)
    weights, total = region_weights(norm, data.weight > 0, case.bins)
    return (F.cross_entropy(input, data.target, reduction="none") * weights).sum() / total


def _exact(case, data):
    return exact_ghmc_loss(data.input, data.one_hot, bins=case.bins)


def _bce(case, data):
    return F.binary_cross_entropy_with_logits(data.input.float(), data.one_hot)


def _cross_entropy(case, data):
    return F.cross_entropy(data.input.float(), data.target)


def _smooth_l1(case, data):
    return F.smooth_l1_loss(data.input.float(), data.target.float(), beta=BETA)


def _optional(device: torch.device) -> list[Implementation]:
    """Losses of other packages that are installed."""
    found = []
    try:
        from torchvision.ops import sigmoid_focal_loss

        def focal(case, data):
            return sigmoid_focal_loss(data.input.float(), data.one_hot, ALPHA, GAMMA, reduction="mean")

        found.append(Implementation("torchvision_focal", ("ghmc",), "focal", focal, takes_one_hot=True))
    except ImportError:
        pass
    try:
        from mmdet.models.losses import GHMC, GHMR

        def mmdet(case, data):
            loss = GHMC(bins=case.bins) if case.loss == "ghmc" else GHMR(mu=MU, bins=case.bins)
            return loss.to(data.input.device)(data.input.float(), data.target, data.weight)

        found.append(Implementation("mmdet", DENSE, "ghm_mmdet", mmdet, waits=True))
    except ImportError:
        pass
    try:
        from liger_kernel.transformers import LigerCrossEntropyLoss

        def liger(case, data):
            """On a copy with the classes last: its forward overwrites the logits with their gradient."""
            rows = data.input.movedim(1, -1).clone(memory_format=torch.contiguous_format).view(-1, case.columns)
            return LigerCrossEntropyLoss()(rows, data.target.view(-1))

        if device.type != "cpu":
            found.append(Implementation("liger", SOFTMAX, "cross_entropy", liger))
    except ImportError:
        pass
    return found


def find_implementations(device: torch.device, *, compiled: bool = False) -> list[Implementation]:
    """The implementations that run on `device`; those through torch.compile only if `compiled`."""
    found = [Implementation("eager", ALL, "ghm_paper", _ours("eager"), waits=True)]
    if device.type != "cpu" and ghm_backend.kernels is not None:
        found.insert(0, Implementation("triton", ALL, "ghm_paper", _ours("triton")))
    found.append(Implementation("exact", ("ghmc",), "ghm_exact", _exact, takes_one_hot=True))
    found.append(Implementation("region_loop", DENSE, "ghm_mmdet", _region_loop, waits=True))
    found.append(Implementation("softmax_region_loop", SOFTMAX, "ghm_mmdet", _softmax_region_loop, waits=True))
    found.append(Implementation("bce", DENSE, "bce", _bce, takes_one_hot=True))
    found.append(Implementation("cross_entropy", SOFTMAX, "cross_entropy", _cross_entropy))
    found.append(Implementation("smooth_l1", ("ghmr",), "smooth_l1", _smooth_l1))
    return found + (_compiled() if compiled else []) + _optional(device)
