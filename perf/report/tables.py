"""The tables of a report: what was measured, the times, and one source against another."""

import pandas as pd

from ..legend import LABELS, LOSSES
from ..markdown_table import three_digits
from .rows import FORWARD_BACKWARD, count_threads

CASE = ["loss", "size", "elements", "dtype", "bins", "target", "distribution", "timer"]
ORDER = ["timer", "elements", "dtype", "bins", "distribution", "target"]
HEADINGS = {"distribution": "logits"}


def origins(rows: pd.DataFrame) -> pd.DataFrame:
    """Show what each source was measured with, and the command to measure it again."""
    names = ["source", "path", "effort", "device", "threads", "platform", "python", "torch", "triton", "ghm_triton"]
    names += ["commit"]
    spans = rows.groupby(names, dropna=False, sort=False)["measured_at"].agg(["min", "max"]).reset_index()
    on_cpu = set(rows.loc[rows["timer"] == "wall", "source"])
    spans["command"] = [
        f"python -m perf.sweep{' --quick' if row.effort == 'quick' else ''}"
        f" --device {'cpu' if row.source in on_cpu else 'auto'} --threads {row.threads} --out {row.path}"
        for row in spans.itertuples()
    ]
    return _without_empty(spans.drop(columns=["path"]).rename(columns={"min": "from", "max": "to"}))


def times(rows: pd.DataFrame, loss: str, mode: str = FORWARD_BACKWARD) -> pd.DataFrame:
    """Make a row per case and source, a column per implementation: milliseconds (ratio to the baseline)."""
    rows = rows[(rows["mode"] == mode) & (rows["loss"] == loss)]
    cells = rows.assign(cell=[_cell(row) for row in rows.itertuples()])
    order = [name for name in LABELS if name in set(rows["implementation"])]
    table = cells.pivot(index=["source", *CASE], columns="implementation", values="cell").fillna("").reset_index()
    table = table.sort_values([*ORDER, "source"], kind="stable")
    return _with_names(table, ["source", *CASE], order)


def _cell(row) -> str:
    if row.status != "ok":
        return row.status
    ratio = "" if pd.isna(row.ratio) else f" ({row.ratio:.2f}x)"
    return f"{three_digits(row.p50_ms)} ms{ratio}"


def compare(rows: pd.DataFrame, first: str, second: str) -> pd.DataFrame:
    """Divide the milliseconds of source `second` by those of source `first`, for forward and backward.

    The column "change" says slower or faster if the ranges from the 20th to the 80th percentile do not overlap.
    """
    rows = rows[(rows["mode"] == FORWARD_BACKWARD) & (rows["status"] == "ok")]
    before, after = (rows[rows["source"] == name] for name in (first, second))
    joined = before.merge(after, on=[*CASE, "implementation"], suffixes=("", "_after"))
    joined = joined.sort_values(["loss", *ORDER], kind="stable")
    table = joined[[*CASE, "implementation"]].copy()
    table["implementation"] = table["implementation"].map(LABELS)
    table[f"{first}, ms"] = joined["p50_ms"].map(three_digits)
    table[f"{second}, ms"] = joined["p50_ms_after"].map(three_digits)
    table["ratio"] = (joined["p50_ms_after"] / joined["p50_ms"]).map("{:.2f}".format)
    table["change"] = ""
    table.loc[joined["p20_ms_after"] > joined["p80_ms"], "change"] = "slower"
    table.loc[joined["p80_ms_after"] < joined["p20_ms"], "change"] = "faster"
    values = [name for name in table if name not in CASE]
    return _without_empty(_with_names(table, CASE, values))


def warnings(rows: pd.DataFrame) -> list[str]:
    """Write a sentence for each other source whose times are not comparable with those of the first."""
    sources = rows.groupby("source", sort=False)[["device", "threads"]].first().reset_index()
    first, texts = sources.iloc[0], []
    threads = count_threads(sources["threads"])
    for index in range(1, len(sources)):
        other = sources.iloc[index]
        differ = []
        if other["threads"] != first["threads"]:
            differ.append(f"{threads[0]} and {threads[index]}")
        if other["device"] != first["device"]:
            differ.append(f"{first['device']} and {other['device']}")
        if differ:
            text = f"Warning: {first['source']} and {other['source']} were measured with {' and with '.join(differ)}."
            texts.append(text + " Their ratio is not that of the code alone.")
    return texts


def _without_empty(table: pd.DataFrame) -> pd.DataFrame:
    """Drop the columns that have no values."""
    return table[[name for name in table if not table[name].isin(["", None]).all()]]


def _with_names(table: pd.DataFrame, cases: list[str], values: list[str]) -> pd.DataFrame:
    """Keep the columns of `cases` that vary, and all of `values`, with readable headings, losses and numbers."""
    shown = [name for name in cases if name == "elements" or (name != "size" and table[name].nunique() > 1)]
    names = table["size"].map(lambda name: f" ({name})" if name else "")
    table = table.assign(elements=table["elements"].map("{:,}".format) + names, loss=table["loss"].map(LOSSES))
    return table[shown + values].rename(columns=LABELS | HEADINGS).rename_axis(columns=None)
