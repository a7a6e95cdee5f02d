"""The tables of the comparison in Ultralytics' trainer. Nothing here needs Ultralytics."""

import pandas as pd

from .settings import spread

KEY = ["model", "loss", "exponent", "preserve", "images", "imgsz", "epochs", "batch", "seed"]
KEPT = {"value": "value", "gradient": "L1 norm of the gradient"}


def label(row) -> str:
    """Return the name of the loss of a row, in tables and legends."""
    if row.loss == "BCE":
        return row.loss
    return f"{row.loss}, exponent {row.exponent:g}, same {KEPT[row.preserve]}"


def comparison(rows: pd.DataFrame) -> pd.DataFrame:
    """Return AP per loss and length of training: mean and standard deviation over the seeds."""
    lines = []
    for _, own in rows.groupby([name for name in KEY if name != "seed"], sort=False):
        first = next(own.itertuples())
        line = {"loss": label(first), "images": first.images, "epochs": first.epochs, "seeds": len(own)}
        line |= {name: spread(own[name]) for name in ("AP", "AP50")}
        lines.append(line | {"CPU minutes per run": f"{own['cpu_seconds'].mean() / 60:.1f}"})
    return pd.DataFrame(lines)


def gradient_ratios(rows: pd.DataFrame) -> pd.DataFrame:
    """Return value and gradient norms of the classification term relative to BCE, as medians over the steps."""
    titles = {"value": "value", "l1": "L1 norm of the gradient", "l2": "L2 norm of the gradient"}
    columns = {}
    for name, title in titles.items():
        wide = rows.pivot(index="step", columns="loss", values=name)
        columns[title] = wide.div(wide["BCE"], axis=0).drop(columns="BCE").median().map("{:.2f}".format)
    return pd.DataFrame(columns).rename_axis("loss").reset_index()
