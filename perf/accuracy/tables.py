"""The tables of the comparison."""

import pandas as pd

from ..markdown_table import as_markdown
from .paired import against_rivals
from .plan import BATCH_TASK, FULL, PAIRS, SETTING, Plan, Sweep
from .settings import PAPER, describe, spread

VARIED = ("scene_size", "digits", "missing", "wrong", "jitter")  # by the stage "sweep"
CLEAN = {name: PAPER[name] for name in VARIED}
RIVAL = "difference to the best rival"


def tables(rows: pd.DataFrame, plan: Plan = FULL) -> dict[str, str]:
    """Return the tables in Markdown by name: the comparison, the searches at its budget, and AP by images per step.

    A table without rows is left out.
    """
    reported = plan.reported(rows)
    made = {"accuracy": comparison(reported)}
    if not (searches := plan.rate_searches(rows)).empty:
        made["rates"] = by_rate(searches)
    if (reported["stage"] == "batch").any():
        made["batch"] = by_batch(reported)
    return made


def in_order(rows: pd.DataFrame) -> pd.DataFrame:
    """Sort the rows as in the table: by task, then by pair, with the paper's exponent first."""
    order = rows["losses"].map(PAIRS.index)
    rows = rows.assign(order=order, first=rows["stage"] == "main")
    keys = ["first", "task", "order", "exponent", "variant"]
    return rows.sort_values(keys, ascending=[False, False, True, False, False], kind="stable")


def comparison(rows: pd.DataFrame) -> str:
    """Return a line per setting of "main" and "sweep": mean and standard deviation over the seeds.

    The last column is the difference to the best rival of the task and budget, with its 95% interval.
    """
    rows = in_order(rows[rows["stage"].isin(["main", "sweep"])])
    differences = against_rivals(rows)
    lines = []
    for _, own in rows.groupby(SETTING, sort=False):
        one = own.iloc[0]
        line = {"task": one.task, "losses": describe(one), "steps": one.steps}
        line |= {
            "rate": f"{one.rate:g}",
            "chosen after": f"{one.searched:,} steps",
            "box weight": f"{one.box_weight:g}",
            "seeds": len(own),
        }
        line |= {name: spread(own[name].astype(float)) for name in ("AP", "AP50", "AP75")}
        lines.append(line | {RIVAL: differences.get((one.task, one.steps, line["losses"]), "")})
    names = ["task", "losses", "steps", "rate", "chosen after", "box weight", "seeds", "AP", "AP50", "AP75", RIVAL]
    return as_markdown(pd.DataFrame(lines, columns=names))


def by_rate(searches: pd.DataFrame) -> str:
    """Return the AP of the searches at a longer budget: a line per task, steps, and losses, a column per rate.

    The highest AP of a line is bold.
    """
    rows = in_order(searches)
    rows = rows.assign(losses=[describe(row) for row in rows.itertuples()], AP=rows["AP"].astype(float))
    titles = [f"rate {rate:g}" for rate in sorted(rows["rate"].unique())]
    lines = []
    for (task, steps, losses, weight), own in rows.groupby(["task", "steps", "losses", "box_weight"], sort=False):
        line = {"task": task, "steps": steps, "losses": losses, "box weight": f"{weight:g}"} | dict.fromkeys(titles, "")
        for rate, score in own.groupby("rate")["AP"].mean().items():
            line[f"rate {rate:g}"] = f"**{score:.1f}**" if score == own["AP"].max() else f"{score:.1f}"
        lines.append(line)
    return as_markdown(pd.DataFrame(lines))


def batch_rows(rows: pd.DataFrame) -> pd.DataFrame:
    """Return the longest runs of the stage "batch", and those of "ablation" that differ only in images per step."""
    batch = rows[rows["stage"] == "batch"]
    batch = batch[batch["steps"] == batch["steps"].max()]
    same = [name for name in SETTING if name not in ("stage", "batch", "exponent")]
    settings = set(batch[same].itertuples(index=False, name=None))
    alike = [setting in settings for setting in rows[same].itertuples(index=False, name=None)]
    return rows[rows["stage"].isin(["batch", "ablation"]) & pd.Series(alike, index=rows.index, dtype=bool)]


def sweep_rows(rows: pd.DataFrame, sweep: Sweep, plan: Plan) -> pd.DataFrame:
    """Return the rows of a sweep, with `place`, its place on the axis, and `name`, the losses as on clean data."""
    pairs = [pair in sweep.pairs for pair in zip(rows["losses"], rows["exponent"].astype(float))]
    rows = rows[pd.Series(pairs, index=rows.index, dtype=bool) & (rows["task"] == BATCH_TASK)]
    rows = rows[rows["stage"].isin(["main", "sweep"]) & (rows["steps"] == plan.steps[BATCH_TASK][1])]
    found = []
    for place, changes in sweep.settings.items():
        own = rows
        for name in VARIED:
            own = own[own[name] == changes.get(name, CLEAN[name])]
        names = [describe(row._replace(**CLEAN)) for row in own.itertuples()]
        found.append(own.assign(place=place, name=names))
    return pd.concat(found)


def by_batch(rows: pd.DataFrame) -> str:
    """Return a table of AP by exponent (rows) and images per step (columns)."""
    rows = batch_rows(rows)
    scores = rows.groupby(["exponent", "batch"])["AP"].agg(lambda values: spread(values.astype(float)))
    table = scores.unstack("batch").fillna("").sort_index(axis=1)
    table = table.rename(columns=lambda batch: f"{batch} images per step").rename_axis(columns=None)
    return as_markdown(table.reset_index().assign(exponent=lambda table: table["exponent"].map("{:g}".format)))
