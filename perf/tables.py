"""The tables of perf.report: times of the cases, one file against another, and what the README shows."""

import pandas as pd

CASE = ["loss", "size", "elements", "dtype", "bins", "target", "distribution", "timer"]
SUBJECT = ["file", "device", "threads"] + CASE
FORWARD_BACKWARD = "forward_backward"


def as_markdown(table: pd.DataFrame) -> str:
    """A table of texts, all shown as they are."""
    lines = [list(map(str, table.columns)), ["---"] * len(table.columns)] + table.astype(str).values.tolist()
    return "\n".join("| " + " | ".join(line) + " |" for line in lines) + "\n"


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


def three_digits(value: float) -> str:
    return f"{value:.3g}" if value < 1000 else f"{float(f'{value:.3g}'):,.0f}"


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
