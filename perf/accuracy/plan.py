"""The runs of the comparison: what is trained, and how the rate and the box weight are chosen."""

import dataclasses
import itertools
from collections.abc import Sequence

import pandas as pd

EXACT = "exact GHM-C + SL1"  # with the exact gradient density, and no moving average
PER_IMAGE = ("CE per image + SL1", "focal per image + SL1")  # normalized as in torchvision
PAIRS = (
    *("CE + SL1", "focal + SL1", *PER_IMAGE, "focal + GHM-R"),
    *("GHM-C + SL1", "GHM-C + ASL1", "GHM-C + GHM-R", EXACT),
)
TASKS = {"digits-1": 1, "digits-10": 10, "trees-1": 1, "trees-2": 1}  # classes
DIGITS = tuple(task for task in TASKS if task.startswith("digits"))
# AP of trees-N is that on the validation tiles of photograph N. Both tasks come from one training on the training tiles
# of both photographs, and the rate and the box weight of each are chosen on the tiles of the other.
OTHER_PHOTOGRAPH = {"trees-1": "trees-2", "trees-2": "trees-1"}
EXPONENT = 0.5  # recommended; 1 is the paper's
EXPONENTS = (0.0, 0.25, 0.5, 0.75, 1.0)
NO_EXPONENT = 1.0  # in the rows of losses without a density
BASELINES = tuple((losses, NO_EXPONENT) for losses in ("CE + SL1", "focal + SL1", *PER_IMAGE))
COMPARED = (  # (pair, exponent)
    *BASELINES,
    *(("GHM-C + SL1", exponent) for exponent in EXPONENTS),
    *(("GHM-C + GHM-R", exponent) for exponent in EXPONENTS),
)
OPTIONAL = (("focal + GHM-R", EXPONENT), ("GHM-C + ASL1", 1.0), (EXACT, 1.0))  # only if asked for by name
GRID_SEED = 0  # its runs are not reported
BUDGETS = ("short", "medium", "long")
BATCH_TASK = "digits-10"
BATCH_PAIR = ("GHM-C + GHM-R", EXPONENT)
STAGES = (
    "grid",  # rates and box weights, to choose from
    "main",  # the comparison, with the best cell of the grid
    "ablation",  # one setting changed at a time
    "batch",  # the exponent at several numbers of images per step, on BATCH_TASK
    "sweep",  # imbalance, and faults in the training boxes, on BATCH_TASK
)


@dataclasses.dataclass(frozen=True)
class Run:
    """One training. Equal runs have equal results. The fields are the first columns of the CSV.

    Attributes:
        scene_size, digits: Side of a scene in pixels, and the fewest and most digits in it.
        missing, wrong: Fraction of the training boxes that are removed, and that get another class.
        jitter: Standard deviation of the edges of the training boxes, as a fraction of the side.
    """

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
    scene_size: int = 96
    digits: str = "2-8"
    missing: float = 0.0
    wrong: float = 0.0
    jitter: float = 0.0


KEY = [field.name for field in dataclasses.fields(Run)]
SETTING = [name for name in KEY if name != "seed"]
CLASSIFIERS = ("CE + SL1", NO_EXPONENT), ("focal + SL1", NO_EXPONENT), *(("GHM-C + SL1", e) for e in (0.25, 0.5, 1.0))
BOXES = (
    ("focal + SL1", NO_EXPONENT),
    *(("GHM-C + SL1", e) for e in (0.0, 0.5)),
    *(("GHM-C + GHM-R", e) for e in (0.0, 0.5)),
)


@dataclasses.dataclass(frozen=True)
class Sweep:
    """One setting of the data, varied for several pairs.

    Attributes:
        name: What is varied, as an axis label.
        pairs: The pairs of losses.
        settings: By the place on the axis, the changed fields of a run.
    """

    name: str
    pairs: tuple[tuple[str, float], ...]
    settings: dict[float, dict]


SWEEPS = (
    Sweep("training boxes missing (%)", CLASSIFIERS, {100 * share: {"missing": share} for share in (0.0, 0.1, 0.3)}),
    Sweep(
        "training boxes with a wrong class (%)",
        CLASSIFIERS,
        {100 * share: {"wrong": share} for share in (0.0, 0.1, 0.3)},
    ),
    Sweep(
        "jitter of the training boxes (% of the side)",
        BOXES,
        {100 * share: {"jitter": share} for share in (0.0, 0.05, 0.1)},
    ),
    Sweep(
        "anchors per digit",
        CLASSIFIERS,
        {
            anchors_per_digit: {"scene_size": size, "digits": digits}
            for anchors_per_digit, size, digits in (
                (436, 96, "6-10"),
                (652, 96, "2-8"),
                (3024, 96, "1-1"),
                (12096, 192, "1-1"),
            )
        },
    ),
)


Scores = dict[Run, float]


def runs_of(rows: pd.DataFrame) -> list[Run]:
    """Return the run of each row."""
    kinds = {field.name: field.type for field in dataclasses.fields(Run)}
    return [Run(**{name: kinds[name](value) for name, value in zip(KEY, row)}) for row in rows[KEY].values.tolist()]


def scores_of(rows: pd.DataFrame) -> Scores:
    """Return the AP of the runs of the stage "grid", which the searches go by."""
    rows = rows[rows["stage"] == "grid"]
    return dict(zip(runs_of(rows), rows["AP"].astype(float)))


@dataclasses.dataclass(frozen=True)
class Plan:
    """The settings that runs are made from.

    Attributes:
        steps: By task, the steps of the budgets. The grid, ablations and batches take the shortest.
        rates, box_weights: The grid. For longer budgets, the rate is searched again.
        start_rates, start_tree_rates, start_box_weights: Where the search in the grid starts. ImageNet weights, as on
            trees, need smaller rates.
        ablations: By (pair, exponent), the changes to its settings, one run each.
        batches: Images per step of the stage "batch", each with all of `exponents`.
        sweeps: The stage "sweep", at the medium budget.
    """

    steps: dict[str, tuple[int, int, int]] = dataclasses.field(
        default_factory=lambda: {
            "digits-1": (250, 500, 2000),
            "digits-10": (500, 1000, 4000),
            "trees-1": (150, 300, 900),
            "trees-2": (150, 300, 900),
        }
    )
    rates: tuple[float, ...] = (1e-4, 2.4e-4, 6e-4, 1.5e-3, 4e-3, 1e-2, 2.4e-2)
    start_rates: tuple[float, ...] = (1.5e-3, 4e-3)
    start_tree_rates: tuple[float, ...] = (6e-4, 1.5e-3)
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
    sweeps: tuple[Sweep, ...] = SWEEPS

    def grid(self, scores: Scores, task: str, losses: str, exponent: float) -> list[Run]:
        """Return the runs that the rate and the box weight are chosen from, given the scores so far.

        These are the cells that the search starts from. Once all of them have scores, the neighbors of the best cell
        are added, until the best cell has all its neighbors.
        """
        start_rates = self.start_rates if task in DIGITS else self.start_tree_rates
        steps = self.steps[task][0]
        cells = {
            (row, column): Run("grid", task, losses, exponent, steps, rate, weight, GRID_SEED)
            for row, rate in enumerate(self.rates)
            for column, weight in enumerate(self.box_weights)
        }
        start = [run for run in cells.values() if run.rate in start_rates and run.box_weight in self.start_box_weights]
        if not scores.keys() >= set(start):
            return start
        row, column = max((cell for cell, run in cells.items() if run in scores), key=lambda cell: scores[cells[cell]])
        beside = [(row, column), (row - 1, column), (row + 1, column), (row, column - 1), (row, column + 1)]
        searched = set(start) | {cells[cell] for cell in beside if cell in cells}
        return [run for run in cells.values() if run in searched]

    def rate_search(self, scores: Scores, task: str, losses: str, exponent: float, steps: int) -> list[Run]:
        """Return the runs that the rate for `steps` is chosen from, with the box weight of the grid.

        The search starts from the rate of the grid and the next higher one, and goes on as in `grid`. It has no runs
        before the grid is complete.
        """
        cell = self._best(scores, self.grid(scores, task, losses, exponent))
        if cell is None:
            return []
        runs = [Run("grid", task, losses, exponent, steps, rate, cell[1], GRID_SEED) for rate in self.rates]
        first = self.rates.index(cell[0])
        start = runs[first : first + 2]
        if not scores.keys() >= set(start):
            return start
        best = max((place for place, run in enumerate(runs) if run in scores), key=lambda place: scores[runs[place]])
        return [run for place, run in enumerate(runs) if run in start or abs(place - best) <= 1]

    def chosen(self, scores: Scores, task: str, losses: str, exponent: float, steps: int) -> tuple[float, float] | None:
        """Return the (rate, box weight) with the highest AP after `steps`, or None if a search is incomplete.

        For digits, the searches are measured on other scenes than those that are reported; for trees, on the other
        photograph.
        """
        subject = OTHER_PHOTOGRAPH.get(task, task), losses, exponent
        if steps == self.steps[task][0]:
            return self._best(scores, self.grid(scores, *subject))
        return self._best(scores, self.rate_search(scores, *subject, steps))

    @staticmethod
    def _best(scores: Scores, runs: list[Run]) -> tuple[float, float] | None:
        """Return the (rate, box weight) of the best of `runs`, or None if there are none or one has no score."""
        if not runs or not scores.keys() >= set(runs):
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
        budget: str,
        seeds: int,
        ablation_seeds: int,
    ) -> list[Run]:
        """Return the runs to do, given the rows so far, and those in `rows`. Later stages wait for their searches."""
        runs, scores = [], scores_of(rows)
        if "grid" in stages:
            tuned_on = dict.fromkeys(other for task in tasks for other in (task, OTHER_PHOTOGRAPH.get(task, task)))
            for task, pair in itertools.product(tuned_on, compared):
                runs += self.grid(scores, task, *pair)
                if (steps := self.steps[task][BUDGETS.index(budget)]) != self.steps[task][0]:
                    runs += self.rate_search(scores, task, *pair, steps)
        for task, pair in itertools.product(tasks, compared):
            tuned = {
                name: Run("main", task, *pair, steps, *cell, seed=1)
                for name, steps in zip(BUDGETS, self.steps[task])
                if (cell := self.chosen(scores, task, *pair, steps))
            }
            if "main" in stages and budget in tuned:
                runs += [dataclasses.replace(tuned[budget], seed=seed) for seed in range(1, seeds + 1)]
            changed = [run for run in self._changed(tuned) if run.stage in stages]
            runs += [dataclasses.replace(run, seed=seed) for run in changed for seed in range(1, ablation_seeds + 1)]
        return sorted(dict.fromkeys(runs), key=lambda run: (STAGES.index(run.stage), run.seed))

    def _changed(self, tuned: dict[str, Run]) -> list[Run]:
        """Return the runs of the stages "ablation", "batch", and "sweep". tuned: runs of "main", by budget."""
        changed = []
        if short := tuned.get("short"):
            pair = short.losses, short.exponent
            ablations = self.ablations.get(pair, [])
            changed += [dataclasses.replace(short, stage="ablation", **change) for change in ablations]
            if short.task == BATCH_TASK and pair == BATCH_PAIR:
                for batch, exponent in itertools.product(self.batches, self.exponents):
                    changed.append(dataclasses.replace(short, stage="batch", batch=batch, exponent=exponent))
        if (medium := tuned.get("medium")) and medium.task == BATCH_TASK:
            pair = medium.losses, medium.exponent
            settings = [own for sweep in self.sweeps if pair in sweep.pairs for own in sweep.settings.values()]
            varied = [dataclasses.replace(medium, **setting) for setting in settings]
            changed += [dataclasses.replace(one, stage="sweep") for one in varied if one != medium]  # that is in "main"
        return changed

    def reported(self, rows: pd.DataFrame) -> pd.DataFrame:
        """Return the rows of all stages but "grid" whose rate and box weight are those that a complete search chooses.

        The rate is chosen at the steps of the row. Where this search is incomplete, it is the grid's, and where the
        grid is incomplete too, every row stays. The settings of an ablation are those that its pair has in "main". The
        column "searched" has the steps of the search.
        """
        shown = rows[(rows["stage"] != "grid") & rows["task"].isin(list(self.steps))]
        tuned = dict([*self.ablations, BATCH_PAIR])
        own = shown["stage"].isin(["main", "sweep"])
        exponent = shown["exponent"].where(own, shown["losses"].map(tuned)).fillna(shown["exponent"])
        subjects = list(zip(shown["task"], shown["losses"], exponent.astype(float), shown["steps"].astype(int)))
        scores = scores_of(rows)
        best = {subject: self._search_of(scores, *subject) for subject in set(subjects)}
        cells = zip(shown["rate"], shown["box_weight"])
        current = [best[subject][0] in (None, cell) for subject, cell in zip(subjects, cells)]
        shown = shown.assign(searched=[best[subject][1] for subject in subjects])
        return shown[pd.Series(current, index=shown.index, dtype=bool)]

    def _search_of(self, scores: Scores, task: str, losses: str, exponent: float, steps: int) -> tuple:
        """Return the (rate, box weight) for a row of `steps` and the steps of the search that chose it."""
        shortest = self.steps[task][0]
        if cell := self.chosen(scores, task, losses, exponent, steps):
            return cell, steps
        return self.chosen(scores, task, losses, exponent, shortest), shortest

    def rate_searches(self, rows: pd.DataFrame) -> pd.DataFrame:
        """Return the rows of `rate_search`."""
        rows = rows[(rows["stage"] == "grid") & rows["task"].isin(list(self.steps))]
        return rows[rows["steps"].astype(int) > rows["task"].map(lambda task: self.steps[task][0])]


FULL = Plan()
SMOKE = Plan(  # a few runs that use all of the code
    steps=dict.fromkeys(TASKS, (2, 4, 8)),
    rates=(1.5e-3,),
    box_weights=(4.0,),
    ablations={BATCH_PAIR: [{"exponent": 1.0}]},
    batches=(4,),
    exponents=(EXPONENT,),
    sweeps=(Sweep("missing", (BATCH_PAIR,), {30.0: {"missing": 0.3}}),),
)
