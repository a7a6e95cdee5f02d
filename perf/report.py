"""Draws what perf.sweep measured: a table in Markdown and plots as PNG.

    python -m perf.report FILE.csv... [--out FOLDER]

Several files (two commits, two devices) stand side by side.
"""

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

import pandas as pd

BASE = {"dtype": "float32", "distribution": "trained"}  # what the plots over elements and bins show
CASE = ["loss", "size", "elements", "dtype", "bins", "target", "distribution", "timer"]
SUBJECT = ["file", "device", "threads"] + CASE


def load(paths: Sequence[str | Path]) -> pd.DataFrame:
    """The rows of all files, with the name of the file that each is from."""
    rows = []
    for path in paths:
        own = pd.read_csv(path, keep_default_na=False, na_values={"p50_ms": "", "ratio_to_bce": ""})
        rows.append(own.assign(file=Path(path).stem))
    return pd.concat(rows, ignore_index=True)


def markdown(rows: pd.DataFrame, mode: str = "forward_backward") -> str:
    """A row a case, a column an implementation: milliseconds, and in brackets the ratio to binary cross entropy."""
    rows = rows[rows["mode"] == mode]
    cells = rows.assign(cell=[_cell(row) for row in rows.itertuples()])
    order = list(dict.fromkeys(rows["implementation"]))
    table = cells.pivot(index=SUBJECT, columns="implementation", values="cell").reindex(columns=order).fillna("")
    table = table.reset_index().sort_values(
        ["loss", "timer", "elements", "dtype", "bins", "distribution", "target", "file"]
    )
    shown = [name for name in table.columns if name in order + ["loss", "elements"] or table[name].nunique() > 1]
    lines = [shown, ["---"] * len(shown)] + [[str(row[name]) for name in shown] for _, row in table.iterrows()]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines) + "\n"


def _cell(row) -> str:
    if row.status != "ok":
        return row.status
    ratio = "" if pd.isna(row.ratio_to_bce) else f" ({row.ratio_to_bce:.2f}x)"
    return f"{row.p50_ms:.3g} ms{ratio}"


def compare(rows: pd.DataFrame, first: str, second: str, mode: str = "forward_backward") -> str:
    """Times of file `second` over those of file `first`; worse or better where the spreads (p20 to p80) are apart."""
    rows = rows[(rows["mode"] == mode) & (rows["status"] == "ok")].astype({"p20_ms": float, "p80_ms": float})
    sides = [rows[rows["file"] == name] for name in (first, second)]
    joined = sides[0].merge(sides[1], on=CASE + ["implementation"], suffixes=("", "_new"))
    lines = [CASE + ["implementation", f"{first} ms", f"{second} ms", "ratio", ""]]
    lines.append(["---"] * len(lines[0]))
    for _, row in joined.iterrows():
        mark = "worse" if row["p20_ms_new"] > row["p80_ms"] else "better" if row["p80_ms_new"] < row["p20_ms"] else ""
        times = [f"{row['p50_ms']:.3g}", f"{row['p50_ms_new']:.3g}", f"{row['p50_ms_new'] / row['p50_ms']:.2f}", mark]
        lines.append([str(row[name]) for name in CASE + ["implementation"]] + times)
    return "\n".join("| " + " | ".join(line) + " |" for line in lines) + "\n"


def document(rows: pd.DataFrame, images: Sequence[Path]) -> str:
    """The report of all files."""
    origins = rows[["file", "device", "threads", "torch", "triton", "commit"]].drop_duplicates()
    parts = ["# Timings\n"]
    parts += [
        f"- {one.file}: {one.device}, {one.threads} threads, PyTorch {one.torch}, Triton {one.triton or 'none'}, "
        f"commit {one.commit or 'unknown'}"
        for one in origins.itertuples()
    ]
    parts.append("\nMedian milliseconds, and in brackets the ratio to binary cross entropy in the same run.\n")
    for mode in dict.fromkeys(rows["mode"]):
        parts += [f"## {mode.replace('_', ' ')}\n", markdown(rows, mode)]
    files = list(dict.fromkeys(rows["file"]))
    for file in files[1:]:
        parts += [f"## {file} against {files[0]}, forward backward\n", compare(rows, files[0], file)]
    parts += [f"![{image.stem}]({image.name})\n" for image in images]
    return "\n".join(parts)


def plot(rows: pd.DataFrame, folder: Path, mode: str = "forward_backward") -> list[Path]:
    """Time and ratio over elements, and ratio over bins, of each loss, device and kind of timing."""
    import matplotlib

    matplotlib.use("Agg")
    rows = rows[(rows["mode"] == mode) & (rows["status"] == "ok")]
    for name, value in BASE.items():
        rows = rows[rows[name] == value]
    images = []
    for (loss, timer), own in rows.groupby(["loss", "timer"]):
        own = own[own["target"] == ("index" if loss == "ghmc" else "dense")]
        bins = own["bins"].mode().iloc[0]
        at_bins = own[own["bins"] == bins]
        elements = own.groupby("elements")["bins"].nunique().idxmax()
        at_elements = own[own["elements"] == elements]
        title = f"{loss}, {timer} time, {mode.replace('_', ' ')}, fp32, trained head"
        for x, y, data, where in (
            ("elements", "p50_ms", at_bins, f"{bins} bins"),
            ("elements", "ratio_to_bce", at_bins, f"{bins} bins"),
            ("bins", "ratio_to_bce", at_elements, f"{elements:.0e} elements"),
            ("bins", "p50_ms", at_elements, f"{elements:.0e} elements"),
        ):
            path = folder / f"{loss}-{timer}-{y.split('_')[0]}-over-{x}.png"
            _draw(data, x, y, f"{title}, {where}", path)
            images.append(path)
    return images


def _draw(rows: pd.DataFrame, x: str, y: str, title: str, path: Path) -> None:
    """A line an implementation (and file, where there are several); the time with its p20 to p80."""
    from matplotlib import pyplot

    figure, axes = pyplot.subplots(figsize=(8, 5), layout="constrained")
    several = rows["file"].nunique() > 1
    low, high = ("p20_ms", "p80_ms") if y == "p50_ms" else ("ratio_p20", "ratio_p80")
    for (file, name), own in rows.groupby(["file", "implementation"], sort=False):
        own = own.astype({y: float, low: float, high: float}).sort_values(x)
        (line,) = axes.plot(own[x], own[y], marker="o", label=f"{name}, {file}" if several else name)
        axes.fill_between(own[x], own[low], own[high], color=line.get_color(), alpha=0.15)
    labels = {"elements": "elements", "bins": "bins", "p50_ms": "ms", "ratio_to_bce": "time / binary cross entropy"}
    axes.set(xscale="log", yscale="log", xlabel=labels[x], ylabel=labels[y])
    axes.set_title(title, fontsize=10)
    axes.grid(True, which="major", alpha=0.3)
    axes.legend()
    figure.savefig(path, dpi=120)
    pyplot.close(figure)


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m perf.report", description=__doc__.splitlines()[0])
    parser.add_argument("files", nargs="+", metavar="FILE.csv")
    parser.add_argument(
        "--out", type=Path, help="folder of report.md and the plots (default: FILE-report beside the first)"
    )
    options = parser.parse_args(arguments)
    rows = load(options.files)
    first = Path(options.files[0])
    folder = options.out or first.with_name(f"{first.stem}-report")
    folder.mkdir(parents=True, exist_ok=True)
    try:
        images = plot(rows, folder)
    except ImportError:
        print("no plots: matplotlib is not installed")
        images = []
    (folder / "report.md").write_text(document(rows, images), encoding="utf-8")
    print(markdown(rows))
    print(f"{folder / 'report.md'} and {len(images)} plots")
    return 0


if __name__ == "__main__":
    sys.exit(main())
