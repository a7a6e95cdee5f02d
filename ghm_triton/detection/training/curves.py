"""The metrics and curves of a training: metrics.csv, losses.png and ap.png."""

import pathlib

import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from .engine import LOG_EVERY

_TITLES = {
    "classification": "Classification loss",
    "bbox_regression": "Box loss",
    "bbox_ctrness": "Centerness loss",
}


def write_metrics(path: pathlib.Path, metrics: list[dict]) -> None:
    """Write a row per epoch. Write the whole file each time, so that a resumed training repeats no epoch."""
    temporary = path.with_name(f"{path.name}.writing")
    pd.DataFrame(metrics).to_csv(temporary, index=False, float_format="%.6g")
    temporary.replace(path)


def draw_curves(folder: pathlib.Path, log: list[dict], metrics: list[dict]) -> list[pathlib.Path]:
    """Draw losses.png over the steps and ap.png over the epochs, and return their paths."""
    rows, means = pd.DataFrame(log), pd.DataFrame(metrics)
    names = [name for name in _TITLES if name in means]
    figure = Figure(figsize=(6 * len(names), 4), layout="constrained")
    panels = figure.subplots(1, len(names), squeeze=False)
    for axes, name in zip(panels[0], names):
        if len(rows) > 1:
            axes.plot(rows.step, rows[name], color="tab:green", alpha=0.4, label=f"mean of {LOG_EVERY} steps")
        edges = [0, *means.step]
        axes.stairs(means[name], edges, baseline=None, color="tab:green", label="mean between evaluations")
        axes.set(title=_TITLES[name], xlabel="step", ylabel="loss")
        axes.xaxis.set_major_locator(MaxNLocator(integer=True))
        axes.set_ylim(bottom=0)
        axes.grid(True, alpha=0.3)
        axes.legend(fontsize="small")
    images = [_save(figure, folder / "losses.png")]

    figure = Figure(figsize=(6.5, 4), layout="constrained")
    axes = figure.subplots()
    rows = pd.DataFrame(metrics)
    draw_ap(axes, rows.epoch, {name: rows[name] for name in ("AP", "AP50", "AP75")}, xlabel="epoch")
    axes.set_title("Average precision on the validation images")
    return images + [_save(figure, folder / "ap.png")]


def draw_ap(axes: Axes, x: list, lines: dict[str, list], *, xlabel: str) -> None:
    """Draw curves of average precision, with the legend beside them."""
    for (name, values), color in zip(lines.items(), ("tab:green", "tab:red", "tab:purple")):
        axes.plot(x, values, label=name, marker="o", color=color)
    axes.set(xlabel=xlabel, ylabel="AP, %", ylim=(0, 100))
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    axes.grid(True, alpha=0.3)
    axes.legend(loc="upper left", bbox_to_anchor=(1, 1), fontsize="small")


def _save(figure: Figure, path: pathlib.Path) -> pathlib.Path:
    figure.savefig(path, dpi=120)
    return path
