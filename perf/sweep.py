"""Times the losses and what they are compared with, over sizes, dtypes, bins, targets and distributions of the logits.

    python -m perf.sweep [--quick] [--device auto] [--out FILE.csv]

Rows are written one by one; started again with the same file, the sweep goes on where it stopped.
"""

import argparse
import dataclasses
import gc
import itertools
import math
import os
import re
import sys
from collections.abc import Iterator, Sequence

import torch
from tqdm import tqdm

from .cases import Case, make_data, plan_cases
from .gpu_meters import open_meter
from .implementations import Implementation, find_implementations
from .measure import Failed, failure, measure_group
from .reference import Reference
from .runs import MODES
from .table import Table, now, origin

BYTES_AN_ELEMENT = 160  # that a case needs at most: its reference (about 100) and an implementation


@dataclasses.dataclass(frozen=True)
class Effort:
    """Of each group of implementations, for one case in one mode."""

    budget_s: float
    repetitions: tuple[int, int]  # of each implementation: at least, at most


QUICK = Effort(0.2, (3, 100))
FULL = Effort(1.5, (5, 300))


def plan_groups(
    cases: Sequence[Case], implementations: Sequence[Implementation], timers: Sequence[str]
) -> list[tuple[Case, str, str, list[Implementation]]]:
    """(case, mode, timer, implementations) of each group.

    No CUDA graph holds a backward without its forward; torch.compile is for few cases, forward and backward in one.
    """
    groups = []
    for case, timer, mode in itertools.product(cases, timers, MODES):
        if timer == "graph" and mode == "backward":
            continue
        able = [one for one in implementations if case.loss in one.losses and not (timer == "graph" and one.waits)]
        if not (case.compiled and mode == "forward_backward"):
            able = [one for one in able if not one.compiles]
        groups.append((case, mode, timer, able))
    return groups


def sweep(
    cases: Sequence[Case], implementations: Sequence[Implementation], table: Table, meter, effort: Effort
) -> None:
    """Measures what `table` does not have yet, and appends it."""
    common = {"device": meter.name, "threads": torch.get_num_threads()} | origin()
    if table.commits - {common["commit"]}:
        print(f"{table.path} has rows of other commits ({', '.join(sorted(table.commits))}); they are kept")

    def key(case, mode, timer, implementation):
        names = {"mode": mode, "timer": timer, "implementation": implementation.name}
        return dataclasses.asdict(case) | {"elements": case.elements} | names | common

    groups = plan_groups(cases, implementations, meter.timers)
    rows = [key(*group, one) for *group, able in groups for one in able]
    done = sum(row in table for row in rows)
    # All of a group run, also those whose rows are there: they are what the others are compared with.
    groups = [group for group in groups if any(key(*group[:3], one) not in table for one in group[3])]
    with tqdm(total=len(rows), initial=done, unit="row", dynamic_ncols=True) as bar:
        for case, of_case in itertools.groupby(groups, key=lambda group: group[0]):
            bar.set_postfix_str(f"{case.loss} {case.elements:.0e} {case.dtype} bins {case.bins} {case.distribution}")
            for *group, implementation, values in _measure_case(case, list(of_case), meter, effort):
                row = key(*group, implementation)
                if row not in table:
                    table.append(row | values | {"measured_at": now()})
                    bar.update()


def _measure_case(case: Case, groups, meter, effort: Effort) -> Iterator[tuple[Case, str, str, Implementation, dict]]:
    """What names a row, and its values, for all rows of a case."""
    if case.compiled:
        torch.compiler.reset()  # or the cases before would count against its limit of versions
    try:
        _check_memory(case, meter.device)
        data = make_data(case, meter.device)
        reference = Reference(case, data)
        copy = meter.copy_gb_per_s()
    except Exception as error:
        values = failure(error).row
        yield from ((*group, one, values) for *group, able in groups for one in able)
        return
    tools = {"meter": meter, "reference": reference, "budget_s": effort.budget_s, "repetitions": effort.repetitions}
    for _, mode, timer, able in groups:
        for one, values in measure_group(able, case, data, mode, timer, **tools):
            if "gb_per_s" in values:
                values |= {"copy_gb_per_s": copy, "copy_percent": 100 * values["gb_per_s"] / copy}
            yield case, mode, timer, one, values
        gc.collect()  # runs refer to themselves, and hold tensors


def _check_memory(case: Case, device: torch.device) -> None:
    """On the CPU a case that is too large would not fail but be killed, and the sweep with it."""
    if device.type != "cpu" or not os.path.exists("/proc/meminfo"):
        return
    with open("/proc/meminfo") as file:
        available = next((1024 * int(line.split()[1]) for line in file if line.startswith("MemAvailable")), math.inf)
    needed = case.elements * BYTES_AN_ELEMENT
    if needed > available:
        raise Failed("out of memory", f"needs up to {needed / 1e9:.1f} GB of {available / 1e9:.1f} GB, not tried")


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m perf.sweep", description=__doc__.splitlines()[0])
    parser.add_argument("--quick", action="store_true", help="fewer and smaller cases, under a minute on two CPU cores")
    parser.add_argument("--device", default="auto", help="auto, cpu, cuda, xpu, or cuda:N (default: auto)")
    parser.add_argument("--threads", type=int, help="of PyTorch on the CPU (default: as PyTorch chooses)")
    parser.add_argument("--out", help="CSV to write or go on with (default: perf/results/sweep-DEVICE[-quick].csv)")
    options = parser.parse_args(arguments)
    if options.threads:
        torch.set_num_threads(options.threads)
    meter = open_meter(options.device)
    name = re.sub(r"\W+", "-", meter.device.type if meter.device.type == "cpu" else meter.name).strip("-").lower()
    table = Table(options.out or f"perf/results/sweep-{name}{'-quick' if options.quick else ''}.csv")
    cases = plan_cases(quick=options.quick, device=meter.device)
    print(f"{meter.name}, {torch.get_num_threads()} threads, PyTorch {torch.__version__} -> {table.path}")
    if meter.device.type == "cpu" and hasattr(os, "getloadavg") and os.getloadavg()[0] > 0.5:
        print(f"The machine is busy (load {os.getloadavg()[0]:.1f}): threads will wait, --threads 1 suffers least")
    try:
        implementations = find_implementations(meter.device, compiled=not options.quick)
        sweep(cases, implementations, table, meter, QUICK if options.quick else FULL)
    except KeyboardInterrupt:
        print(f"\nInterrupted. {len(table.done)} rows are in {table.path}; the same command goes on from there.")
        return 130
    print(f"{len(table.done)} rows in {table.path}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
