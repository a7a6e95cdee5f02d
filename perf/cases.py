"""What the sweep measures: the cases, and the tensors of each."""

import dataclasses
from typing import NamedTuple

import torch
from torch import Tensor

MU = 0.02  # of GHM-R
CLASSES = 80
POSITIVE_ANCHORS = 0.005
# RetinaNet at 800 x 1333, padded to 800 x 1344: levels P3 to P7, 9 anchors a cell, batch 2.
RETINANET = 2 * 9 * (100 * 168 + 50 * 84 + 25 * 42 + 13 * 21 + 7 * 11)
RETINANET_NAME = "RetinaNet 800x1333 batch 2"
ANCHORS = 100_000  # half an image of RetinaNet at 800 x 1333
COMPILED_SIZES = (10**6, ANCHORS * CLASSES)
BASE = {"ghmc": {}, "ghmr": {"bins": 10, "target": "dense"}}  # fields other than the defaults of Case


@dataclasses.dataclass(frozen=True)
class Case:
    """One input of the losses. The fields are columns of the CSV."""

    loss: str  # "ghmc" or "ghmr"
    rows: int  # anchors
    columns: int  # classes, or 4 box deltas
    dtype: str = "float32"
    bins: int = 30
    target: str = "index"  # GHM-C: "index" (class indices) or "dense" (one-hot); GHM-R: "dense"
    distribution: str = "trained"  # or "start" (of the training), or "uniform" (over the regions)
    size: str = ""  # a name, for sizes that have one

    @property
    def elements(self) -> int:
        return self.rows * self.columns

    @property
    def compiled(self) -> bool:
        """Whether torch.compile is timed too: each case costs it most of a minute."""
        base = Case(self.loss, self.rows, self.columns, distribution=self.distribution, **BASE[self.loss])
        return self.elements in COMPILED_SIZES and self == base

    @property
    def torch_dtype(self) -> torch.dtype:
        return getattr(torch, self.dtype)


class Data(NamedTuple):
    input: Tensor  # [rows, columns], a leaf that requires grad
    target: Tensor  # int64 [rows] with `columns` for background; or [rows, columns] in the dtype of `input`
    one_hot: Tensor  # fp32 [rows, columns]: the target that binary cross entropy and focal loss get
    weight: Tensor  # fp32 ones [rows], or [rows, columns] beside a dense target: what mmdetection's heads pass
    scale: Tensor  # fp32 []: the gradient that backward starts from; in fp16 GradScaler's, as others come out as 0


def make_data(case: Case, device: torch.device, seed: int = 0) -> Data:
    """The tensors of `case`, the same in every run on the same kind of device."""
    generator = torch.Generator(device).manual_seed(seed)
    make = _classification if case.loss == "ghmc" else _regression
    input, target, one_hot = make(case, device, generator)
    weight = torch.ones(target.shape, device=device)
    scale = torch.tensor(65536.0 if case.dtype == "float16" else 1.0, device=device)
    return Data(input.to(case.torch_dtype).requires_grad_(), target, one_hot, weight, scale)


def _classification(case, device, generator):
    """Logits; 0.5% of the anchors have an object. A trained head has found most of these: N(0, 2) at their class."""
    mean, std = {"start": (-4.6, 0.1), "trained": (-7.0, 1.2), "uniform": (0.0, 1.5)}[case.distribution]
    logits = torch.empty(case.rows, case.columns, device=device).normal_(mean, std, generator=generator)
    count = max(1, round(case.rows * POSITIVE_ANCHORS))
    anchor = torch.randint(case.rows, (count,), device=device, generator=generator).unique()
    label = torch.full((case.rows,), case.columns, device=device)
    label[anchor] = torch.randint(case.columns, anchor.shape, device=device, generator=generator)
    if case.distribution == "trained":
        logits[anchor, label[anchor]] = torch.randn(anchor.shape, device=device, generator=generator) * 2
    one_hot = torch.zeros(case.rows, case.columns, device=device)
    one_hot[anchor, label[anchor]] = 1
    return logits, label if case.target == "index" else one_hot.to(case.torch_dtype), one_hot


def _regression(case, device, generator):
    """Box deltas: predictions near 0 at the start, near the target when trained, or with uniform gradient norms."""
    shape = (case.rows, case.columns)
    target = torch.empty(shape, device=device).normal_(generator=generator)
    noise = torch.empty(shape, device=device).normal_(generator=generator)
    if case.distribution == "start":
        input = noise * 0.01
    elif case.distribution == "trained":
        input = target + noise * 0.1
    else:
        norm = torch.empty(shape, device=device).uniform_(0.001, 0.999, generator=generator)
        input = target + noise.sign() * MU * norm / (1 - norm * norm).sqrt()
    return input, target.to(case.torch_dtype), (target > 0).float()


def _named(loss: str, **fields) -> Case:
    return Case(loss, RETINANET, CLASSES if loss == "ghmc" else 4, size=RETINANET_NAME, **fields)


def _sized(loss: str, elements: float, **fields) -> Case:
    columns = CLASSES if loss == "ghmc" else 4
    return Case(loss, int(elements) // columns, columns, **fields)


def plan_cases(*, quick: bool, device: torch.device) -> list[Case]:
    """From one base case for each loss, the sizes, and then one factor at a time."""
    if quick:
        sizes, at, bins, dtypes = [1e4, 1e5, 1e6], 1e5, [10, 100], ["bfloat16"]
    else:
        sizes, at, bins, dtypes = [1e4, 1e5, 1e6, 1e7], 1e6, [5, 10, 20, 30, 40, 100], ["bfloat16", "float16"]
    if device.type != "cpu":
        at = max(sizes)
        sizes, bins = sizes + [1e8], bins + [300]
        sizes = sizes if quick else sizes + [1e9]
    cases = []
    for loss, fields in BASE.items():
        cases += [_sized(loss, elements, **fields) for elements in sizes]
        if not quick or device.type != "cpu":
            cases.append(_named(loss, **fields))
        variants = [{"bins": number} for number in bins]
        variants += [{"dtype": dtype} for dtype in dtypes]
        variants += [{"distribution": distribution} for distribution in ("start", "uniform")]
        variants += [{"target": "dense"}] if loss == "ghmc" else []
        cases += [_sized(loss, at, **(fields | variant)) for variant in variants]
    if not quick:
        cases += [Case("ghmc", ANCHORS, CLASSES, distribution=name) for name in ("trained", "start", "uniform")]
    if device.type != "cpu":
        cases.append(_named("ghmc", dtype="bfloat16"))
        cases.append(_named("ghmc", distribution="uniform"))
    return list(dict.fromkeys(cases))
