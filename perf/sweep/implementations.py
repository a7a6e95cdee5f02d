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
from ghm_triton import mmdet as drop_ins
from ghm_triton.check.data import MU

from ..exact_density import exact_ghmc_loss
from .cases import Case
from .data import Data

ALPHA, GAMMA = 0.25, 2.0  # focal loss
BETA = 1 / 9  # smooth L1
DENSE, SOFTMAX = ("ghmc", "ghmr"), ("cross_entropy",)  # losses
ALL = DENSE + SOFTMAX
BASELINES = {"ghmc": "bce", "ghmr": "smooth_l1", "cross_entropy": "cross_entropy"}  # what each loss replaces


Loss = Callable[[Case, Data], Tensor]


@dataclasses.dataclass(frozen=True)
class Implementation:
    """One way to compute a loss.

    Attributes:
        name: Its name in the CSV.
        losses: The losses of the cases that it runs on.
        call: From (case, data) to the loss.
        reference: What it must compute: from (case, data in float64) to the loss. See gate.py.
        takes_one_hot: Whether it reads data.one_hot instead of data.target.
        waits: Whether it waits for the GPU, so that no CUDA graph can hold it.
        compiles: Whether it uses torch.compile. Then it is timed in fewer cases, after a call that compiles.
        host_only: Whether only its host time can be measured here.
    """

    name: str
    losses: tuple[str, ...]
    call: Loss
    reference: Loss
    takes_one_hot: bool = False
    waits: bool = False
    compiles: bool = False
    host_only: bool = False

    def least_bytes(self, case: Case, mode: str) -> int:
        """Return the bytes to read the arguments once per pass and to write the gradient once."""
        size = case.torch_dtype.itemsize
        dense = 4 if self.takes_one_hot else size
        index = case.target == "index" and not self.takes_one_hot
        read = case.elements * size + (case.rows * 8 if index else case.elements * dense)
        write = case.elements * size
        return {"backward": read + write, "forward_backward": 2 * read + write}.get(mode, read)


def _wide(tensor: Tensor) -> Tensor:
    """Return the tensor in fp32, or in float64 if it has that dtype."""
    return tensor if tensor.dtype == torch.float64 else tensor.float()


def _ours(backend: str | None, wrap: Callable = lambda function: function, **options) -> Loss:
    """Return this package's loss, with the exponent of the paper unless `options` say otherwise."""
    ghmc, ghmr = wrap(ghm_triton.ghmc_loss), wrap(ghm_triton.ghmr_loss)
    cross_entropy = wrap(ghm_triton.ghm_cross_entropy)
    options = {"exponent": 1.0, "backend": backend} | options

    def call(case, data):
        if case.loss == "ghmc":
            return ghmc(data.input, data.target, class_dim=-1, bins=case.bins, **options)
        if case.loss == "cross_entropy":
            return cross_entropy(data.input, data.target, bins=case.bins, **options)
        return ghmr(data.input, data.target, mu=MU, bins=case.bins, **options)

    return call


eager = _ours("eager")
plain = _ours("eager", exponent=0.0, reduction="sum")  # every weight is 1: the derivative is the gradient norm


def region_weights(norm: Tensor, valid: Tensor, bins: int) -> tuple[Tensor, float]:
    """Return the harmonizing weights and N.

    The loop over the regions waits for each count, as public code does.
    """
    total = max(valid.float().sum().item(), 1.0)
    weights = torch.zeros_like(norm)
    for j in range(bins):
        upper = (j + 1) / bins if j < bins - 1 else 2.0
        inside = (norm >= j / bins) & (norm < upper) & valid
        count = inside.sum().item()
        if count > 0:
            weights[inside] = total / count
    return weights / bins, total


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


def exact(case: Case, data: Data) -> Tensor:
    """Compute GHM-C with the exact density."""
    return exact_ghmc_loss(data.input, data.one_hot, bins=case.bins)


def bce(case: Case, data: Data) -> Tensor:
    """Compute binary cross entropy, also beside GHM-R, on the one-hot target."""
    return F.binary_cross_entropy_with_logits(_wide(data.input), data.one_hot)


def cross_entropy(case: Case, data: Data) -> Tensor:
    """Compute cross entropy with class indices."""
    return F.cross_entropy(_wide(data.input), data.target)


def smooth_l1(case: Case, data: Data) -> Tensor:
    """Compute smooth L1."""
    return F.smooth_l1_loss(_wide(data.input), _wide(data.target), beta=BETA)


def _mmdet_reference(case: Case, data: Data) -> Tensor:
    loss = drop_ins.GHMC(bins=case.bins) if case.loss == "ghmc" else drop_ins.GHMR(mu=MU, bins=case.bins)
    return loss.to(data.input.device)(data.input, data.target, data.weight)


def _compiled() -> list[Implementation]:
    """Return eager and the baselines through torch.compile, for fixed shapes.

    Call torch.compiler.reset() before each case.
    """

    def wrap(function):
        return torch.compile(function, dynamic=False)

    bce_of = wrap(lambda input, target: F.binary_cross_entropy_with_logits(input.float(), target))
    cross_entropy_of = wrap(lambda input, target: F.cross_entropy(input.float(), target))

    def compiled_bce(case, data):
        return bce_of(data.input, data.one_hot)

    def compiled_cross_entropy(case, data):
        return cross_entropy_of(data.input, data.target)

    return [
        Implementation("eager_compiled", ALL, _ours("eager", wrap), eager, waits=True, compiles=True),
        Implementation("bce_compiled", DENSE, compiled_bce, bce, takes_one_hot=True, compiles=True),
        Implementation("cross_entropy_compiled", SOFTMAX, compiled_cross_entropy, cross_entropy, compiles=True),
    ]


def _optional(device: torch.device) -> list[Implementation]:
    """Return the losses of other packages that are installed."""
    found = []
    try:
        from torchvision.ops import sigmoid_focal_loss

        def focal(case, data):
            return sigmoid_focal_loss(_wide(data.input), data.one_hot, ALPHA, GAMMA, reduction="mean")

        found.append(Implementation("torchvision_focal", ("ghmc",), focal, focal, takes_one_hot=True))
    except ImportError:
        pass
    try:
        from mmdet.models.losses import GHMC, GHMR

        def mmdet(case, data):
            loss = GHMC(bins=case.bins) if case.loss == "ghmc" else GHMR(mu=MU, bins=case.bins)
            return loss.to(data.input.device)(data.input.float(), data.target, data.weight)

        found.append(Implementation("mmdet", DENSE, mmdet, _mmdet_reference, waits=True))
    except ImportError:
        pass
    try:
        from liger_kernel.transformers import LigerCrossEntropyLoss

        def liger(case, data):
            """Run on a copy with the classes last: its forward overwrites the logits with their gradient."""
            rows = data.input.movedim(1, -1).clone(memory_format=torch.contiguous_format).view(-1, case.columns)
            return LigerCrossEntropyLoss()(rows, data.target.view(-1))

        if device.type != "cpu":
            found.append(Implementation("liger", SOFTMAX, liger, cross_entropy))
    except ImportError:
        pass
    return found


def find_implementations(device: torch.device, *, compiled: bool = False) -> list[Implementation]:
    """Return the implementations that run on `device`; those through torch.compile only if `compiled`."""
    found = [Implementation("eager", ALL, eager, eager, waits=True)]
    if ghm_backend.kernels is not None:
        found.insert(0, Implementation("triton", ALL, _ours("triton"), eager, host_only=device.type == "cpu"))
    found.append(Implementation("exact", ("ghmc",), exact, exact, takes_one_hot=True))
    found.append(Implementation("region_loop", DENSE, _region_loop, eager, waits=True))
    found.append(Implementation("softmax_region_loop", SOFTMAX, _softmax_region_loop, eager, waits=True))
    found.append(Implementation("bce", DENSE, bce, bce, takes_one_hot=True))
    found.append(Implementation("cross_entropy", SOFTMAX, cross_entropy, cross_entropy))
    found.append(Implementation("smooth_l1", ("ghmr",), smooth_l1, smooth_l1))
    return found + (_compiled() if compiled else []) + _optional(device)
