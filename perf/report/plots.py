"""The plots of a report, as PNG: one color per implementation, one line style per source."""

import textwrap
from pathlib import Path
from typing import NamedTuple

import pandas as pd

from ..legend import COLORS, LABELS, LINE_STYLES, LOSSES
from ..sweep.cases import BASE, Case
from ..sweep.implementations import BASELINES
from .rows import FORWARD_BACKWARD, MODES, TIMERS

FIGURE = (4.8, 4.8)  # inches: small, so that the text is readable where the page is as narrow as a phone
DPI = 180
SHOWN = {"dtype": "float32", "distribution": "trained"}


class Quantity(NamedTuple):
    """What the vertical axis shows.

    Attributes:
        column: Its column.
        title: What is seen; {baseline} is what the loss is compared with.
        axis: Label of the axis, with the unit.
        spread: Columns of the 20th and 80th percentile, if there are any.
        unit: What the column is divided by.
    """

    column: str
    title: str
    axis: str
    spread: tuple[str, str] | None = None
    unit: float = 1


TIME = Quantity("p50_ms", "time", "milliseconds", ("p20_ms", "p80_ms"))
RATIO = Quantity("ratio", "time relative to {baseline}", "time / time of {baseline}", ("ratio_p20", "ratio_p80"))
THROUGHPUT = Quantity("gb_per_s", "memory throughput", "GB/s of arguments and gradient")
MEMORY = Quantity("peak_extra_bytes", "peak memory", "MB beyond the inputs, at most", unit=1e6)
PLOTS = [
    *((quantity, "elements") for quantity in (TIME, RATIO, THROUGHPUT, MEMORY)),
    *((quantity, "bins") for quantity in (TIME, RATIO)),
]


class Plot(NamedTuple):
    """A picture and what it shows."""

    path: Path
    title: str


def plot(rows: pd.DataFrame, folder: Path, mode: str = FORWARD_BACKWARD) -> list[Plot]:
    """Draw PLOTS of each loss and kind of timing into `folder`, for fp32 and the logits of a trained head.

    GHM cross entropy has only tables: its sizes differ in the number of classes, so they make no line.
    """
    rows = rows[(rows["mode"] == mode) & (rows["status"] == "ok") & (rows["loss"] != "cross_entropy")]
    for name, value in SHOWN.items():
        rows = rows[rows[name] == value]
    plots = []
    for (loss, timer), own in rows.groupby(["loss", "timer"]):
        base = Case(loss, 0, 0, **BASE[loss])
        own = own[own["target"] == base.target]
        if own.empty:
            continue
        bins = own["bins"].mode().iloc[0]
        elements = own.groupby("elements")["bins"].nunique().idxmax()
        subsets = {
            "elements": (own[own["bins"] == bins], f"{bins} bins"),
            "bins": (own[own["elements"] == elements], f"{elements:,} elements"),
        }
        baseline = LABELS[BASELINES[loss]]
        for quantity, over in PLOTS:
            quantity = quantity._replace(
                title=quantity.title.format(baseline=baseline), axis=quantity.axis.format(baseline=baseline)
            )
            data, fixed = subsets[over]
            data = data.dropna(subset=[quantity.column])
            points = data.groupby(["source", "implementation"])[over].transform("nunique")
            data = data[points > 1]  # a single point makes no line; the tables have it
            if data.empty:
                continue
            title = f"{LOSSES[loss]}: {quantity.title} over {over}"
            conditions = f"{MODES[mode]}, fp32, trained head, {fixed}, {TIMERS[timer]}"
            path = folder / f"{loss}-{timer}-{quantity.title}-over-{over}.png".replace(" ", "-")
            _draw(data, quantity, over, title, conditions, path)
            plots.append(Plot(path, f"{title} ({conditions})"))
    return plots


def _draw(rows: pd.DataFrame, quantity: Quantity, over: str, title: str, conditions: str, path: Path) -> None:
    """Draw a line per implementation and source, with its range from the 20th to the 80th percentile if known."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot
    from matplotlib.lines import Line2D

    figure, axes = pyplot.subplots(figsize=FIGURE, layout="constrained")
    sources = list(dict.fromkeys(rows["source"]))
    styles = {source: LINE_STYLES[index % len(LINE_STYLES)] for index, source in enumerate(sources)}
    names = [name for name in LABELS if name in set(rows["implementation"])]
    for (source, name), own in rows.groupby(["source", "implementation"], sort=False):
        own = own.sort_values(over)
        style = {"color": COLORS[name], "linestyle": styles[source]}
        axes.plot(own[over], own[quantity.column] / quantity.unit, marker="o", markersize=4, **style)
        if quantity.spread:
            axes.fill_between(own[over], *(own[column] for column in quantity.spread), color=COLORS[name], alpha=0.15)
    axes.set(xscale="log", yscale="log", xlabel=over, ylabel=quantity.axis)
    if over == "bins":
        axes.set_xticks(sorted(set(rows["bins"])), sorted(set(rows["bins"])))
        axes.minorticks_off()
    figure.suptitle(textwrap.fill(title, 40), fontsize=12)
    axes.set_title(textwrap.fill(conditions, 50), fontsize=9)
    axes.grid(True, which="major", alpha=0.3)
    handles = [Line2D([], [], color=COLORS[name], marker="o", markersize=4, label=LABELS[name]) for name in names]
    if len(sources) > 1:
        handles += [Line2D([], [], color="black", linestyle=style, label=source) for source, style in styles.items()]
    figure.legend(handles=handles, loc="outside lower center", ncols=2, fontsize=9, frameon=False)
    figure.savefig(path, dpi=DPI)
    pyplot.close(figure)
