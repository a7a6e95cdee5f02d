"""Differences to the best rival of a task, paired by seed."""

import pandas as pd

from ..paired import difference
from .plan import OTHER_PHOTOGRAPH
from .settings import describe

RIVALS = ("CE + SL1", "focal + SL1")  # normalized over the batch
TREES = "trees"  # the mean over the two photographs


def scores(rows: pd.DataFrame) -> pd.DataFrame:
    """Return the AP of the stage "main" per task, losses, steps, search, and seed, with a mean over the photographs."""
    rows = rows[rows["stage"] == "main"]
    rows = rows.assign(losses=[describe(row) for row in rows.itertuples()], AP=rows["AP"].astype(float))
    rows = rows[["task", "losses", "steps", "searched", "seed", "AP"]]
    pairs = rows[rows["task"].isin(list(OTHER_PHOTOGRAPH))].groupby(["losses", "steps", "searched", "seed"])["AP"]
    trees = pairs.mean()[pairs.count() == len(OTHER_PHOTOGRAPH)].reset_index().assign(task=TREES)
    return pd.concat([rows, trees], ignore_index=True)


def best_rival(own: pd.DataFrame) -> str | None:
    """Return the name of the rival with the highest mean AP in the rows of one task and budget."""
    means = own[own["losses"].isin(RIVALS)].groupby("losses")["AP"].mean()
    return None if means.empty else means.idxmax()


def against_rivals(rows: pd.DataFrame) -> dict[tuple[str, int, str], str]:
    """Return the difference to the best rival in words, by (task, steps, losses); "" for fewer than two seeds.

    Only losses whose rate was chosen after as many steps are compared: a search at the budget itself helps each loss.
    """
    texts = {}
    for (task, steps, _), own in scores(rows).groupby(["task", "steps", "searched"], sort=False):
        rival = best_rival(own)
        by_seed = own.pivot(index="seed", columns="losses", values="AP")
        for losses in by_seed if rival else ():
            mean, half, count = difference(by_seed[losses], by_seed[rival])
            text = f"{mean:+.1f} ± {half:.1f}" if count > 1 else ""
            texts[task, steps, losses] = "best rival" if losses == rival else text
    return texts


def front(rows: pd.DataFrame, losses: dict[str, str], tasks: dict[tuple[str, int], str]) -> pd.DataFrame:
    """Return AP by losses (rows) and task (columns), with the difference to the best rival of the task in parentheses.

    Args:
        rows: The rows of the comparison that are reported.
        losses: The names in the table, by the names of the pairs. Pairs without results are left out.
        tasks: The titles of the columns, by (task, steps). Tasks without results are left out too.
    """
    by_setting = scores(rows).groupby(["task", "steps", "losses"])["AP"]
    means, seeds = by_setting.mean(), by_setting.count()
    differences = against_rivals(rows)
    table = pd.DataFrame({"losses": losses.values()}, index=list(losses))
    measured = [task for task in tasks if task in set(means.index.droplevel("losses"))]
    for task in measured:
        title = tasks[task]
        for pair in losses:
            place = (*task, pair)
            cell, gap = "", differences.get(place)
            if place in means.index:
                cell, gap = f"{means[place]:.1f}", "1 seed" if seeds[place] == 1 else gap
            table.loc[pair, title] = f"{cell} ({gap})" if gap else cell
    return table[(table.drop(columns="losses") != "").any(axis=1)]
