"""One group of measurements: all implementations on one case in one mode, interleaved."""

import random
import time
from collections.abc import Iterator

import numpy as np
import torch

from .cases import Case
from .data import Data
from .implementations import BASELINES, Implementation
from .reference import Reference
from .timed_calls import GraphReplay, LossCall, TimedCall

SLOW_S = 1.0  # a call that takes longer is repeated three times, and has no warm-up of its own


class Failed(Exception):
    """A call that gets no time; `row` has its status and detail."""

    def __init__(self, status: str, detail: str = "", **values):
        self.row = {"status": status, "detail": detail} | values


def failure(error: Exception) -> Failed:
    """The error as one line of a row. Running out of memory has its own status."""
    if isinstance(error, Failed):
        return error
    text = " ".join(str(error).split())[:200]
    no_memory = isinstance(error, (torch.OutOfMemoryError, MemoryError)) or "can't allocate memory" in str(error)
    return Failed("out of memory" if no_memory else "error", f"{type(error).__name__}: {text}")


def measure_group(
    implementations: list[Implementation],
    case: Case,
    data: Data,
    mode: str,
    timer: str,
    *,
    meter,
    reference: Reference,
    budget_s: float,
    repetitions: tuple[int, int],
) -> Iterator[tuple[Implementation, dict]]:
    """Yield (implementation, the values of its row).

    Args:
        budget_s: Seconds for all repetitions of all implementations, which get equal shares.
        repetitions: Per implementation, at least and at most, whatever its share.
    """
    rows, calls, elapsed = {}, {}, {}
    for implementation in implementations:
        name = implementation.name
        try:
            call, rows[name], elapsed[name] = _checked_call(implementation, case, data, mode, timer, meter, reference)
            if elapsed[name] < SLOW_S:  # the first call warmed up
                start = time.perf_counter()
                meter.milliseconds(call, timer)
                elapsed[name] = time.perf_counter() - start
            calls[name] = call
        except Exception as error:
            rows[name] = rows.get(name, {}) | failure(error).row
    baseline = BASELINES[case.loss]
    times = _interleave(calls, elapsed, timer, meter, budget_s / max(1, len(implementations)), repetitions, baseline)
    for implementation in implementations:
        row = rows[implementation.name]
        own = times.get(implementation.name)
        if isinstance(own, Failed):
            row = row | own.row
        elif own:
            row = row | {"status": "ok"} | _summary(own, times.get(baseline))
            row["min_bytes"] = implementation.least_bytes(case, mode)
            row["gb_per_s"] = row["min_bytes"] / row["p50_ms"] / 1e6
        yield implementation, row


def _checked_call(implementation, case, data, mode, timer, meter, reference) -> tuple[TimedCall, dict, float]:
    """(the call; its errors, memory and launches; the seconds it took). Raise Failed if its results are wrong."""
    call = LossCall(implementation, case, data, mode)
    if implementation.compiles:
        call.check()  # so that `elapsed` leaves out the compiler
    if timer == "graph":
        call = GraphReplay(call)
    start = time.perf_counter()
    loss, gradient = call.check()
    elapsed = time.perf_counter() - start
    values = {}
    if loss is not None:
        values["loss_error"] = reference.loss_error(implementation.formula, loss.detach())
    if gradient is not None:
        values["gradient_error"] = reference.gradient_error(implementation.formula, gradient)
    loss = gradient = None
    if not reference.accepts(*values.values()):
        raise Failed("wrong", "too far from the float64 reference", **values)
    if timer != "graph":
        values["peak_extra_bytes"] = meter.peak_bytes(call)
        values["launches"], values["host_syncs"] = meter.launches_and_waits(call)
    return call, values, elapsed


def _interleave(calls, elapsed, timer, meter, share_s, repetitions, baseline) -> dict[str, dict[int, float] | Failed]:
    """Milliseconds of each call by round, or why it failed.

    Each round has all calls in a random order, so that drift and the state of the caches affect all in the same way. A
    slow call skips rounds at even distances; the baseline is in every round.
    """
    least, most = repetitions
    wanted = {}
    for name in calls:
        floor = least if elapsed[name] < SLOW_S else min(3, least)
        wanted[name] = min(most, max(floor, int(share_s / max(elapsed[name], 1e-9))))
    rounds = max(wanted.values(), default=0)
    if baseline in wanted:
        wanted[baseline] = rounds
    times = {name: {} for name in calls}
    shuffle = random.Random(0)
    for index in range(rounds):
        order = [name for name in wanted if index * wanted[name] // rounds != (index - 1) * wanted[name] // rounds]
        shuffle.shuffle(order)
        for name in order:
            try:
                times[name][index] = meter.milliseconds(calls[name], timer)
            except Exception as error:
                times[name] = failure(error)
                del wanted[name]
    return times


def _summary(own: dict[int, float], baseline: dict[int, float] | Failed | None) -> dict:
    p20, p50, p80 = np.percentile(list(own.values()), [20, 50, 80])
    summary = {"repetitions": len(own), "p50_ms": p50, "p20_ms": p20, "p80_ms": p80}
    if isinstance(baseline, dict):
        ratios = [own[index] / baseline[index] for index in own if index in baseline]
        if ratios:
            summary["ratio_p20"], summary["ratio_to_bce"], summary["ratio_p80"] = np.percentile(ratios, [20, 50, 80])
    return summary
