"""The cases that the sweep measures."""

import dataclasses
import math

import torch

CLASSES = 80
# RetinaNet at 800 x 1333, padded to 800 x 1344: levels P3 to P7, 9 anchors per cell, batch 2.
RETINANET = 2 * 9 * (100 * 168 + 50 * 84 + 25 * 42 + 13 * 21 + 7 * 11)
RETINANET_NAME = "RetinaNet 800x1333 batch 2"
ANCHORS = 100_000  # half an image of RetinaNet at 800 x 1333
COMPILED_SIZES = (10**6, ANCHORS * CLASSES)
BASE = {"ghmc": {}, "ghmr": {"bins": 10, "target": "dense"}, "cross_entropy": {}}  # fields other than Case's defaults
SOFTMAX = {  # shapes of the logits of softmax classifiers, by size: images, tokens, pixels with the classes second
    "8,192 x 1,000": (8192, 1000),
    "2,048 x 32,768": (2048, 32768),
    "8 x 19 x 256 x 256": (8, 19, 256, 256),
}
HOST = "host time"  # the size of the cases that only the timer "host" measures: a batch of 128 examples


@dataclasses.dataclass(frozen=True)
class Case:
    """One input of the losses. The fields are columns of the CSV."""

    loss: str  # "ghmc", "ghmr" or "cross_entropy"
    rows: int  # anchors, or examples
    columns: int  # classes, or 4 box deltas
    dtype: str = "float32"
    bins: int = 30
    target: str = "index"  # GHM-C: "index" (class indices) or "dense" (one-hot); GHM-R: "dense"
    distribution: str = "trained"  # or "start" (of the training), or "uniform" (over the regions)
    size: str = ""  # a name, for sizes that have one

    @property
    def elements(self) -> int:
        """The number of elements of the input."""
        return self.rows * self.columns

    @property
    def compiled(self) -> bool:
        """Whether torch.compile is timed too, which takes most of a minute per case."""
        if self.loss == "cross_entropy":
            return self.size in SOFTMAX and self == softmax_case(self.size)
        base = Case(self.loss, self.rows, self.columns, distribution=self.distribution, **BASE[self.loss])
        return self.elements in COMPILED_SIZES and self == base

    @property
    def shape(self) -> tuple[int, ...]:
        """The shape of the input."""
        return SOFTMAX.get(self.size, (self.rows, self.columns))

    @property
    def torch_dtype(self) -> torch.dtype:
        """The dtype of the input."""
        return getattr(torch, self.dtype)


def _named(loss: str, **fields) -> Case:
    return Case(loss, RETINANET, CLASSES if loss == "ghmc" else 4, size=RETINANET_NAME, **fields)


def _sized(loss: str, elements: float, **fields) -> Case:
    columns = CLASSES if loss == "ghmc" else 4
    return Case(loss, int(elements) // columns, columns, **fields)


def softmax_case(size: str, **fields) -> Case:
    """Return the case of a size in SOFTMAX."""
    rows, columns, *space = SOFTMAX[size]
    return Case("cross_entropy", math.prod((rows, *space)), columns, size=size, **fields)


def _softmax_cases(*, quick: bool, on_cpu: bool) -> list[Case]:
    """Plan all sizes, and the other dtypes and distributions at the first; on a GPU, 16 bits at all sizes."""
    if quick:
        return [Case("cross_entropy", 500, 1000), Case("cross_entropy", 500, 1000, dtype="bfloat16")]
    first = next(iter(SOFTMAX))
    cases = [softmax_case(size) for size in SOFTMAX]
    cases += [softmax_case(size, dtype="bfloat16") for size in (SOFTMAX if not on_cpu else [first])]
    return cases + [softmax_case(first, distribution=name) for name in ("start", "uniform")]


def plan_cases(*, quick: bool, device: torch.device) -> list[Case]:
    """Plan the sizes of one base case per loss, and then one factor at a time."""
    if quick:
        sizes, at, bins, dtypes = [1e4, 1e5, 1e6], 1e5, [10, 100], ["bfloat16"]
    else:
        sizes, at, bins, dtypes = [1e4, 1e5, 1e6, 1e7], 1e6, [5, 10, 20, 30, 40, 100], ["bfloat16", "float16"]
    if device.type != "cpu":
        at = max(sizes)
        sizes, bins = sizes + [1e8], bins + [300]
        sizes = sizes if quick else sizes + [1e9]
    cases = []
    for loss in ("ghmc", "ghmr"):
        fields = BASE[loss]
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
    cases += _softmax_cases(quick=quick, on_cpu=device.type == "cpu")
    cases += [Case(loss, 128, 4 if loss == "ghmr" else 10, size=HOST, **fields) for loss, fields in BASE.items()]
    return list(dict.fromkeys(cases))
