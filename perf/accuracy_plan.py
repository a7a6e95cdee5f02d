"""The runs of the comparison in perf.accuracy, and the table of their results."""

import dataclasses
import math
from pathlib import Path

import pandas as pd

PAIRS = {  # as in LossOptions
    "CE + SL1": {"loss": "ce", "box_loss": "smooth_l1"},
    "focal + SL1": {"loss": "focal", "box_loss": "smooth_l1"},
    "GHM-C + SL1": {"loss": "ghmc", "box_loss": "smooth_l1"},
    "GHM-C + ASL1": {"loss": "ghmc", "box_loss": "asl1"},
    "GHM-C + GHM-R": {"loss": "ghmc", "box_loss": "ghmr"},
}
TASKS = {"digits-1": 1, "digits-10": 10}  # classes
EXPONENT = 0.5  # what is recommended; 1 is the paper's
COMPARED = [  # (pair, exponent)
    ("CE + SL1", 1.0),
    ("focal + SL1", 1.0),
    ("GHM-C + SL1", 1.0),
    ("GHM-C + GHM-R", 1.0),
    ("GHM-C + SL1", EXPONENT),
    ("GHM-C + GHM-R", EXPONENT),
]
RATES = (6e-4, 1.5e-3, 4e-3, 1e-2)
BOX_WEIGHTS = (0.8, 4.0, 20.0, 100.0)
GRID_SEED = 0  # its runs are not reported
PART = 2  # they and the ablations take this part of the steps
ABLATIONS = {  # what is changed of the settings compared
    ("GHM-C + SL1", 1.0): [
        *({"bins": bins} for bins in (5, 10, 20, 30, 40)),
        *({"momentum": momentum} for momentum in (0.0, 0.5, 0.75, 0.9, 0.99)),
        {"variant": "mmdet"},
    ],
    ("GHM-C + GHM-R", EXPONENT): [{"exponent": exponent} for exponent in (0.0, 0.25, 0.5, 0.75, 1.0)],
}
STAGES = ("grid", "main", "ablation")


@dataclasses.dataclass(frozen=True)
class Run:
    """One training; two that are equal have the same result."""

    stage: str
    task: str
    losses: str
    exponent: float
    steps: int
    rate: float
    box_weight: float
    seed: int
    batch: int = 8
    bins: int = 30
    momentum: float = 0.75
    variant: str = "paper"
    mu: float = 0.02


KEY = [field.name for field in dataclasses.fields(Run)]
SETTING = [name for name in KEY if name != "seed"]


def runs_of(rows: pd.DataFrame) -> list[Run]:
    """The run of each row."""
    kinds = {field.name: field.type for field in dataclasses.fields(Run)}
    return [Run(**{name: kinds[name](value) for name, value in zip(KEY, row)}) for row in rows[KEY].values.tolist()]


def grid(rows: pd.DataFrame, task: str, losses: str, exponent: float, steps: int) -> list[Run]:
    """The runs that a learning rate and a box loss weight are chosen from, for runs of `steps`, as far as `rows` tell.

    The four in the middle; when these are there, the neighbours of the best as well, until it has none that is missing.
    """
    part = math.ceil(steps / PART)
    scores = dict(zip(runs_of(rows), rows["AP"].astype(float)))
    cells = {
        (row, column): Run("grid", task, losses, exponent, part, rate, weight, GRID_SEED)
        for row, rate in enumerate(RATES)
        for column, weight in enumerate(BOX_WEIGHTS)
    }
    middle = [run for cell, run in cells.items() if not {0, len(RATES) - 1} & set(cell)]
    if not scores.keys() >= set(middle):
        return middle
    row, column = max((cell for cell, run in cells.items() if run in scores), key=lambda cell: scores[cells[cell]])
    beside = [(row - 1, column), (row + 1, column), (row, column - 1), (row, column + 1)]
    wanted = set(middle) | {cells[row, column]} | {cells[cell] for cell in beside if cell in cells}
    return [run for run in cells.values() if run in wanted]


def chosen(rows: pd.DataFrame, task: str, losses: str, exponent: float, steps: int) -> tuple[float, float] | None:
    """(rate, box weight) of the greatest AP in the grid for runs of `steps`; None where the grid is not complete."""
    scores = dict(zip(runs_of(rows), rows["AP"].astype(float)))
    runs = grid(rows, task, losses, exponent, steps)
    if not scores.keys() >= set(runs):
        return None
    best = max(runs, key=scores.get)
    return best.rate, best.box_weight


def ablation(run: Run) -> list[Run]:
    """`run` of the stage "main" with each of the changes to its losses, over the steps that its grid has."""
    short = dataclasses.replace(run, stage="ablation", steps=math.ceil(run.steps / PART))
    return [dataclasses.replace(short, **change) for change in ABLATIONS.get((run.losses, run.exponent), [])]


def plan(
    rows: pd.DataFrame,
    *,
    stages: list[str],
    compared: list[tuple[str, float]],
    tasks: list[str],
    steps: int,
    seeds: int,
    ablation_seeds: int,
) -> list[Run]:
    """The runs to do, given the rows so far: the others wait for their grid. A run may be in `rows` already."""
    runs = []
    if "grid" in stages:
        runs += [run for task in tasks for pair in compared for run in grid(rows, task, *pair, steps)]
    for task in tasks:
        tuned = {pair: chosen(rows, task, *pair, steps) for pair in compared}
        usual = [Run("main", task, *pair, steps, *cell, seed=1) for pair, cell in tuned.items() if cell]
        if "main" in stages:
            runs += [dataclasses.replace(run, seed=seed) for seed in range(1, seeds + 1) for run in usual]
        if "ablation" in stages:
            settings = [setting for run in usual for setting in ablation(run)]
            runs += [dataclasses.replace(run, seed=seed) for run in settings for seed in range(1, ablation_seeds + 1)]
    return list(dict.fromkeys(runs))


def describe(run: Run | pd.Series) -> str:
    """The losses, and what differs from the paper's settings."""
    names = {
        "exponent": "exponent {:g}",
        "bins": "M {:g}",
        "momentum": "momentum {:g}",
        "mu": "mu {:g}",
        "variant": "{}",
    }
    usual = {field.name: field.default for field in dataclasses.fields(Run)} | {"exponent": 1.0}
    changed = {name: getattr(run, name) for name in names if getattr(run, name) != usual[name]}
    return ", ".join([run.losses] + [names[name].format(value) for name, value in changed.items()])


def reported(rows: pd.DataFrame) -> pd.DataFrame:
    """The rows that are not of the grid, without those whose rate or weight is not what a complete grid chooses.

    Their column "order" is the place of their losses in PAIRS.
    """
    full = rows.steps.where(rows.stage == "main", rows.steps * PART)  # steps of the run that the grid is for
    rows = rows.assign(order=rows.losses.map(list(PAIRS).index), full=full)
    what = ["task", "losses", "exponent", "full"]
    best = {own: chosen(rows, *own) for own in set(rows[what].itertuples(index=False, name=None))}
    rows = rows[rows.stage != "grid"]
    settings = zip(rows.task, rows.losses, rows.exponent, rows.full, rows.rate, rows.box_weight)
    current = [best[run[:4]] in (None, run[4:]) for run in settings]
    return rows[pd.Series(current, index=rows.index, dtype=bool)]


def markdown(rows: pd.DataFrame) -> str:
    """The table of what is reported: mean and standard deviation over the seeds."""
    rows = reported(rows)
    lines = [
        "| task | losses | steps | rate | box weight | seeds | AP | AP50 | AP75 | s/step |",
        "| --- | --- | --- | --- | --- | --- | --- | --- | --- | --- |",
    ]
    rows = rows.assign(first=rows.stage.eq("main"))
    rows = rows.sort_values(
        ["first", "task", "order", "exponent", "variant"], ascending=[False, False, True, False, False]
    )
    for _, own in rows.groupby(SETTING, sort=False):
        one = own.iloc[0]
        scores = [_spread(own[name].astype(float)) for name in ("AP", "AP50", "AP75")]
        seconds = pd.to_numeric(own["seconds_per_step"]).median()  # empty where a run diverged
        cells = [one.task, describe(one), one.steps, f"{one.rate:g}", f"{one.box_weight:g}", len(own)]
        lines.append("| " + " | ".join(map(str, cells + scores + [f"{seconds:.2f}"])) + " |")
    return "\n".join(lines) + "\n"


def _spread(values: pd.Series) -> str:
    return f"{values.mean():.1f}" + (f" ± {values.std():.1f}" if len(values) > 1 else "")


def plot(rows: pd.DataFrame, path: Path) -> None:
    """AP over the steps, the mean over the seeds, of the stage "main"; a panel per task."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    rows = reported(rows)
    rows = rows[rows.stage == "main"].sort_values("order", kind="stable")
    tasks = sorted(rows.task.unique(), reverse=True)
    if not tasks:
        return
    figure, panels = pyplot.subplots(1, len(tasks), figsize=(6 * len(tasks), 4.5), squeeze=False, layout="constrained")
    for task, axes in zip(tasks, panels[0]):
        for _, own in rows[rows.task == task].groupby(SETTING, sort=False):
            points = [dict(pair.split(":") for pair in curve.split()) for curve in own.curve]
            mean = pd.DataFrame(points).astype(float).rename(columns=int).mean().sort_index()
            axes.plot(mean.index, mean.values, marker="o", label=f"{describe(own.iloc[0])} ({len(own)} seeds)")
        axes.set(xlabel="steps", ylabel="AP", title=task)
        axes.grid(True, alpha=0.3)
        axes.legend()
    figure.savefig(path, dpi=120)
    pyplot.close(figure)
