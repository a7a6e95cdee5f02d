"""Compare binary cross entropy and GHM-C in Ultralytics' trainer: yolo11n from scratch on scenes of digits.

    python -m perf.accuracy_yolo --seeds 3

Everything but the classification loss is Ultralytics' default. A row of the CSV is one training; runs that it holds are not repeated.
"""

import argparse
import csv
import sys
import tempfile
import time
from pathlib import Path

import pandas as pd
import torch
from ultralytics import YOLO
from ultralytics.models.yolo.detect import DetectionTrainer

from ghm_triton.ultralytics import GHMDetectionTrainer
from perf.table import ORIGIN, Table, now, origin

KEY = ["model", "loss", "exponent", "images", "imgsz", "epochs", "batch", "seed"]
VALUES = ["AP", "AP50", "curve", "counts", "cpu_seconds", "ultralytics", "threads"]
EXPONENT = 0.5


def train(run: dict, data: Path, folder: Path) -> dict:
    trainer = DetectionTrainer
    if run["loss"] == "GHM-C":
        trainer = type("Trainer", (GHMDetectionTrainer,), {"exponent": run["exponent"]})
    model = YOLO(f"{run['model']}.yaml")
    options = {name: run[name] for name in ("imgsz", "epochs", "batch", "seed")}
    started = time.process_time()
    metrics = model.train(
        data=data, project=folder, name="run", device="cpu", plots=False, verbose=False, trainer=trainer, **options
    )
    seconds = time.process_time() - started
    with open(Path(model.trainer.save_dir, "results.csv")) as file:
        rows = list(csv.DictReader(file))
    curve = " ".join(f"{row['epoch']}:{100 * float(row['metrics/mAP50-95(B)']):.2f}" for row in rows)
    counts = ""
    if isinstance(model.trainer, GHMDetectionTrainer):
        counts = " ".join(f"{count:.1f}" for count in model.trainer.density()["detect"].counts.tolist())
    return {
        "AP": 100 * metrics.box.map,
        "AP50": 100 * metrics.box.map50,
        "curve": curve,
        "counts": counts,
        "cpu_seconds": seconds,
    }


def main(arguments=None) -> int:
    parser = argparse.ArgumentParser()
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--images", type=int, default=1000)
    parser.add_argument("--epochs", type=int, default=20)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--exponents", type=float, nargs="+", default=[EXPONENT])
    parser.add_argument("--out", type=Path, default=Path("perf/results/yolo-cpu.csv"))
    options = parser.parse_args(arguments)
    import ultralytics

    torch.set_num_threads(1)
    table = Table(options.out, KEY + VALUES + ORIGIN, KEY)
    common = {"model": "yolo11n", "images": options.images, "imgsz": 96, "epochs": options.epochs, "batch": 16}
    losses = [("BCE", 0.0), *(("GHM-C", exponent) for exponent in options.exponents)]
    runs = [
        common | {"loss": loss, "exponent": exponent, "seed": seed}
        for seed in range(1, options.seeds + 1)
        for loss, exponent in losses
    ]
    about = origin() | {
        "ultralytics": ultralytics.__version__,
        "threads": torch.get_num_threads(),
        "measured_at": now(),
    }
    for run in runs:
        if run in table:
            continue
        with tempfile.TemporaryDirectory() as folder:
            values = train(run, options.data, Path(folder))
        table.append(run | values | about | {"measured_at": now()})
        print(run, {name: values[name] for name in ("AP", "AP50", "cpu_seconds")}, flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())
