"""Measure the gradient norms of YOLO's classification term in the first steps of training.

One model is trained with binary cross entropy. In each step, the gradients of three losses with respect to the same
logits are measured: binary cross entropy, GHM-C as the trainer scales it, and GHM-C with the weights beta as they are.
"""

import argparse
import os
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path

import pandas as pd
import torch
from torch import nn

os.environ.setdefault("YOLO_OFFLINE", "true")  # before ultralytics is first imported: it looks for the network

from ultralytics import YOLO

from ghm_triton import GHMCLoss, HarmonizedBCELoss
from ghm_triton.arguments import command_parser, whole
from ghm_triton.detection.digits import main as write_digits
from ghm_triton.ultralytics import GHMDetectionTrainer

from ..legend import COLORS
from ..markdown_table import as_markdown
from .yolo_tables import gradient_ratios

OPTIONS = {name: getattr(GHMDetectionTrainer, name) for name in ("bins", "momentum", "exponent")}
LINES = {"BCE": COLORS["bce"], "GHM-C": COLORS["eager"], "GHM-C, not scaled": COLORS["region_loop"]}


class GradientRecorder(nn.Module):
    """Binary cross entropy that also measures the gradients of the three losses."""

    def __init__(self):
        super().__init__()
        self.losses = {
            "BCE": nn.BCEWithLogitsLoss(reduction="none"),
            "GHM-C": HarmonizedBCELoss(**OPTIONS),
            "GHM-C, not scaled": GHMCLoss(reduction="none", **OPTIONS),
        }
        self.rows: list[dict] = []

    def forward(self, logits: torch.Tensor, target: torch.Tensor) -> torch.Tensor:
        """Measure the gradients, and return binary cross entropy per element."""
        if logits.requires_grad:
            step = len(self.rows) // len(self.losses) + 1
            for name, loss in self.losses.items():
                x = logits.detach().requires_grad_()
                total = loss(x, target).sum()
                (gradient,) = torch.autograd.grad(total, x)
                norms = {"value": total.item(), "l1": gradient.abs().sum().item(), "l2": gradient.norm().item()}
                self.rows.append({"step": step, "loss": name, **norms, "target_sum": target.sum().item()})
        return self.losses["BCE"](logits, target)


def measure(images: int, epochs: int) -> pd.DataFrame:
    """Return a row per step and loss: value, L1 and L2 norm of the gradient, before the division by `target_sum`."""
    recorder = GradientRecorder()

    def record(trainer):
        trainer.model.criterion = trainer.model.init_criterion()
        trainer.model.criterion.bce = recorder

    with tempfile.TemporaryDirectory() as folder:
        write_digits([f"{folder}/data", "--format", "yolo", "--style", "hard", "--train", str(images), "--val", "16"])
        model = YOLO("yolo11n.yaml")
        model.add_callback("on_train_start", record)
        settings = {"imgsz": 96, "batch": 16, "device": "cpu", "plots": False, "verbose": False, "val": False}
        model.train(data=f"{folder}/data/data.yaml", project=f"{folder}/runs", epochs=epochs, **settings)
    return pd.DataFrame(recorder.rows)


def plot(rows: pd.DataFrame, path: Path) -> None:
    """Draw both norms over the steps, divided by the sum of the target scores, as the term is."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    figure, panels = pyplot.subplots(1, 2, figsize=(11, 4.2), layout="constrained")
    for axes, name, title in zip(panels, ("l1", "l2"), ("L1 norm", "L2 norm")):
        for loss, own in rows.groupby("loss", sort=False):
            label = loss if name == "l1" else None
            axes.plot(own["step"], own[name] / own["target_sum"].clip(lower=1), color=LINES[loss], label=label)
        axes.set(xlabel="step", ylabel=f"{title} of the gradient", yscale="log", title=f"{title}, logits of a batch")
        axes.grid(True, which="both", alpha=0.3)
    figure.legend(loc="outside lower center", ncols=len(LINES))
    figure.savefig(path, dpi=120)
    pyplot.close(figure)


def main(arguments: Sequence[str] | None = None) -> int:
    """Measure, write the CSV and the figure, and print the table. Return the exit code."""
    options = _parse(arguments)
    torch.set_num_threads(1)
    rows = measure(options.images, options.epochs)
    rows.to_csv(options.out, index=False, float_format="%.5g")
    plot(rows, options.figure)
    print(as_markdown(gradient_ratios(rows)))
    return 0


def _parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = command_parser("perf.accuracy.yolo_gradients", __doc__)
    add = parser.add_argument
    add("--images", type=whole(1), default=1000, help="training images, 16 per step")
    add("--epochs", type=whole(1), default=3, help="training epochs")
    add("--out", type=Path, default=Path("perf/results/yolo-gradients-cpu.csv"), help="CSV to write")
    add("--figure", type=Path, default=Path("docs/images/yolo-gradients.png"), help="figure to draw")
    return parser.parse_args(arguments)


if __name__ == "__main__":
    sys.exit(main())
