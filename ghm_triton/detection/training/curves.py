"""What a training leaves to look at: metrics.csv, and curves of the losses and of AP."""

import pathlib

import pandas as pd

_SMOOTHED = 20  # rows of the log


def write_metrics(path: pathlib.Path, metrics: list[dict]) -> None:
    """A row an epoch. Written anew each time: a resumed training must not have an epoch twice."""
    temporary = path.with_name(f"{path.name}.writing")
    pd.DataFrame(metrics).to_csv(temporary, index=False, float_format="%.6g")
    temporary.replace(path)


def draw_curves(folder: pathlib.Path, log: list[dict], metrics: list[dict]) -> list[pathlib.Path]:
    """losses.png over the steps and ap.png over the epochs, in `folder`; those that have something to show."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    images = []
    for name, rows, x, lines in (
        ("losses", pd.DataFrame(log), "step", [n for n in (log[0] if log else {}) if n not in ("epoch", "step", "lr")]),
        ("ap", pd.DataFrame(metrics), "epoch", ["AP", "AP50", "AP75"]),
    ):
        if rows.empty:
            continue
        figure, axes = pyplot.subplots(figsize=(8, 5), layout="constrained")
        for line in lines:
            values = rows[line].rolling(_SMOOTHED, min_periods=1).mean() if name == "losses" else rows[line]
            axes.plot(rows[x], values, label=line, marker="o" if name == "ap" else None)
        axes.set(xlabel=x, ylabel="loss" if name == "losses" else "%")
        axes.grid(True, alpha=0.3)
        axes.legend()
        images.append(folder / f"{name}.png")
        figure.savefig(images[-1], dpi=120)
        pyplot.close(figure)
    return images
