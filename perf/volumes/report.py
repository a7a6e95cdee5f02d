"""The table of the comparison."""

import pandas as pd

from ..accuracy.settings import spread
from ..markdown_table import as_markdown
from ..paired import difference
from .losses import SAMPLER, WAYS

RIVALS = {
    SAMPLER: "minus the sampler",
    "focal": "minus focal",
    "BCE": "minus BCE",
}  # minus BCE: what the density brings


def best_cell(rows: pd.DataFrame, loss: str) -> dict[str, float]:
    """Return the rate and the box weight of the highest AP in the grid of this loss."""
    own = rows[(rows["stage"] == "grid") & (rows["loss"] == loss)]
    best = own.loc[own["AP"].idxmax()]
    return {"rate": float(best["rate"]), "box_weight": float(best["box_weight"])}


def reported(rows: pd.DataFrame) -> pd.DataFrame:
    """Return the rows of the stage "main" with the best cell of the grid. A larger grid may have another one."""
    main = rows[rows["stage"] == "main"]
    cells = {name: best_cell(rows, name) for name in main["loss"].unique()}
    best = [(row.rate, row.box_weight) == tuple(cells[row.loss].values()) for row in main.itertuples()]
    return main[pd.Series(best, index=main.index, dtype=bool)]


def table(rows: pd.DataFrame) -> str:
    """Return a line per loss: mean and standard deviation over the seeds, and the paired differences in AP."""
    rows = reported(rows)
    by_seed = rows.pivot(index="seed", columns="loss", values="AP")
    lines = []
    for name in (name for name in WAYS if name in by_seed):
        own = rows[rows["loss"] == name]
        cell = own.iloc[0]
        line = {"loss": name, "divided by": WAYS[name].divisor, "rate": f"{cell['rate']:g}"}
        line |= {"box weight": f"{cell['box_weight']:g}", "seeds": len(own)}
        line |= {metric: spread(own[metric]) for metric in ("AP", "AP10", "AP50")}
        lines.append(line | {title: _minus(by_seed, name, rival) for rival, title in RIVALS.items()})
    return as_markdown(pd.DataFrame(lines))


def _minus(by_seed: pd.DataFrame, name: str, rival: str) -> str:
    if name == rival or rival not in by_seed:
        return ""
    mean, half, count = difference(by_seed[name], by_seed[rival])
    return f"{mean:+.1f} ± {half:.1f}" if count > 1 else ""
