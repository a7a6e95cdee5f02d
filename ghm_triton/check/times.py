"""Times of forward and backward beside cross entropy and focal loss: medians of interleaved runs."""

import statistics
import time
from collections.abc import Callable
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from .cases import Case, Place
from .data import make_data
from .values import FUNCTIONS

ROUNDS = 7
BASELINES = {"ghmc": "bce", "cross_entropy": "cross_entropy"}
LABELS = {"triton": "this package", "eager": "this package", "bce": "binary cross entropy"}
LABELS |= {"torchvision_focal": "focal loss, torchvision", "cross_entropy": "cross entropy, PyTorch"}


class Row(NamedTuple):
    """The times of one implementation on one case.

    Attributes:
        case: Its input.
        implementation: Its name in the CSVs of perf.sweep.
        milliseconds: Of each round.
        ratios: To the baseline, of each round.
    """

    case: Case
    implementation: str
    milliseconds: list[float]
    ratios: list[float]


def timed_cases(place: Place) -> list[Case]:
    """Return a detector's logits and those of images, in float32 and on a GPU in bfloat16."""
    size = 8_000_000 if place.device.type != "cpu" else 1_000_000
    dtypes = ("float32", "bfloat16") if place.device.type != "cpu" else ("float32",)
    cases = [Case("ghmc", (size // 80, 80)), Case("cross_entropy", (size // 1000, 1000))]
    return [case._replace(dtype=dtype) for dtype in dtypes for case in cases]


def measure_case(case: Case, place: Place, clock: Callable[[Callable], float], rounds: int = ROUNDS) -> list[Row]:
    """Time each implementation once per round. `clock`: from a call to milliseconds."""
    calls = _calls(case, place)
    for call in calls.values():
        call()  # compiles kernels
    times = {name: [] for name in calls}
    for index in range(rounds):
        for name in list(calls)[:: 1 if index % 2 == 0 else -1]:
            times[name].append(clock(calls[name]))
    base = times[BASELINES[case.loss]]
    return [Row(case, name, own, [a / b for a, b in zip(own, base)]) for name, own in times.items()]


def clock_of(device: torch.device) -> Callable[[Callable], float]:
    """Return the clock of a device: CUDA events with a cold cache, by `do_bench`, or that of the host."""
    if device.type == "cpu":
        return _wall
    from triton.testing import do_bench

    return lambda call: do_bench(call, warmup=5, rep=20, return_mode="median")


def _wall(call: Callable) -> float:
    start = time.perf_counter()
    call()
    return 1e3 * (time.perf_counter() - start)


def _calls(case: Case, place: Place) -> dict[str, Callable]:
    """Return calls that compute a loss and its gradient. 16-bit logits are cast to float32, as autocast does."""
    data = make_data(case, place.device)
    x, target, one_hot = data.inputs[0].detach().requires_grad_(), data.targets[0], data.dense.float()

    def call_of(loss: Callable[[], Tensor]) -> Callable:
        return lambda: torch.autograd.grad(loss(), x)

    ours = FUNCTIONS[case.loss]
    calls = {place.backend: call_of(lambda: ours(x, target, backend=place.backend))}
    if case.loss == "cross_entropy":
        return calls | {"cross_entropy": call_of(lambda: F.cross_entropy(x.float(), target))}
    calls["bce"] = call_of(lambda: F.binary_cross_entropy_with_logits(x.float(), one_hot))
    try:
        from torchvision.ops import sigmoid_focal_loss
    except ImportError:
        return calls
    return calls | {"torchvision_focal": call_of(lambda: sigmoid_focal_loss(x.float(), one_hot, reduction="mean"))}


def describe_rows(rows: list[Row]) -> list[str]:
    """Return a line per implementation."""
    lines = []
    for row in rows:
        ms, ratio = statistics.median(row.milliseconds), statistics.median(row.ratios)
        shape = " x ".join(f"{size:,}" for size in row.case.shape)
        name = LABELS[row.implementation]
        if name == "this package":
            name += ", GHM-C" if row.case.loss == "ghmc" else ", GHM cross entropy"
        lines.append(f"  {shape:14} {row.case.dtype:9} {name:32} {ms:9.4g} ms  {ratio:6.2f}x")
    return lines
