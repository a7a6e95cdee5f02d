"""Prints the tables of the documentation, made from the CSVs in perf/results: `python -m perf.readme`.

A test compares what this prints with what the documentation shows.
"""

from pathlib import Path

import pandas as pd

from .accuracy.tables import tables as accuracy_tables
from .legend import LABELS, LOSSES
from .markdown_table import as_markdown, three_digits
from .report.tables import FORWARD_BACKWARD, load
from .sweep.cases import BASE, Case

RESULTS = Path(__file__).parent / "results"
SMALLEST = 10**6  # elements; from here on, time should be proportional to them
CONFIGURATIONS = {"float32 class index": "GHM-C fp32", "bfloat16 class index": "GHM-C bf16"}
CONFIGURATIONS |= {
    "float32 deltas, element weight, mmdet": "GHM-R fp32",
    "bfloat16 deltas, element weight, mmdet": "GHM-R bf16",
}


def _base(rows: pd.DataFrame) -> pd.DataFrame:
    """The rows of forward and backward together, fp32, a trained head, with any number of elements and bins."""
    rows = rows[(rows["mode"] == FORWARD_BACKWARD) & (rows["status"] == "ok") & (rows["dtype"] == "float32")]
    target = rows["loss"].map({loss: Case(loss, 0, 0, **fields).target for loss, fields in BASE.items()})
    return rows[(rows["distribution"] == "trained") & (rows["target"] == target)]


def _base_bins(rows: pd.DataFrame) -> pd.Series:
    return rows["bins"] == rows["loss"].map({loss: Case(loss, 0, 0, **fields).bins for loss, fields in BASE.items()})


def over_elements(rows: pd.DataFrame) -> pd.DataFrame:
    """Milliseconds, the ratio to cross entropy in parentheses, and nanoseconds per element of this package."""
    rows = _base(rows)
    rows = rows[_base_bins(rows) & (rows["elements"] >= SMALLEST)].sort_values("elements", kind="stable")
    names = [name for name in LABELS if name in set(rows["implementation"])]
    lines = []
    for (loss, elements, size), own in rows.groupby(["loss", "elements", "size"], sort=False):
        own = own.set_index("implementation")
        line = {"loss": LOSSES[loss], "elements": f"{elements:,}" + (" (RetinaNet)" if size else "")}
        line["ns per element"] = f"{own.loc['eager', 'p50_ms'] * 1e6 / elements:.1f}"
        for name in names:
            cell = own.loc[name] if name in own.index else None
            line[LABELS[name]] = (
                "" if cell is None else f"{three_digits(cell['p50_ms'])} ms ({cell['ratio_to_bce']:.2f})"
            )
        lines.append(line)
    return pd.DataFrame(lines).sort_values("loss", kind="stable")


def over_bins(rows: pd.DataFrame) -> pd.DataFrame:
    """Milliseconds at SMALLEST elements."""
    rows = _base(rows)
    rows = rows[(rows["elements"] == SMALLEST) & rows["implementation"].isin(["eager", "region_loop"])]
    rows = rows.assign(cell=rows["p50_ms"].map(three_digits), name=rows["implementation"].map(LABELS))
    table = rows.pivot(index=["loss", "name"], columns="bins", values="cell").fillna("").reset_index()
    return table.assign(loss=table["loss"].map(LOSSES)).rename(columns={"name": "ms at 1,000,000; bins:"})


def over_memory(compiled: pd.DataFrame) -> pd.DataFrame:
    """Modeled time over that of moving the bytes, of CONFIGURATIONS: easy tiles / tiles that need everything."""
    rows = compiled[compiled["configuration"].isin(CONFIGURATIONS) & compiled["block"].notna()]
    step = rows["kernel"].str.extract("(accumulate|gradient)")[0]
    cells = [f"{row.easy_over_memory:.2f} / {row.hard_over_memory:.2f}" for row in rows.itertuples()]
    rows = rows.assign(use=rows["configuration"].map(CONFIGURATIONS) + " " + step, cell=cells)
    order = list(dict.fromkeys(rows["device"]))
    return rows.pivot(index="use", columns="device", values="cell")[order].rename_axis(columns=None).reset_index()


def tables() -> list[str]:
    rows, compiled = load([RESULTS / "sweep-cpu.csv"]), pd.read_csv(RESULTS / "compiled.csv")
    accuracy = pd.read_csv(RESULTS / "accuracy-cpu.csv")
    times = [as_markdown(table) for table in (over_elements(rows), over_bins(rows), over_memory(compiled))]
    return [*times, *accuracy_tables(accuracy)]


if __name__ == "__main__":
    print("\n".join(tables()))
