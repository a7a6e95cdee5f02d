"""The table of the comparison."""

import pandas as pd

from ..accuracy.paired import difference
from ..accuracy.settings import spread
from ..markdown_table import as_markdown
from .losses import SAMPLER, WAYS

RIVAL = f"AP minus {SAMPLER}"


def table(rows: pd.DataFrame) -> str:
    """Return a line per loss: mean and standard deviation over the seeds, and the paired difference to the sampler."""
    rows = rows[rows["stage"] == "main"]
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
