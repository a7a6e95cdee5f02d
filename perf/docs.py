"""Rewrite the tables in README.md and docs/ from the CSVs in perf/results: `python -m perf.docs`.

A table stands between `<!-- table NAME -->` and `<!-- end -->`. A test compares the pages with the result.
"""

import re
from pathlib import Path

import pandas as pd

from ghm_triton.arguments import command_parser

from .accuracy.paired import front
from .accuracy.plan import FULL
from .accuracy.tables import tables as accuracy_tables
from .accuracy.yolo_tables import comparison, gradient_ratios
from .classification.report import differences as classification_differences
from .classification.report import table as classification_table
from .legend import LABELS, LOSSES
from .markdown_table import as_markdown, three_digits
from .report.rows import FORWARD_BACKWARD, load
from .sweep.cases import BASE, Case
from .sweep.implementations import BASELINES
from .volumes.report import table as volumes_table

ROOT = Path(__file__).resolve().parent.parent
RESULTS = ROOT / "perf" / "results"
TABLE = re.compile(r"(<!-- table (?P<name>[\w-]+) -->\n)(.*?)(<!-- end -->)", re.DOTALL)
SMALLEST = 10**6  # elements; from here on, time should be proportional to them
FRONT_ELEMENTS = (10_000, 100_000, 8_000_000)
FRONT_TASKS = {
    ("digits-10", 1000): "digits, ten classes",
}
FRONT_LOSSES = {
    "CE + SL1": "cross entropy + smooth L1",
    "focal + SL1": "focal loss + smooth L1",
    "focal + GHM-R, exponent 0.5": "focal loss + GHM-R with the exponent 0.5",
    "GHM-C + SL1, exponent 0": "cross entropy normalized like GHM-C (exponent 0) + smooth L1",
    "GHM-C + SL1, exponent 0.5": "GHM-C with the exponent 0.5 + smooth L1",
    "GHM-C + GHM-R, exponent 0.5": "GHM-C + GHM-R with the exponent 0.5",
}
FRONT_IMPLEMENTATIONS = {
    "eager": "GHM-C, this package",
    "bce": "cross entropy, PyTorch",
    "region_loop": "GHM-C as a loop over regions",
    "torchvision_focal": "focal loss, torchvision",
}
HOST_IMPLEMENTATIONS = ("triton", "eager")
CONFIGURATIONS = {"float32 class index": "GHM-C fp32", "bfloat16 class index": "GHM-C bf16"}
CONFIGURATIONS |= {
    "float32 deltas, element weight, mmdet": "GHM-R fp32",
    "bfloat16 deltas, element weight, mmdet": "GHM-R bf16",
}
DENSITY_ERRORS = {
    ("mean_error", "trained"): "error, trained head",
    ("hard_mean_error", "trained"): "the same, g ≥ 0.5",
    ("loss_ratio", "trained"): "loss, trained head",
    ("mean_error", "start"): "error, untrained head",
    ("loss_ratio", "start"): "loss, untrained head",
    ("mean_error", "uniform"): "error, spread evenly",
    ("loss_ratio", "uniform"): "loss, spread evenly",
}
SOFTMAX = {"10 classes": "10", "1,000 classes": "1,000", "19 classes, channels second": "19, channels second"}
CONFIGURATIONS |= {
    f"{dtype} softmax of {shape}": f"GHM cross entropy ({classes}) {short}"
    for dtype, short in (("float32", "fp32"), ("bfloat16", "bf16"))
    for shape, classes in SOFTMAX.items()
}


def _base(rows: pd.DataFrame) -> pd.DataFrame:
    """Return the rows of forward and backward together, fp32, a trained head, with any number of elements and bins."""
    rows = rows[(rows["mode"] == FORWARD_BACKWARD) & (rows["status"] == "ok") & (rows["dtype"] == "float32")]
    rows = rows[rows["timer"] != "host"]
    target = rows["loss"].map({loss: Case(loss, 0, 0, **fields).target for loss, fields in BASE.items()})
    return rows[(rows["distribution"] == "trained") & (rows["target"] == target)]


def _base_bins(rows: pd.DataFrame) -> pd.Series:
    return rows["bins"] == rows["loss"].map({loss: Case(loss, 0, 0, **fields).bins for loss, fields in BASE.items()})


def over_elements(rows: pd.DataFrame) -> pd.DataFrame:
    """Show milliseconds, the ratio to the baseline in parentheses, and nanoseconds per element of this package."""
    rows = _base(rows)
    rows = rows[_base_bins(rows) & (rows["elements"] >= SMALLEST) & (rows["loss"] != "cross_entropy")]
    rows = rows.sort_values("elements", kind="stable")
    names = [name for name in LABELS if name in set(rows["implementation"])]
    lines = []
    for (loss, elements, size), own in rows.groupby(["loss", "elements", "size"], sort=False):
        own = own.set_index("implementation")
        line = {"loss": LOSSES[loss], "elements": f"{elements:,}" + (" (RetinaNet)" if size else "")}
        line["ns per element"] = f"{own.loc['eager', 'p50_ms'] * 1e6 / elements:.1f}"
        for name in names:
            cell = own.loc[name] if name in own.index else None
            line[LABELS[name]] = "" if cell is None else f"{three_digits(cell['p50_ms'])} ms ({cell['ratio']:.2f})"
        lines.append(line)
    return pd.DataFrame(lines).sort_values("loss", kind="stable")


def over_logits(rows: pd.DataFrame) -> pd.DataFrame:
    """Show GHM cross entropy: milliseconds, the ratio to cross entropy in parentheses."""
    rows = _base(rows)
    rows = rows[rows["loss"] == "cross_entropy"]
    cells = [f"{three_digits(row.p50_ms)} ms ({row.ratio:.2f})" for row in rows.itertuples()]
    rows = rows.assign(cell=cells, logits=rows["size"], name=rows["implementation"].map(LABELS))
    table = rows.pivot(index="logits", columns="name", values="cell")
    order = [label for label in dict.fromkeys(LABELS.values()) if label in table]
    return table.loc[rows["logits"].unique(), order].rename_axis(columns=None).reset_index()


def over_bins(rows: pd.DataFrame) -> pd.DataFrame:
    """Show milliseconds at SMALLEST elements."""
    rows = _base(rows)
    rows = rows[(rows["elements"] == SMALLEST) & rows["implementation"].isin(["eager", "region_loop"])]
    rows = rows.assign(cell=rows["p50_ms"].map(three_digits), name=rows["implementation"].map(LABELS))
    table = rows.pivot(index=["loss", "name"], columns="bins", values="cell").fillna("").reset_index()
    return table.assign(loss=table["loss"].map(LOSSES)).rename(columns={"name": "ms at 1,000,000; bins:"})


def over_memory(compiled: pd.DataFrame) -> pd.DataFrame:
    """Show the modeled time divided by that of moving the bytes: for easy tiles / for tiles that need everything."""
    rows = compiled[compiled["configuration"].isin(CONFIGURATIONS) & compiled["block"].notna()]
    step = rows["kernel"].str.extract("(accumulate|gradient)")[0]
    cells = [f"{row.easy_over_memory:.2f} / {row.hard_over_memory:.2f}" for row in rows.itertuples()]
    rows = rows.assign(use=rows["configuration"].map(CONFIGURATIONS) + " " + step, cell=cells)
    order = list(dict.fromkeys(rows["device"]))
    return rows.pivot(index="use", columns="device", values="cell")[order].rename_axis(columns=None).reset_index()


def density_error(rows: pd.DataFrame) -> pd.DataFrame:
    """Show the mean error of beta and the loss relative to the exact density, by regions and kind of logits."""
    table = rows.pivot(index="bins", columns="distribution")
    shown = pd.DataFrame({name: table[column].map("{:.2f}".format) for column, name in DENSITY_ERRORS.items()})
    return shown.rename_axis("regions").reset_index()


def front_times(rows: pd.DataFrame) -> pd.DataFrame:
    """Show GHM-C at FRONT_ELEMENTS: milliseconds, and in parentheses the ratio to cross entropy."""
    rows = _base(rows)
    rows = rows[_base_bins(rows) & (rows["loss"] == "ghmc") & rows["elements"].isin(FRONT_ELEMENTS)]
    rows = rows.assign(cell=[f"{three_digits(row.p50_ms)} ms ({row.ratio:.2f})" for row in rows.itertuples()])
    table = rows.pivot(index="implementation", columns="elements", values="cell").loc[list(FRONT_IMPLEMENTATIONS)]
    table.columns = [f"{elements:,} elements" for elements in table.columns]
    table.insert(0, "loss", list(FRONT_IMPLEMENTATIONS.values()))
    return table


def over_host(rows: pd.DataFrame) -> pd.DataFrame:
    """Show the host time for 128 examples, the ratio to the baseline, and the number of launches not timed."""
    rows = rows[(rows["timer"] == "host") & (rows["status"] == "ok")]
    rows = rows[rows["implementation"].isin([*HOST_IMPLEMENTATIONS, *BASELINES.values()])]
    rows = rows.sort_values(["loss", "p50_ms"])
    launches = pd.to_numeric(rows["launches"]).astype(int)
    return pd.DataFrame(
        {
            "loss": rows["loss"].map(LOSSES),
            "implementation": rows["implementation"].map(LABELS),
            "time of the host": [f"{three_digits(1e3 * value)} µs" for value in rows["p50_ms"]],
            "relative to the baseline": rows["ratio"].map("{:.2f}".format),
            "launches, not timed": launches,
        }
    )


def tables() -> dict[str, str]:
    """Make the tables by name, in Markdown."""
    rows, compiled = load([RESULTS / "sweep-cpu.csv"]), pd.read_csv(RESULTS / "compiled.csv")
    accuracy = pd.read_csv(RESULTS / "accuracy-cpu.csv")
    made = {
        "front-times": front_times(rows),
        "front-accuracy": front(FULL.reported(accuracy), FRONT_LOSSES, FRONT_TASKS),
        "elements": over_elements(rows),
        "softmax": over_logits(rows),
        "bins": over_bins(rows),
        "bounds": over_memory(compiled),
        "density-error": density_error(pd.read_csv(RESULTS / "density-error.csv")),
        "yolo": comparison(pd.read_csv(RESULTS / "yolo-cpu.csv")),
        "yolo-gradients": gradient_ratios(pd.read_csv(RESULTS / "yolo-gradients-cpu.csv")),
    }
    if (rows["timer"] == "host").any():
        made["host"] = over_host(rows)
    softmax = {"classification": "classification-cpu.csv", "fashion": "classification-fashion-cpu.csv"}
    texts = {name: as_markdown(table) for name, table in made.items()}
    for name, file in softmax.items():
        own = pd.read_csv(RESULTS / file)
        texts |= {name: classification_table(own) + "\n", f"{name}-differences": classification_differences(own)}
    return texts | accuracy_tables(accuracy) | {"volumes": volumes_table(pd.read_csv(RESULTS / "volumes-cpu.csv"))}


def pages() -> list[Path]:
    """Return the pages that may have tables."""
    return [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]


def updated(text: str, made: dict[str, str]) -> str:
    """Return the page with its tables replaced.

    Raises:
        KeyError: The page has a table of a name that is not made.
    """
    return TABLE.sub(lambda found: found[1] + made[found["name"]] + found[4], text)


def main(arguments: list[str] | None = None) -> None:
    """Run the command."""
    command_parser("perf.docs", __doc__).parse_args(arguments)
    made = tables()
    for page in pages():
        page.write_text(updated(page.read_text(encoding="utf-8"), made), encoding="utf-8")


if __name__ == "__main__":
    main()
