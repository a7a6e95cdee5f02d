"""The plots of perf.report, as PNG."""

from pathlib import Path
from typing import NamedTuple

import pandas as pd

from .tables import FORWARD_BACKWARD

BASE = {"dtype": "float32", "distribution": "trained"}  # what the plots show
LABELS = {
    "elements": "elements",
    "bins": "bins",
    "p50_ms": "ms",
    "gb_per_s": "GB/s (least bytes)",
    "ratio_to_bce": "time / binary cross entropy",
    "peak_extra_bytes": "bytes beyond the inputs, at most",
}
SPREAD = {"p50_ms": ("p20_ms", "p80_ms"), "ratio_to_bce": ("ratio_p20", "ratio_p80")}


class Plot(NamedTuple):
    """y over x."""

    x: str
    y: str

    @property
    def name(self) -> str:
        return f"{self.y.removeprefix('p50_').removesuffix('_extra_bytes')}-over-{self.x}".replace("_", "-")


PLOTS = [Plot("elements", y) for y in ("p50_ms", "gb_per_s", "ratio_to_bce", "peak_extra_bytes")]
PLOTS += [Plot("bins", y) for y in ("p50_ms", "ratio_to_bce")]


def plot(rows: pd.DataFrame, folder: Path, mode: str = FORWARD_BACKWARD) -> list[Path]:
    """PLOTS of each loss and kind of timing, in `folder`."""
    rows = rows[(rows["mode"] == mode) & (rows["status"] == "ok")]
    for name, value in BASE.items():
        rows = rows[rows[name] == value]
    images = []
    for (loss, timer), own in rows.groupby(["loss", "timer"]):
        own = own[own["target"] == ("index" if loss == "ghmc" else "dense")]
        bins = own["bins"].mode().iloc[0]
        elements = own.groupby("elements")["bins"].nunique().idxmax()
        subsets = {
            "elements": (own[own["bins"] == bins], f"{bins} bins"),
            "bins": (own[own["elements"] == elements], f"{elements:.0e} elements"),
        }
        for wanted in PLOTS:
            data, where = subsets[wanted.x]
            data = data.dropna(subset=[wanted.y])
            if data.empty:  # memory that the meter could not tell
                continue
            path = folder / f"{loss}-{timer}-{wanted.name}.png"
            title = f"{loss}, {timer} time, {mode.replace('_', ' ')}, fp32, trained head, {where}"
            _draw(data, wanted, title, path)
            images.append(path)
    return images


def _draw(rows: pd.DataFrame, wanted: Plot, title: str, path: Path) -> None:
    """A line an implementation (and file, where there are several), with its p20 to p80 where there are such."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    figure, axes = pyplot.subplots(figsize=(8, 5), layout="constrained")
    several = rows["file"].nunique() > 1
    for (file, name), own in rows.groupby(["file", "implementation"], sort=False):
        own = own.sort_values(wanted.x)
        (line,) = axes.plot(own[wanted.x], own[wanted.y], marker="o", label=f"{name}, {file}" if several else name)
        if wanted.y in SPREAD:
            low, high = SPREAD[wanted.y]
            axes.fill_between(own[wanted.x], own[low], own[high], color=line.get_color(), alpha=0.15)
    axes.set(xscale="log", yscale="log", xlabel=LABELS[wanted.x], ylabel=LABELS[wanted.y])
    axes.set_title(title, fontsize=10)
    axes.grid(True, which="major", alpha=0.3)
    axes.legend()
    figure.savefig(path, dpi=100)
    pyplot.close(figure)
