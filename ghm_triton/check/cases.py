"""The cases whose values are checked, and where they run."""

from typing import NamedTuple

import torch

LARGE = 2**31  # elements: beyond it, offsets need 64 bits
LARGE_FREE = 40 * 2**30  # bytes that must be free for such a case
NAMES = {"ghmc": "GHM-C", "ghmr": "GHM-R", "cross_entropy": "GHM cross entropy"}


class Place(NamedTuple):
    """A device and the backend that is checked there.

    Attributes:
        device: "cpu", "cuda" or "xpu", with or without an index.
        backend: "triton" or "eager".
    """

    device: torch.device
    backend: str

    @property
    def interpreted(self) -> bool:
        """Whether the kernels run in Triton's interpreter."""
        return self.backend == "triton" and self.device.type == "cpu"

    @property
    def elements(self) -> int:
        """The elements of a case of medium size."""
        if self.device.type != "cpu":
            return 8_000_000
        return 1280 if self.interpreted else 80_000


class Case(NamedTuple):
    """One call of a loss.

    Attributes:
        loss: "ghmc", "ghmr" or "cross_entropy".
        shape: Of the input. The classes are the last dimension, or the second for cross entropy.
        dtype: Of the input.
        distribution: Of the logits: "trained", "start" (of a training) or "uniform" (over the regions).
        target: "index", "dense" (one-hot), "bool" or "soft". GHM-R has "dense".
        mask: "", "rows" or "elements", whose tenth part does not count; "index" for `ignore_index`.
        levels: The number of levels that share the density.
        bins, exponent, reduction: See :func:`ghm_triton.ghmc_loss`.
        smoothing: `label_smoothing`.
        momentum: If positive, the moving average follows two calls.
        repeats: How often the rows are repeated, for large inputs whose reference is that of the rows.
        seed: Of the random numbers.
    """

    loss: str
    shape: tuple[int, ...]
    dtype: str = "float32"
    distribution: str = "trained"
    target: str = "index"
    mask: str = ""
    levels: int = 1
    bins: int = 30
    exponent: float = 0.5
    reduction: str = "mean"
    smoothing: float = 0.0
    momentum: float = 0.0
    repeats: int = 1
    seed: int = 0

    @property
    def elements(self) -> int:
        """The number of elements of the input."""
        return torch.Size(self.shape).numel() * self.repeats

    @property
    def traits(self) -> str:
        """What is special about the case, in words."""
        traits = {"index": [], "dense": ["dense target"], "bool": ["bool target"], "soft": ["soft target"]}[self.target]
        traits = [] if self.loss == "ghmr" else traits
        traits += {"": [], "index": ["ignore_index"]}.get(self.mask, [f"mask of {self.mask}"])
        traits += [f"{self.levels} levels"] if self.levels > 1 else []
        traits += [f"exponent {self.exponent:g}"] if self.exponent != 0.5 else []
        traits += [f"reduction {self.reduction}"] if self.reduction != "mean" else []
        traits += [f"smoothing {self.smoothing:g}"] if self.smoothing else []
        traits += ["moving average"] if self.momentum else []
        return ", ".join(traits)

    def __str__(self) -> str:
        rows, *rest = self.shape
        shape = " x ".join(f"{size:,}" for size in (rows * self.repeats, *rest))
        text = f"{NAMES[self.loss]}, {shape}, {self.dtype}, {self.distribution}, {self.bins} regions"
        return f"{text}, {self.traits}" if self.traits else text


def plan_cases(place: Place, free: int) -> list[Case]:
    """Plan the cases of a place, the most important ones first: time may run out.

    Args:
        place: Device and backend.
        free: Free bytes of the device, which limit the large cases on a GPU.
    """
    rows = place.elements // 80
    ghmc, ghmr = Case("ghmc", (rows, 80)), Case("ghmr", (place.elements // 4, 4), bins=10, target="dense")
    softmax = {classes: _softmax(place, classes) for classes in (2, 10, 100, 1000, 4097, 32768)}
    images = softmax[1000]
    cases = [one._replace(dtype=dtype) for dtype in ("float32", "bfloat16", "float16") for one in (ghmc, ghmr, images)]
    cases += [one._replace(distribution=name) for name in ("uniform", "start") for one in (ghmc, ghmr, images)]
    if place.device.type != "cpu":
        cases += large_cases(free)
    cases += [ghmc._replace(target="dense"), ghmc._replace(mask="rows"), ghmr._replace(mask="rows")]
    cases += [ghmc._replace(levels=5), ghmr._replace(levels=5), images._replace(target="soft")]
    cases += [softmax[classes] for classes in (2, 10, 100, 4097, 32768)]
    cases += [images._replace(mask="index"), softmax[10]._replace(smoothing=0.12), _pixels(place)]
    cases += [one._replace(momentum=0.75) for one in (ghmc, ghmr, softmax[10])]
    cases += [one._replace(reduction="none", distribution="uniform") for one in (ghmc, ghmr, softmax[10])]
    cases += [Case("ghmc", (37, 23)), Case("ghmr", (37, 4), bins=10, target="dense"), Case("cross_entropy", (37, 23))]
    cases += [
        ghmc._replace(target="soft", distribution="uniform"),
        ghmc._replace(mask="elements", distribution="uniform"),
    ]
    cases += [ghmr._replace(mask="elements", distribution="uniform"), ghmc._replace(mask="index")]
    cases += [one._replace(exponent=1.0, distribution="uniform") for one in (ghmc, ghmr, images)]
    cases += [ghmc._replace(bins=bins, distribution="uniform") for bins in (10, 300)]
    cases += [softmax[classes]._replace(dtype="bfloat16") for classes in (2, 10, 32768)]
    cases += [ghmc._replace(target="soft", dtype="bfloat16"), ghmc._replace(target="bool")]
    return cases


def _softmax(place: Place, classes: int) -> Case:
    return Case("cross_entropy", (max(4, min(place.elements // classes, place.elements // 8)), classes))


def _pixels(place: Place) -> Case:
    """Logits of segmentation, with the classes second."""
    side = max(5, int((place.elements / 38) ** 0.5))
    return Case("cross_entropy", (2, 19, side, side))


def large_cases(free: int) -> list[Case]:
    """Plan inputs of more than LARGE elements where LARGE_FREE bytes are free, or of what fits in a third of them."""
    cases = []
    for case, size in (
        (Case("ghmc", (90_001, 80)), 8),  # bytes per element: the input, its gradient, a dense target
        (Case("ghmr", (1_800_001, 4), dtype="bfloat16", bins=10, target="dense"), 6),
        (Case("cross_entropy", (221, 32_768)), 8),
    ):
        most = LARGE // case.elements + 1 if free >= LARGE_FREE else free // (3 * size * case.elements)
        if most > 1:  # no power of two times rows: a wrapped offset finds other numbers
            cases.append(case._replace(repeats=min(most, LARGE // case.elements + 1)))
    return cases
