"""The runs of the comparison: what is trained, and how the rate and the box weight are chosen."""

import dataclasses
import math
from collections.abc import Sequence

import pandas as pd

EXACT = "exact GHM-C + SL1"  # with the exact gradient density, and no moving average
PAIRS = ("CE + SL1", "focal + SL1", "GHM-C + SL1", "GHM-C + ASL1", "GHM-C + GHM-R", EXACT)
TASKS = {"digits-1": 1, "digits-10": 10, "trees": 1}  # classes
DIGITS = tuple(task for task in TASKS if task.startswith("digits"))
EXPONENT = 0.5  # recommended; 1 is the paper's
COMPARED = (  # (pair, exponent)
    ("CE + SL1", 1.0),
    ("focal + SL1", 1.0),
    ("GHM-C + SL1", 1.0),
    ("GHM-C + GHM-R", 1.0),
    ("GHM-C + SL1", EXPONENT),
    ("GHM-C + GHM-R", EXPONENT),
)
OPTIONAL = (("GHM-C + ASL1", 1.0), (EXACT, 1.0))  # only if asked for by name
GRID_SEED = 0  # its runs are not reported
PART = 2  # runs of all stages but "main" take 1 / PART of the steps
EXPONENTS = (0.0, 0.25, 0.5, 0.75, 1.0)
BATCH_TASK = "digits-10"
BATCH_PAIR = ("GHM-C + GHM-R", EXPONENT)
STAGES = (
    "grid",  # rates and box weights, to choose from
    "main",  # the comparison, with the best cell of the grid
    "ablation",  # one setting changed at a time
    "batch",  # the exponent at several numbers of images per step, on BATCH_TASK
)


@dataclasses.dataclass(frozen=True)
class Run:
    """One training. Equal runs have equal results. The fields are the first columns of the CSV."""

    stage: str
    task: str
    losses: str
    exponent: float
    steps: int
    rate: float
    box_weight: float
    seed: int
    batch: int = 8  # images per step
    bins: int = 30
    momentum: float = 0.75
    variant: str = "paper"
    mu: float = 0.02


KEY = [field.name for field in dataclasses.fields(Run)]


def runs_of(rows: pd.DataFrame) -> list[Run]:
    """The run of each row."""
    kinds = {field.name: field.type for field in dataclasses.fields(Run)}
    return [Run(**{name: kinds[name](value) for name, value in zip(KEY, row)}) for row in rows[KEY].values.tolist()]


@dataclasses.dataclass(frozen=True)
class Plan:
    """What there is to choose from.

    Attributes:
        rates, box_weights: The grid.
        start_rates, start_tree_rates, start_box_weights: Where the search in it starts. ImageNet weights, as on trees,
            need smaller rates.
        ablations: By (pair, exponent), the changes to its settings, one run each.
        batches: Images per step of the stage "batch", each with all of `exponents`.
    """

    rates: tuple[float, ...] = (1e-4, 2.4e-4, 6e-4, 1.5e-3, 4e-3, 1e-2, 2.4e-2)
    start_rates: tuple[float, ...] = (1.5e-3, 4e-3)
    start_tree_rates: tuple[float, ...] = (2.4e-4, 6e-4, 1.5e-3)
    box_weights: tuple[float, ...] = (0.032, 0.16, 0.8, 4.0, 20.0, 100.0, 500.0)
    start_box_weights: tuple[float, ...] = (4.0, 20.0)
    ablations: dict = dataclasses.field(
        default_factory=lambda: {
            ("GHM-C + SL1", 1.0): [
                *({"bins": bins} for bins in (5, 10, 20, 30, 40)),
                *({"momentum": momentum} for momentum in (0.0, 0.5, 0.75, 0.9, 0.99)),
                {"variant": "mmdet"},
            ],
            ("GHM-C + GHM-R", EXPONENT): [{"exponent": exponent} for exponent in EXPONENTS],
        }
    )
    batches: tuple[int, ...] = (4, 16, 64)
    exponents: tuple[float, ...] = EXPONENTS

    def grid(self, rows: pd.DataFrame, task: str, losses: str, exponent: float, steps: int) -> list[Run]:
        """The runs that the rate and the box weight for runs of `steps` are chosen from, given the results in `rows`.

        First the cells that the search starts from. When all of these are in `rows`, also the neighbors of the best
        cell, until the best cell has all its neighbors.
        """
        scores = _scores(rows)
        part = math.ceil(steps / PART)
        start_rates = self.start_rates if task in DIGITS else self.start_tree_rates
        cells = {
            (row, column): Run("grid", task, losses, exponent, part, rate, weight, GRID_SEED)
            for row, rate in enumerate(self.rates)
            for column, weight in enumerate(self.box_weights)
        }
        start = [run for run in cells.values() if run.rate in start_rates and run.box_weight in self.start_box_weights]
        if not scores.keys() >= set(start):
            return start
        row, column = max((cell for cell, run in cells.items() if run in scores), key=lambda cell: scores[cells[cell]])
        beside = [(row, column), (row - 1, column), (row + 1, column), (row, column - 1), (row, column + 1)]
        wanted = set(start) | {cells[cell] for cell in beside if cell in cells}
        return [run for run in cells.values() if run in wanted]

    def chosen(
        self, rows: pd.DataFrame, task: str, losses: str, exponent: float, steps: int
    ) -> tuple[float, float] | None:
        """(rate, box weight) with the greatest AP in the grid for runs of `steps`; None if the grid is incomplete."""
        scores = _scores(rows)
        runs = self.grid(rows, task, losses, exponent, steps)
        if not scores.keys() >= set(runs):
            return None
        best = max(runs, key=scores.get)
        return best.rate, best.box_weight

    def runs(
        self,
        rows: pd.DataFrame,
        *,
        stages: Sequence[str],
        compared: Sequence[tuple[str, float]],
        tasks: Sequence[str],
        steps: int,
        seeds: int,
        ablation_seeds: int,
    ) -> list[Run]:
        """The runs to do, given the rows so far. Later stages wait for their grid. Runs may be in `rows` already."""
        runs = []
        if "grid" in stages:
            runs += [run for task in tasks for pair in compared for run in self.grid(rows, task, *pair, steps)]
        for task in tasks:
            tuned = {pair: self.chosen(rows, task, *pair, steps) for pair in compared}
            usual = [Run("main", task, *pair, steps, *cell, seed=1) for pair, cell in tuned.items() if cell]
            if "main" in stages:
                runs += [dataclasses.replace(run, seed=seed) for seed in range(1, seeds + 1) for run in usual]
            changed = [run for one in usual for run in self._changed(one) if run.stage in stages]
            runs += [dataclasses.replace(run, seed=seed) for run in changed for seed in range(1, ablation_seeds + 1)]
        return list(dict.fromkeys(runs))

    def _changed(self, run: Run) -> list[Run]:
        """`run` of the stage "main" with the changes of the stages "ablation" and "batch"."""
        pair = run.losses, run.exponent
        short = dataclasses.replace(run, steps=math.ceil(run.steps / PART))
        changed = [dataclasses.replace(short, stage="ablation", **change) for change in self.ablations.get(pair, [])]
        if run.task == BATCH_TASK and pair == BATCH_PAIR:
            settings = [{"batch": batch, "exponent": exponent} for batch in self.batches for exponent in self.exponents]
            changed += [dataclasses.replace(short, stage="batch", **setting) for setting in settings]
        return changed

    def reported(self, rows: pd.DataFrame) -> pd.DataFrame:
        """The rows of all stages but "grid" whose rate and box weight are what a complete grid chooses.

        A row stays if its grid is incomplete. The settings of an ablation are those that its pair has in "main".
        """
        shown = rows[rows["stage"] != "grid"]
        tuned = dict([*self.ablations, BATCH_PAIR])
        main = shown["stage"] == "main"
        exponent = shown["exponent"].where(main, shown["losses"].map(tuned)).fillna(shown["exponent"])
        full = shown["steps"].where(main, shown["steps"] * PART)  # steps of the run that the grid is for
        subjects = list(zip(shown["task"], shown["losses"], exponent.astype(float), full))
        best = {subject: self.chosen(rows, *subject) for subject in set(subjects)}
        cells = zip(shown["rate"], shown["box_weight"])
        current = [best[subject] in (None, cell) for subject, cell in zip(subjects, cells)]
        return shown[pd.Series(current, index=shown.index, dtype=bool)]


FULL = Plan()
SMOKE = Plan(  # a few runs that use all of the code
    rates=(1.5e-3, 4e-3),
    box_weights=(4.0,),
    ablations={BATCH_PAIR: [{"exponent": 1.0}]},
    batches=(4,),
    exponents=(EXPONENT,),
)


def _scores(rows: pd.DataFrame) -> dict[Run, float]:
    return dict(zip(runs_of(rows), rows["AP"].astype(float)))
