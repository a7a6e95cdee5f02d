"""The tables of perf.report: times of the cases, one file against another, and what the README shows."""

from collections.abc import Sequence
from pathlib import Path

import pandas as pd

from ..markdown_table import three_digits

CASE = ["loss", "size", "elements", "dtype", "bins", "target", "distribution", "timer"]
SUBJECT = ["file", "device", "threads"] + CASE
FORWARD_BACKWARD = "forward_backward"
NUMBERS = ["p50_ms", "p20_ms", "p80_ms", "gb_per_s", "ratio_to_bce", "ratio_p20", "ratio_p80", "peak_extra_bytes"]


def load(paths: Sequence[str | Path]) -> pd.DataFrame:
    """The rows of all files, with the name of the file that each is from.

    Raises:
        ValueError: Two files have the same name, and could not be told apart.
    """
    names = [Path(path).stem for path in paths]
    if len(set(names)) < len(names):
        raise ValueError(f"the files must have different names, got {', '.join(map(str, paths))}")
    rows = []
    for path, name in zip(paths, names):
        own = pd.read_csv(path, keep_default_na=False, na_values={name: [""] for name in NUMBERS})
        rows.append(own.assign(file=name))
    return pd.concat(rows, ignore_index=True)


def times(rows: pd.DataFrame, mode: str = FORWARD_BACKWARD) -> pd.DataFrame:
    """A row a case, a column an implementation: milliseconds, and in brackets the ratio to binary cross entropy."""
    rows = rows[rows["mode"] == mode]
    cells = rows.assign(cell=[_cell(row) for row in rows.itertuples()])
    order = list(dict.fromkeys(rows["implementation"]))
    table = cells.pivot(index=SUBJECT, columns="implementation", values="cell").reindex(columns=order).fillna("")
    table = table.reset_index().sort_values(
        ["loss", "timer", "elements", "dtype", "bins", "distribution", "target", "file"]
    )
    shown = [name for name in table.columns if name in order + ["loss", "elements"] or table[name].nunique() > 1]
    return table[shown]


def _cell(row) -> str:
    if row.status != "ok":
        return row.status
    ratio = "" if pd.isna(row.ratio_to_bce) else f" ({row.ratio_to_bce:.2f}x)"
    return f"{three_digits(row.p50_ms)} ms{ratio}"


def compare(rows: pd.DataFrame, first: str, second: str, mode: str = FORWARD_BACKWARD) -> pd.DataFrame:
    """Times of file `second` over those of file `first`; worse or better where the spreads (p20 to p80) are apart."""
    rows = rows[(rows["mode"] == mode) & (rows["status"] == "ok")]
    sides = [rows[rows["file"] == name] for name in (first, second)]
    joined = sides[0].merge(sides[1], on=CASE + ["implementation"], suffixes=("", "_new"))
    table = joined[CASE + ["implementation"]].copy()
    table[f"{first} ms"] = joined["p50_ms"].map("{:.3g}".format)
    table[f"{second} ms"] = joined["p50_ms_new"].map("{:.3g}".format)
    table["ratio"] = (joined["p50_ms_new"] / joined["p50_ms"]).map("{:.2f}".format)
    table["mark"] = ""
    table.loc[joined["p20_ms_new"] > joined["p80_ms"], "mark"] = "worse"
    table.loc[joined["p80_ms_new"] < joined["p20_ms"], "mark"] = "better"
    return table


def origins(rows: pd.DataFrame) -> pd.DataFrame:
    """What each file was measured with, and the command that measures it again."""
    names = ["file", "device", "threads", "platform", "python", "torch", "triton", "ghm_triton", "commit"]
    spans = rows.groupby(names, dropna=False, sort=False)["measured_at"].agg(["min", "max"]).reset_index()
    kinds = rows.groupby("file", sort=False)["timer"].agg(lambda timers: "cpu" if "wall" in set(timers) else "auto")
    spans["command"] = [
        f"python -m perf.sweep --device {kinds[row.file]} --threads {row.threads} --out {row.file}.csv"
        for row in spans.itertuples()
    ]
    return spans.rename(columns={"min": "from", "max": "to"})
