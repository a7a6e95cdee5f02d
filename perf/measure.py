"""One group of measurements: all implementations on one case in one mode, interleaved."""

import random
import time
from collections.abc import Iterator

import numpy as np
import torch

from .cases import Case, Data
from .implementations import BASELINE, Implementation
from .reference import Reference
from .runs import GraphRun, LossRun, Run

SLOW_S = 1.0  # a run that takes longer is repeated three times, and not run again to see how long it takes


class Failed(Exception):
    """A run that gets no time, with the status and the detail of its row."""

    def __init__(self, status: str, detail: str = "", **values):
        self.row = {"status": status, "detail": detail} | values


def failure(error: Exception) -> Failed:
    """What went wrong, in a line; running out of memory has a status of its own."""
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
    """(implementation, the values of its row) for each.

    Args:
        budget_s: Time for all repetitions together, of which each implementation gets its share ...
        repetitions: ... within these bounds.
    """
    rows, runs, elapsed = {}, {}, {}
    for implementation in implementations:
        name = implementation.name
        try:
            run, rows[name], elapsed[name] = _checked_run(implementation, case, data, mode, timer, meter, reference)
            if elapsed[name] < SLOW_S:  # the first run warms up
                start = time.perf_counter()
                meter.milliseconds(run, timer)
                elapsed[name] = time.perf_counter() - start
            runs[name] = run
        except Exception as error:
            rows[name] = rows.get(name, {}) | failure(error).row
    times = _interleave(runs, elapsed, timer, meter, budget_s / max(1, len(implementations)), repetitions)
    for implementation in implementations:
        row = rows[implementation.name]
        own = times.get(implementation.name)
        if isinstance(own, Failed):
            row = row | own.row
        elif own:
            row = row | {"status": "ok"} | _summary(own, times.get(BASELINE))
            row["min_bytes"] = implementation.least_bytes(case, mode)
            row["gb_per_s"] = row["min_bytes"] / row["p50_ms"] / 1e6
        yield implementation, row


def _checked_run(implementation, case, data, mode, timer, meter, reference) -> tuple[Run, dict, float]:
    """(the run, found right; its errors, memory and launches; the seconds it took). Raises Failed if it is wrong."""
    run = LossRun(implementation, case, data, mode)
    if implementation.compiles:
        run.check()  # so that `elapsed` is without compiling
    if timer == "graph":
        run = GraphRun(run)
    start = time.perf_counter()
    loss, gradient = run.check()
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
        values["peak_extra_bytes"] = meter.peak_bytes(run)
        values["launches"], values["host_syncs"] = meter.launches_and_waits(run)
    return run, values, elapsed


def _interleave(runs, elapsed, timer, meter, share_s, repetitions) -> dict[str, dict[int, float] | Failed]:
    """Milliseconds of each run by round, or why it failed.

    Each round has all the runs in a random order, so that drift and what others leave in the caches hit all alike. A
    slow run skips rounds, evenly; the baseline is in all of them.
    """
    least, most = repetitions
    wanted = {}
    for name in runs:
        floor = least if elapsed[name] < SLOW_S else min(3, least)
        wanted[name] = min(most, max(floor, int(share_s / max(elapsed[name], 1e-9))))
    rounds = max(wanted.values(), default=0)
    if BASELINE in wanted:
        wanted[BASELINE] = rounds
    times = {name: {} for name in runs}
    shuffle = random.Random(0)
    for index in range(rounds):
        order = [name for name in wanted if index * wanted[name] // rounds != (index - 1) * wanted[name] // rounds]
        shuffle.shuffle(order)
        for name in order:
            try:
                times[name][index] = meter.milliseconds(runs[name], timer)
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
