"""The tables of the comparison."""

import dataclasses

import pandas as pd

from ..markdown_table import as_markdown
from .plan import FULL, PAIRS, SETTING, Plan, Run

CHANGES = {  # how a setting that differs from the paper's is told
    "exponent": "exponent {:g}",
    "bins": "M {:g}",
    "momentum": "momentum {:g}",
    "mu": "mu {:g}",
    "variant": "{}",
    "batch": "{:g} images per step",
    "scene_size": "scenes of {:g} pixels",
    "digits": "{} digits",
    "missing": "{:.0%} of the boxes missing",
    "wrong": "{:.0%} of the classes wrong",
    "jitter": "jitter {:.0%}",
}
PAPER = {field.name: field.default for field in dataclasses.fields(Run)} | {"exponent": 1.0}


def describe(run: Run | pd.Series) -> str:
    """The losses, and what differs from the paper's settings."""
    changed = [text.format(getattr(run, name)) for name, text in CHANGES.items() if getattr(run, name) != PAPER[name]]
    return ", ".join([run.losses, *changed])


def spread(values: pd.Series) -> str:
    """Mean and, of several values, standard deviation."""
    return f"{values.mean():.1f}" + (f" ± {values.std():.1f}" if len(values) > 1 else "")


def tables(rows: pd.DataFrame, plan: Plan = FULL) -> list[str]:
    """The tables in Markdown: the comparison, and AP by exponent and images per step if there are such rows."""
    rows = plan.reported(rows)
    return [comparison(rows)] + ([by_batch(rows)] if (rows["stage"] == "batch").any() else [])


def in_order(rows: pd.DataFrame) -> pd.DataFrame:
    """The rows in the order of the table: tasks, then pairs, and the paper's exponent before others."""
    order = rows["losses"].map(PAIRS.index)
    rows = rows.assign(order=order, first=rows["stage"] == "main")
    keys = ["first", "task", "order", "exponent", "variant"]
    return rows.sort_values(keys, ascending=[False, False, True, False, False], kind="stable")


def comparison(rows: pd.DataFrame) -> str:
    """One line per setting of "main" and "ablation": mean and standard deviation over the seeds."""
    lines = []
    for _, own in in_order(rows[rows["stage"] != "batch"]).groupby(SETTING, sort=False):
        one = own.iloc[0]
        line = {"task": one.task, "losses": describe(one), "steps": one.steps}
        line |= {"rate": f"{one.rate:g}", "box weight": f"{one.box_weight:g}", "seeds": len(own)}
        line |= {name: spread(own[name].astype(float)) for name in ("AP", "AP50", "AP75")}
        seconds = pd.to_numeric(own["seconds_per_step"]).median()  # empty if a run diverged
        lines.append(line | {"s/step": f"{seconds:.2f}"})
    names = ["task", "losses", "steps", "rate", "box weight", "seeds", "AP", "AP50", "AP75", "s/step"]
    return as_markdown(pd.DataFrame(lines, columns=names))


def batch_rows(rows: pd.DataFrame) -> pd.DataFrame:
    """The longest runs of the stage "batch", and those of "ablation" that differ only in the images per step."""
    batch = rows[rows["stage"] == "batch"]
    batch = batch[batch["steps"] == batch["steps"].max()]
    same = [name for name in SETTING if name not in ("stage", "batch", "exponent")]
    settings = set(batch[same].itertuples(index=False, name=None))
    alike = [setting in settings for setting in rows[same].itertuples(index=False, name=None)]
    return rows[rows["stage"].isin(["batch", "ablation"]) & pd.Series(alike, index=rows.index, dtype=bool)]


def by_batch(rows: pd.DataFrame) -> str:
    """AP by exponent (lines) and images per step (columns)."""
    rows = batch_rows(rows)
    scores = rows.groupby(["exponent", "batch"])["AP"].agg(lambda values: spread(values.astype(float)))
    table = scores.unstack("batch").fillna("").sort_index(axis=1)
    table = table.rename(columns=lambda batch: f"{batch} images per step").rename_axis(columns=None)
    return as_markdown(table.reset_index().assign(exponent=lambda table: table["exponent"].map("{:g}".format)))
