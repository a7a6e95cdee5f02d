"""Train a RetinaNet with each pair of losses on scenes of digits and on tree crowns, and compare their AP.

The command appends a row after each run, and continues where it stopped when it is started again. It prints the tables
and writes a figure beside the CSV.
"""

import argparse
import dataclasses
import math
import os
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

import pandas as pd
import torch

from ghm_triton.arguments import command_parser, real, whole
from ghm_triton.detection.training.evaluation import METRICS

from ..provenance import now, provenance
from ..resumable_csv import ResumableCsv
from .figure import plot
from .plan import (
    BUDGETS,
    COMPARED,
    DIGITS,
    EXPONENT,
    FULL,
    KEY,
    OPTIONAL,
    OTHER_PHOTOGRAPH,
    PAIRS,
    SMOKE,
    STAGES,
    TASKS,
    Plan,
    Run,
    runs_of,
    scores_of,
)
from .settings import describe
from .tables import tables
from .training import measure, start_weights

COLUMNS = [*KEY, *METRICS, "curve", "seconds_per_step", "threads", "scenes", "torch", "commit", "measured_at"]
PRETRAINING_STEPS = 1500
SMOKE_STEPS = 4
SMOKE_DEFAULTS = {"tasks": list(DIGITS), "scenes": 4, "seeds": 1, "ablation_seeds": 1}
SMOKE_LOSSES = ["focal + SL1", "GHM-C + GHM-R"]
SMOKE_EXPONENTS = [1.0, EXPONENT]


def pairs_of(options: argparse.Namespace) -> list[tuple[str, float]]:
    """Return each (pair, exponent) that the options name."""
    return [pair for pair in COMPARED + OPTIONAL if pair[0] in options.losses and pair[1] in options.exponents]


def runs_left(plan: Plan, rows: pd.DataFrame, options: argparse.Namespace) -> list[Run]:
    """Return the runs of the plan that have no row yet. A complete grid determines the settings of later runs."""
    names = ("stages", "tasks", "budget", "seeds", "ablation_seeds")
    runs = plan.runs(rows, compared=pairs_of(options), **{name: getattr(options, name) for name in names})
    done = set(runs_of(rows))
    return [run for run in runs if run not in done]


def train_and_append(run: Run, backbone: dict | None, table: ResumableCsv, options: argparse.Namespace) -> None:
    """Do `run` and append its row, or the rows of both photographs. A run that diverges gets an AP of 0."""
    try:
        results = measure(run, backbone, scenes=options.scenes, trees_folder=options.trees)
    except FloatingPointError as error:
        print(error)
        values = dict.fromkeys(METRICS, 0.0) | {"curve": f"{run.steps}:0", "seconds_per_step": math.nan}
        results = dict.fromkeys([run.task] if run.task in DIGITS else OTHER_PHOTOGRAPH, values)
    about = {name: value for name, value in provenance().items() if name in COLUMNS}
    about |= {"threads": torch.get_num_threads(), "scenes": options.scenes, "measured_at": now()}
    for task, values in results.items():
        table.append(dataclasses.asdict(run) | {"task": task} | values | about)
        scores = "AP {AP:.1f}, AP50 {AP50:.1f}, {seconds_per_step:.2f} s/step".format_map(values)
        print(f"{task}, {describe(run)}, {run.stage}, seed {run.seed}: {scores}", flush=True)


def searches_left(plan: Plan, rows: pd.DataFrame, options: argparse.Namespace) -> list[str]:
    """Return the tasks and pairs without a complete search, which the later stages wait for."""
    budget, scores = BUDGETS.index(options.budget), scores_of(rows)
    subjects = [(task, *pair) for task in options.tasks for pair in pairs_of(options)]
    left = [one for one in subjects if plan.chosen(scores, *one, plan.steps[one[0]][budget]) is None]
    return [f"{task}, {losses}, exponent {exponent:g}" for task, losses, exponent in left]


def main(arguments: Sequence[str] | None = None) -> int:
    """Do the runs that are left while time allows, and print the tables. Return the exit code."""
    parser, options = _parse(arguments)
    plan = SMOKE if options.smoke else FULL
    torch.set_num_threads(options.threads)
    try:
        table = ResumableCsv(options.out, COLUMNS, KEY)
    except ValueError as error:
        parser.error(str(error))
    started = time.monotonic()
    backbone, longest = None, 0.0
    while True:
        rows = table.read()  # again: another process may have appended
        left = runs_left(plan, rows, options)
        elapsed = (time.monotonic() - started) / 60
        if not left or elapsed + longest > options.max_minutes:
            break
        if backbone is None and left[0].task in DIGITS:
            path = options.backbone or options.out.with_name(f"{options.out.stem}-backbone.pt")
            backbone = start_weights(path, steps=SMOKE_STEPS if options.smoke else PRETRAINING_STEPS)
        print(f"{len(left)} runs left: {left[0]}", flush=True)
        train_and_append(left[0], backbone, table, options)
        longest = max(longest, (time.monotonic() - started) / 60 - elapsed)
    if left:
        print(f"{len(left)} runs are left. The same command continues from there.")
    elif searches := searches_left(plan, rows, options):
        print(f"Other stages wait for --stages grid of: {'; '.join(searches)}")
    print("\n".join(tables(rows, plan).values()))
    image = options.out.with_suffix(".png")
    plot(rows, image, plan)
    print(f"{len(rows)} rows in {options.out}, figure in {image}")
    return 0


def _parse(arguments: Sequence[str] | None) -> tuple[argparse.ArgumentParser, argparse.Namespace]:
    parser = command_parser("perf.accuracy", __doc__)
    add = parser.add_argument
    add("--stages", nargs="+", metavar="STAGE", choices=STAGES, default=list(STAGES), help="parts of the comparison")
    add("--tasks", nargs="+", metavar="TASK", choices=TASKS, default=list(TASKS), help="data sets")
    losses = list(dict.fromkeys(losses for losses, _ in COMPARED))
    add("--losses", nargs="+", metavar="PAIR", choices=PAIRS, default=losses, help="pairs of losses")
    exponents = sorted({exponent for _, exponent in COMPARED})
    add(
        "--exponents",
        nargs="+",
        metavar="RHO",
        type=float,
        choices=exponents,
        default=exponents,
        help="exponents of the tempered density",
    )
    add("--seeds", type=whole(1), default=5, help='seeds per pair of losses in the stage "main"')
    add("--ablation-seeds", type=whole(1), default=2, help="seeds per setting in the other stages")
    add("--budget", choices=BUDGETS, default="medium", help='number of steps of the stage "main"')
    add("--scenes", type=whole(1), default=300, help="held-out scenes of digits for the evaluation")
    add("--threads", type=whole(1), default=torch.get_num_threads(), help="CPU threads of PyTorch")
    add("--max-minutes", type=real(0), default=math.inf, help="start no run that would end later than this")
    add(
        "--smoke",
        action="store_true",
        help="a few runs of 4 steps in a temporary folder, to check that everything works",
    )
    add("--out", type=Path, default=Path("perf/results/accuracy-cpu.csv"), help="CSV to continue")
    add("--backbone", type=Path, help="file of the pre-trained weights; OUT-backbone.pt beside the CSV if not given")
    add("--trees", metavar="DIR", type=Path, help="data set of tree crowns; OUT-trees beside the CSV if not given")
    if parser.parse_known_args(arguments)[0].smoke:
        out = Path(tempfile.gettempdir()) / f"perf-accuracy-{os.getpid()}" / "accuracy.csv"
        parser.set_defaults(out=out, losses=SMOKE_LOSSES, exponents=SMOKE_EXPONENTS, **SMOKE_DEFAULTS)
    options = parser.parse_args(arguments)
    options.trees = options.trees or options.out.with_name(f"{options.out.stem}-trees")
    return parser, options


if __name__ == "__main__":
    sys.exit(main())
