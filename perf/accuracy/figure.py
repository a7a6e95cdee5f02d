"""The figure of the comparison: AP by pair, and over the steps and the exponent."""

import functools
import math
from pathlib import Path

import pandas as pd

from ..legend import PAIR_COLORS
from .plan import BATCH_PAIR, BATCH_TASK, FULL, SETTING, Plan
from .settings import describe
from .tables import batch_rows, in_order, sweep_rows

OTHER_COLOR = "#000000"
COLUMNS = 2  # panels side by side
SCORE = "COCO AP on held-out scenes"


def plot(rows: pd.DataFrame, path: Path, plan: Plan = FULL) -> None:
    """Draw the reported rows of the comparison to `path`. Draw nothing if there are none.

    Each task and budget has a panel with the final AP of each pair, and one with the AP over the steps if all pairs
    have it. More panels show the AP over imbalance and box faults, and over the exponent, with a line per task or per
    number of images per step.
    """
    rows = in_order(plan.reported(rows))
    main = rows[rows["stage"] == "main"]
    panels = []
    for (task, steps), own in main.groupby(["task", "steps"], sort=False):
        panels.append((_draw_ends, f"{task}: AP after {steps:,} steps", own))
        curves = own[[_ends_in_its_score(row) for row in own.itertuples()]]
        if curves.groupby(SETTING).ngroups == own.groupby(SETTING).ngroups:  # a part of the pairs would mislead
            panels.append((_draw_curves, f"{task}: AP over {steps:,} steps", curves))
    for sweep in plan.sweeps:
        own = sweep_rows(rows, sweep, plan)
        if own["place"].nunique() > 1:
            panels.append((functools.partial(_draw_sweep, name=sweep.name), f"{BATCH_TASK}: AP over {sweep.name}", own))
    own = rows[(rows["stage"] == "ablation") & (rows["losses"] == BATCH_PAIR[0])]
    if own["exponent"].nunique() > 1:
        draw = functools.partial(_draw_exponents, by="task", name="{}")
        panels.append((draw, f"{BATCH_PAIR[0]}: AP over the exponent, half the steps", own))
    if (rows["stage"] == "batch").any():
        own = batch_rows(rows)
        draw = functools.partial(_draw_exponents, by="batch", name="{} images per step")
        panels.append((draw, f"{own['task'].iloc[0]}: AP over the exponent", own))
    if not panels:
        return
    _draw(panels, path)


def _draw(panels: list, path: Path) -> None:
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    lines = math.ceil(len(panels) / COLUMNS)
    size = (6.5 * min(COLUMNS, len(panels)), 4.5 * lines)
    figure, axes = pyplot.subplots(lines, min(COLUMNS, len(panels)), figsize=size, squeeze=False, layout="constrained")
    for place in axes.flat[len(panels) :]:
        place.set_axis_off()
    for (draw, title, rows), place in zip(panels, axes.flat):
        draw(place, rows)
        place.set_title(title)
        place.grid(True, alpha=0.3, axis="x" if draw is _draw_ends else "both")
        place.set_axisbelow(True)
    figure.savefig(path, dpi=120)
    pyplot.close(figure)


def _ends_in_its_score(row) -> bool:
    """Whether the curve was measured on the scenes of the table. Curves of early rows were measured on others."""
    return bool(row.curve) and abs(float(row.curve.split(":")[-1]) - float(row.AP)) < 0.006  # two decimals are kept


def _draw_ends(axes, rows: pd.DataFrame) -> None:
    """Draw a bar per pair with the mean over the seeds, and a dot per seed."""
    settings = list(rows.groupby(SETTING, sort=False))
    for height, (_, own) in enumerate(settings):
        scores = own["AP"].astype(float)
        name = describe(own.iloc[0])
        axes.barh(height, scores.mean(), color=PAIR_COLORS.get(name, OTHER_COLOR))
        axes.plot(scores, [height] * len(scores), "o", color="white", markeredgecolor="black", markersize=4)
        axes.annotate(
            f" {scores.mean():.1f}", (scores.max(), height), va="center", xytext=(4, 0), textcoords="offset points"
        )
    axes.set_yticks(range(len(settings)), [f"{describe(own.iloc[0])}\n{_seeds(own)}" for _, own in settings])
    axes.invert_yaxis()
    axes.margins(x=0.18)
    axes.set(xlabel=SCORE)


def _draw_curves(axes, rows: pd.DataFrame) -> None:
    """Draw the mean over the seeds, and the range from the lowest to the highest seed."""
    for _, own in rows.groupby(SETTING, sort=False):
        points = pd.DataFrame([dict(pair.split(":") for pair in curve.split()) for curve in own["curve"]])
        points = points.astype(float).rename(columns=int).sort_index(axis=1)
        name = describe(own.iloc[0])
        color = PAIR_COLORS.get(name, OTHER_COLOR)
        axes.plot(points.columns, points.mean(), marker="o", color=color, label=f"{name} ({_seeds(own)})")
        axes.fill_between(points.columns, points.min(), points.max(), color=color, alpha=0.15)
    axes.set(xlabel="steps", ylabel=SCORE, ylim=(0, None))
    axes.legend(loc="upper center", bbox_to_anchor=(0.5, -0.14), ncols=2, fontsize="small")


def _draw_sweep(axes, rows: pd.DataFrame, *, name: str) -> None:
    """Draw a line per pair: the mean over the seeds, and the range from the lowest to the highest seed."""
    for losses, own in rows.groupby("name", sort=False):
        scores = own["AP"].astype(float).groupby(own["place"])
        color = PAIR_COLORS.get(losses, OTHER_COLOR)
        axes.plot(scores.mean().index, scores.mean(), marker="o", color=color, label=losses)
        axes.fill_between(scores.mean().index, scores.min(), scores.max(), color=color, alpha=0.15)
    axes.set(xlabel=name, ylabel=SCORE, ylim=(0, None))
    if rows["place"].min() > 0:
        axes.set_xscale("log")
    axes.legend(loc="upper center", bbox_to_anchor=(0.5, -0.14), ncols=2, fontsize="small")


def _draw_exponents(axes, rows: pd.DataFrame, *, by: str, name: str) -> None:
    """Draw a line per value of the column `by`, darker for later values, with a star at the best exponent."""
    values, best = sorted(rows[by].unique()), 0.0
    for index, value in enumerate(values):
        means = rows[rows[by] == value].groupby("exponent")["AP"].agg(lambda scores: scores.astype(float).mean())
        shade = str(0.75 * (1 - index / max(1, len(values) - 1)))
        axes.plot(means.index, means, marker="o", color=shade, label=name.format(value))
        axes.plot(means.idxmax(), means.max(), marker="*", markersize=14, color=shade)
        best = max(best, means.max())
    axes.set(xlabel="exponent (1: the paper; star: the best)", ylabel=SCORE)
    axes.set_ylim(0, best * 1.1 or 1)
    axes.legend(loc="upper center", bbox_to_anchor=(0.5, -0.14), ncols=2, fontsize="small")


def _seeds(rows: pd.DataFrame) -> str:
    return f"{len(rows)} seed" + ("s" if len(rows) > 1 else "")
