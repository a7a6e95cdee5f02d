"""One group of measurements: all implementations on one case in one mode."""

import contextlib
from collections.abc import Iterator

import numpy as np
import torch

from .cases import Case
from .data import Data
from .gate import Gate
from .host_time import without_launches
from .implementations import BASELINES, Implementation
from .meters import INTERLEAVED, Meter, Times
from .timed_calls import LossCall


class Failed(Exception):
    """A call that failed and gets no time. `row` has its status and detail."""

    def __init__(self, status: str, detail: str = "", **values):
        self.row = {"status": status, "detail": detail} | values


def failure(error: Exception) -> dict:
    """Return the error as values of a row, in one line. Running out of memory has its own status."""
    if isinstance(error, Failed):
        return error.row
    text = " ".join(str(error).split())[:200]
    no_memory = isinstance(error, (torch.OutOfMemoryError, MemoryError)) or "can't allocate memory" in str(error)
    return {"status": "out of memory" if no_memory else "error", "detail": f"{type(error).__name__}: {text}"}


def measure_group(
    implementations: list[Implementation],
    case: Case,
    data: Data,
    mode: str,
    timer: str,
    *,
    meter: Meter,
    gate: Gate,
    budget_s: float,
    repetitions: tuple[int, int],
) -> Iterator[tuple[Implementation, dict]]:
    """Yield each implementation and the values of its row. The arguments are those of :meth:`Meter.times`."""
    rows, calls, baseline = {}, {}, BASELINES[case.loss]
    with without_launches() if timer == "host" else contextlib.nullcontext() as launched:
        for implementation in implementations:
            name, call = implementation.name, LossCall(implementation, case, data, mode)
            try:
                rows[name] = (
                    _launches(call, launched) if timer == "host" else _checked(call, implementation, timer, meter, gate)
                )
                calls[name] = call
            except Exception as error:
                rows[name] = failure(error)
        times = meter.times(calls, timer, budget_s=budget_s, repetitions=repetitions, baseline=baseline)
    for implementation in implementations:
        row = rows[implementation.name]
        own = times.get(implementation.name)
        if isinstance(own, Exception):
            row = row | failure(own)
        elif own:
            row = row | {"status": "ok"} | _summary(own, times.get(baseline), timer in INTERLEAVED)
            if timer != "host":
                row["min_bytes"] = implementation.least_bytes(case, mode)
                row["gb_per_s"] = row["min_bytes"] / row["p50_ms"] / 1e6
        yield implementation, row


def _checked(call: LossCall, implementation: Implementation, timer: str, meter: Meter, gate: Gate) -> dict:
    """Return the errors, memory and launches of the call. Raise Failed if its results are wrong."""
    if implementation.compiles:
        call.check()  # so that `seconds` leaves out the compiler
    values = gate.errors(implementation, call.check())
    if not gate.accepts(values):
        raise Failed("wrong", "too far from the float64 reference", **values)
    if timer != "graph":
        values["peak_extra_bytes"] = meter.peak_bytes(call)
        values["launches"], values["host_syncs"] = meter.launches_and_waits(call)
    call.release()
    return values


def _launches(call: LossCall, launched: list[str]) -> dict:
    """Return the number of kernels that the call would have launched. Without them, its results are not checked."""
    call.check()
    before = len(launched)
    call.check()
    return {"launches": len(launched) - before}


def _summary(own: dict[int, float], baseline: Times | None, interleaved: bool) -> dict:
    p20, p50, p80 = np.percentile(list(own.values()), [20, 50, 80])
    summary = {"repetitions": len(own), "p50_ms": p50, "p20_ms": p20, "p80_ms": p80}
    if not isinstance(baseline, dict) or not baseline:
        return summary
    if not interleaved:
        return summary | {"ratio": p50 / np.median(list(baseline.values()))}
    ratios = [own[index] / baseline[index] for index in own if index in baseline]
    if ratios:
        summary["ratio_p20"], summary["ratio"], summary["ratio_p80"] = np.percentile(ratios, [20, 50, 80])
    return summary
