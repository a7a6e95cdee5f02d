"""Train Ultralytics' yolo11n from scratch with binary cross entropy and with GHM-C, and compare the AP.

The data are scenes of digits of ten classes, 96 pixels. Except for the classification loss, all settings are the
defaults of Ultralytics. The command appends a row after each run, and continues where it stopped when it is
started again. It prints the table and draws a figure beside the CSV.
"""

import argparse
import csv
import itertools
import os
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

import pandas as pd
import torch

os.environ.setdefault("YOLO_OFFLINE", "true")  # before ultralytics is first imported: it looks for the network

import ultralytics
from ultralytics import YOLO
from ultralytics.models.yolo.detect import DetectionTrainer

from ghm_triton.arguments import command_parser, whole
from ghm_triton.check.columns import ORIGIN
from ghm_triton.detection.digits import main as write_digits
from ghm_triton.ultralytics import GHMDetectionTrainer

from ..legend import COLORS
from ..markdown_table import as_markdown
from ..provenance import now, provenance
from ..resumable_csv import ResumableCsv
from .yolo_tables import KEY, comparison, label

VALUES = ["AP", "AP50", "curve", "counts", "cpu_seconds", "ultralytics", "threads"]
COLUMNS = [*KEY, *VALUES, *ORIGIN, "measured_at"]
PRESERVED = ("value", "gradient")
LOSS_COLORS = {"BCE": COLORS["bce"], "GHM-C": COLORS["eager"]}


def train(run: dict, data: Path, folder: Path) -> dict:
    """Do one run in `folder` and return the values of its row.

    The AP is that of the best checkpoint, as Ultralytics reports it. The curve holds "epoch:AP". The counts are the
    density after training.
    """
    trainer = DetectionTrainer
    if run["loss"] == "GHM-C":
        options = {"exponent": float(run["exponent"]), "preserve": run["preserve"]}
        trainer = type("Trainer", (GHMDetectionTrainer,), options)
    model = YOLO(f"{run['model']}.yaml")
    settings = {name: run[name] for name in ("imgsz", "epochs", "batch", "seed")}
    settings |= {"data": str(data), "project": str(folder), "device": "cpu", "plots": False, "verbose": False}
    started = time.process_time()
    metrics = model.train(trainer=trainer, **settings)
    seconds = time.process_time() - started
    with open(model.trainer.csv, newline="") as file:
        curve = " ".join(
            f"{row['epoch']}:{100 * float(row['metrics/mAP50-95(B)']):.2f}" for row in csv.DictReader(file)
        )
    counts = ""
    if run["loss"] == "GHM-C":
        counts = " ".join(f"{count:.1f}" for count in model.trainer.density()["detect"].counts.tolist())
    scores = {"AP": 100 * metrics.box.map, "AP50": 100 * metrics.box.map50}
    return scores | {"curve": curve, "counts": counts, "cpu_seconds": seconds}


def plot(rows: pd.DataFrame, path: Path) -> None:
    """Draw the AP over the epochs: a thin line per seed, a thick line for their mean."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    figure, axes = pyplot.subplots(figsize=(6.5, 4.5), layout="constrained")
    for _, own in rows.groupby(["loss", "exponent", "preserve"], sort=False):
        curves = pd.DataFrame([dict(pair.split(":") for pair in curve.split()) for curve in own["curve"]]).astype(float)
        curves.columns = curves.columns.astype(int)
        color = LOSS_COLORS[own["loss"].iloc[0]]
        axes.plot(curves.columns, curves.T.values, color=color, linewidth=0.7, alpha=0.5)
        axes.plot(
            curves.columns, curves.mean(), color=color, linewidth=2, label=f"{label(own.iloc[0])}, {len(own)} seeds"
        )
    axes.set(xlabel="epoch", ylabel="AP", title="yolo11n on digits: AP on held-out scenes")
    axes.grid(True, alpha=0.3)
    figure.legend(loc="outside lower center", ncols=2)
    figure.savefig(path, dpi=120)
    pyplot.close(figure)


def main(arguments: Sequence[str] | None = None) -> int:
    """Do the runs that are left, and print the table. Return the exit code."""
    options = _parse(arguments)
    torch.set_num_threads(options.threads)
    table = ResumableCsv(options.out, COLUMNS, KEY)
    common = {"model": "yolo11n", "images": options.images, "imgsz": 96, "epochs": options.epochs, "batch": 16}
    forms = itertools.product(options.exponents, options.preserve)
    losses = [("BCE", "0", "-"), *(("GHM-C", f"{exponent:g}", preserve) for exponent, preserve in forms)]
    about = provenance() | {"ultralytics": ultralytics.__version__, "threads": options.threads}
    with tempfile.TemporaryDirectory() as folder:
        data = Path(folder, "data")
        counts = ["--train", str(options.images), "--val", str(options.scenes)]
        write_digits([str(data), "--format", "yolo", "--style", "hard", *counts])
        for seed in range(1, options.seeds + 1):
            for loss, exponent, preserve in losses:
                run = common | {"loss": loss, "exponent": exponent, "preserve": preserve, "seed": seed}
                if run not in table:
                    values = train(run, data / "data.yaml", Path(folder, "runs"))
                    table.append(run | values | about | {"measured_at": now()})
    rows = table.read()
    print(as_markdown(comparison(rows)))
    plot(rows, options.out.with_suffix(".png"))
    return 0


def _parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = command_parser("perf.accuracy.yolo", __doc__)
    add = parser.add_argument
    add("--exponents", nargs="+", metavar="RHO", type=float, default=[0.5], help="exponents of GHM-C")
    add("--preserve", nargs="+", choices=PRESERVED, default=["value"], help="what the scale of GHM-C keeps of BCE")
    add("--seeds", type=whole(1), default=3, help="runs per loss")
    add("--epochs", type=whole(1), default=20, help="epochs per run")
    add("--images", type=whole(1), default=1000, help="training images")
    add("--scenes", type=whole(1), default=200, help="held-out scenes for the evaluation")
    add("--threads", type=whole(1), default=1, help="CPU threads of PyTorch")
    add("--out", type=Path, default=Path("perf/results/yolo-cpu.csv"), help="CSV to continue")
    return parser.parse_args(arguments)


if __name__ == "__main__":
    sys.exit(main())
