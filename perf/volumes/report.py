"""The table of the comparison."""

import pandas as pd

from ..accuracy.paired import difference
from ..accuracy.settings import spread
from ..markdown_table import as_markdown
from .losses import SAMPLER, WAYS

RIVAL = f"AP minus {SAMPLER}"


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
    """Return a line per loss: mean and standard deviation over the seeds, and the paired difference to the sampler."""
    rows = reported(rows)
    by_seed = rows.pivot(index="seed", columns="loss", values="AP")
    lines = []
    for name in WAYS:
        own = rows[rows["loss"] == name]
        if own.empty:
            continue
        line = {"loss": name, "rate": f"{own['rate'].iloc[0]:g}", "box weight": f"{own['box_weight'].iloc[0]:g}"}
        line |= {"seeds": len(own)} | {metric: spread(own[metric]) for metric in ("AP", "AP10", "AP50")}
        mean, half, count = difference(by_seed[name], by_seed[SAMPLER]) if SAMPLER in by_seed else (0, 0, 0)
        line[RIVAL] = "" if name == SAMPLER or count < 2 else f"{mean:+.1f} ± {half:.1f}"
        lines.append(line)
    return as_markdown(
        pd.DataFrame(lines, columns=["loss", "rate", "box weight", "seeds", "AP", "AP10", "AP50", RIVAL])
    )
