"""Measures the rows that the CSV does not have yet, case by case."""

import dataclasses
import gc
import itertools
import math
import os
from collections.abc import Iterator, Sequence

import torch
from tqdm import tqdm

from ..provenance import now, provenance
from ..resumable_csv import ResumableCsv
from .cases import HOST, Case
from .data import make_data
from .gate import Gate
from .implementations import Implementation
from .measure import Failed, failure, measure_group
from .meters import Meter
from .timed_calls import MODES

# The most that a case needs: about 100 for its gate and the rest for an implementation
BYTES_PER_ELEMENT = {"ghmc": 160, "ghmr": 160, "cross_entropy": 80}


@dataclasses.dataclass(frozen=True)
class Effort:
    """The settings for one group of implementations, in one case and mode.

    Attributes:
        name: The value of the column "effort".
        budget_s: Seconds for all repetitions.
        repetitions: Per implementation, at least and at most.
    """

    name: str
    budget_s: float
    repetitions: tuple[int, int]


QUICK = Effort("quick", 0.2, (3, 100))
FULL = Effort("full", 1.5, (5, 300))


def plan_groups(
    cases: Sequence[Case], implementations: Sequence[Implementation], timers: Sequence[str]
) -> list[tuple[Case, str, str, list[Implementation]]]:
    """Plan the groups that are timed together: (case, mode, timer, implementations) of each.

    A CUDA graph cannot hold a backward without its forward. torch.compile is timed in few cases, and only for forward
    and backward together. So is the time of the host.
    """
    groups = []
    for case, timer, mode in itertools.product(cases, timers, MODES):
        host = timer == "host"
        if (timer == "graph" and mode == "backward") or host != (case.size == HOST):
            continue
        if host and mode != "forward_backward":
            continue
        able = [one for one in implementations if case.loss in one.losses and not (timer == "graph" and one.waits)]
        able = [one for one in able if host or not one.host_only]
        if not (case.compiled and mode == "forward_backward"):
            able = [one for one in able if not one.compiles]
        groups.append((case, mode, timer, able))
    return groups


def sweep(
    cases: Sequence[Case],
    implementations: Sequence[Implementation],
    table: ResumableCsv,
    meter: Meter,
    effort: Effort,
) -> None:
    """Measure the rows that `table` does not have, and append them."""
    common = {"device": meter.name, "threads": torch.get_num_threads(), "effort": effort.name} | provenance()
    if table.commits - {common["commit"]}:
        print(f"{table.path} has rows of other commits ({', '.join(sorted(table.commits))}). They are kept.")

    def key(case, mode, timer, implementation):
        names = {"mode": mode, "timer": timer, "implementation": implementation.name}
        return dataclasses.asdict(case) | {"elements": case.elements} | names | common

    groups = plan_groups(cases, implementations, meter.timers)
    rows = [key(*group, one) for *group, able in groups for one in able]
    done = sum(row in table for row in rows)
    # A group runs as a whole, even if it already has some rows: the others are compared with them.
    groups = [group for group in groups if any(key(*group[:3], one) not in table for one in group[3])]
    with tqdm(total=len(rows), initial=done, unit="row", dynamic_ncols=True) as bar:
        for case, of_case in itertools.groupby(groups, key=lambda group: group[0]):
            bar.set_postfix_str(f"{case.loss} {case.elements:.0e} {case.dtype} bins {case.bins} {case.distribution}")
            for *group, implementation, values in _measure_case(case, list(of_case), meter, effort):
                row = key(*group, implementation)
                if row not in table:
                    table.append(row | values | {"measured_at": now()})
                    bar.update()


def _measure_case(
    case: Case, groups, meter: Meter, effort: Effort
) -> Iterator[tuple[Case, str, str, Implementation, dict]]:
    """Yield (case, mode, timer, implementation, values) for every row of a case."""
    if case.compiled:
        torch.compiler.reset()  # or earlier cases would count against the limit of recompilations
    try:
        _check_memory(case, meter.device)
        data = make_data(case, meter.device)
        gate = Gate(case, data)
        copy = meter.copy_gb_per_s()
    except Exception as error:
        values = failure(error)
        yield from ((*group, one, values) for *group, able in groups for one in able)
        return
    tools = {
        "meter": meter,
        "gate": gate,
        "budget_s": effort.budget_s,
        "repetitions": effort.repetitions,
    }
    for _, mode, timer, able in groups:
        for one, values in measure_group(able, case, data, mode, timer, **tools):
            if "gb_per_s" in values:
                values |= {"copy_gb_per_s": copy, "copy_percent": 100 * values["gb_per_s"] / copy}
            yield case, mode, timer, one, values
        gc.collect()  # calls refer to themselves and hold tensors


def _check_memory(case: Case, device: torch.device) -> None:
    """Raise Failed for a case that does not fit: on the CPU the system would kill the sweep instead."""
    if device.type != "cpu" or not os.path.exists("/proc/meminfo"):
        return
    with open("/proc/meminfo") as file:
        available = next((1024 * int(line.split()[1]) for line in file if line.startswith("MemAvailable")), math.inf)
    needed = case.elements * BYTES_PER_ELEMENT[case.loss]
    if needed > available:
        raise Failed("out of memory", f"needs up to {needed / 1e9:.1f} GB of {available / 1e9:.1f} GB, not tried")
