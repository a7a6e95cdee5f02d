"""The tables of the README, from the CSVs in perf/results.

    python -m perf.readme

A test compares what this prints with what the README shows.
"""

from pathlib import Path

import pandas as pd

from . import accuracy_plan
from .cases import BASE, Case
from .report import load
from .tables import FORWARD_BACKWARD, as_markdown, three_digits

RESULTS = Path(__file__).parent / "results"
LOSSES = {"ghmc": "GHM-C", "ghmr": "GHM-R"}
NAMES = {
    "triton": "Triton kernels",
    "eager": "this package, eager",
    "eager_compiled": "eager, torch.compile",
    "bce_compiled": "cross entropy, torch.compile",
    "bce": "cross entropy",
    "region_loop": "loop over regions",
    "torchvision_focal": "focal loss",
    "smooth_l1": "smooth L1",
}
SMALLEST = 10**6  # elements, from which on time should be in proportion to them
CONFIGURATIONS = {"float32 class index": "GHM-C fp32", "bfloat16 class index": "GHM-C bf16"}
CONFIGURATIONS |= {
    "float32 deltas, element weight, mmdet": "GHM-R fp32",
    "bfloat16 deltas, element weight, mmdet": "GHM-R bf16",
}


def _base(rows: pd.DataFrame) -> pd.DataFrame:
    """Forward and backward in one, fp32, a trained head; any number of elements and bins."""
    rows = rows[(rows["mode"] == FORWARD_BACKWARD) & (rows["status"] == "ok") & (rows["dtype"] == "float32")]
    target = rows["loss"].map({loss: Case(loss, 0, 0, **fields).target for loss, fields in BASE.items()})
    return rows[(rows["distribution"] == "trained") & (rows["target"] == target)]


def _base_bins(rows: pd.DataFrame) -> pd.Series:
    return rows["bins"] == rows["loss"].map({loss: Case(loss, 0, 0, **fields).bins for loss, fields in BASE.items()})


def over_elements(rows: pd.DataFrame) -> pd.DataFrame:
    """Milliseconds and, in brackets, the ratio to binary cross entropy; of this package also nanoseconds an element."""
    rows = _base(rows)
    rows = rows[_base_bins(rows) & (rows["elements"] >= SMALLEST)].sort_values("elements", kind="stable")
    names = [name for name in NAMES if name in set(rows["implementation"])]
    lines = []
    for (loss, elements, size), own in rows.groupby(["loss", "elements", "size"], sort=False):
        own = own.set_index("implementation")
        line = {"loss": LOSSES[loss], "elements": f"{elements:,}" + (" (RetinaNet)" if size else "")}
        line["ns an element"] = f"{own.loc['eager', 'p50_ms'] * 1e6 / elements:.1f}"
        for name in names:
            cell = own.loc[name] if name in own.index else None
            line[NAMES[name]] = (
                "" if cell is None else f"{three_digits(cell['p50_ms'])} ms ({cell['ratio_to_bce']:.2f})"
            )
        lines.append(line)
    return pd.DataFrame(lines).sort_values("loss", kind="stable")


def over_bins(rows: pd.DataFrame) -> pd.DataFrame:
    """Milliseconds for SMALLEST elements."""
    rows = _base(rows)
    rows = rows[(rows["elements"] == SMALLEST) & rows["implementation"].isin(["eager", "region_loop"])]
    rows = rows.assign(cell=rows["p50_ms"].map(three_digits), name=rows["implementation"].map(NAMES))
    table = rows.pivot(index=["loss", "name"], columns="bins", values="cell").fillna("").reset_index()
    return table.assign(loss=table["loss"].map(LOSSES)).rename(columns={"name": "ms at 1,000,000; bins:"})


def over_memory(compiled: pd.DataFrame) -> pd.DataFrame:
    """Modelled time over that of moving the bytes, on the easy and on the hard way, of CONFIGURATIONS."""
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
    return [*times, accuracy_plan.markdown(accuracy)]


if __name__ == "__main__":
    print("\n".join(tables()))
