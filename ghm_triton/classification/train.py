"""Compares losses of a softmax classifier on images with a long tail of classes and with wrong labels.

    python -m ghm_triton.classification.train --out classification.csv

The images are scikit-learn's digits, or Fashion-MNIST from Debian's package dataset-fashion-mnist or a folder.

The command appends a row after each run. Started again, it continues where it stopped. It ends with a table and a
figure beside the CSV. All losses share one small network, its initial weights, the order of the batches, and the
settings of the optimizer. None of these was tuned for a loss.
"""

import argparse
import itertools
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path

import pandas as pd
import torch
from torch import Tensor, nn

from ..detection.argument_types import real, whole
from .images import CLASSES, DATA, Images, load_images
from .losses import LOSSES
from .report import plot, table
from .split import Split, split

BATCH = 128
HIDDEN = 64
RATE = 3e-3
WEIGHT_DECAY = 1e-2
KEY = ["data", "imbalance", "wrong_labels", "seed", "loss"]
RECALLS = [f"recall_{rank}" for rank in range(CLASSES)]
COLUMNS = [*KEY, "steps", "accuracy", *RECALLS, "seconds", "torch"]


def train(data: Split, loss: Callable[[Tensor, Tensor], Tensor], *, steps: int, seed: int) -> nn.Module:
    """A classifier of the training images after so many steps of BATCH images."""
    torch.manual_seed(seed)
    model = nn.Sequential(nn.Linear(data.train_images.shape[1], HIDDEN), nn.ReLU(), nn.Linear(HIDDEN, CLASSES))
    optimizer = torch.optim.AdamW(model.parameters(), lr=RATE, weight_decay=WEIGHT_DECAY)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, steps)
    for _ in range(steps):
        batch = torch.randint(len(data.train_labels), (BATCH,))
        value = loss(model(data.train_images[batch]), data.train_labels[batch])
        optimizer.zero_grad()
        value.backward()
        optimizer.step()
        schedule.step()
    return model


@torch.no_grad()
def scores(model: nn.Module, data: Split) -> dict[str, float]:
    """The accuracy on the test images, and the recall of each class."""
    right = model(data.test_images).argmax(1) == data.test_labels
    recalls = [right[data.test_labels == rank].float().mean().item() for rank in range(CLASSES)]
    return {"accuracy": right.float().mean().item(), **dict(zip(RECALLS, recalls))}


def main(arguments: Sequence[str] | None = None) -> int:
    """Does the runs that have no row yet, and prints the table. Returns the exit code."""
    options, rows, images = _parse(arguments)
    torch.set_num_threads(options.threads)
    done = set(rows[KEY].itertuples(index=False, name=None))
    options.out.parent.mkdir(parents=True, exist_ok=True)
    settings = itertools.product(range(options.seeds), options.imbalance, options.wrong_labels)
    for seed, imbalance, wrong_labels in settings:
        keys = [(options.data, imbalance, wrong_labels, seed, name) for name in options.losses]
        keys = [key for key in keys if key not in done]
        if not keys:
            continue
        data = split(images, imbalance=imbalance, wrong_labels=wrong_labels, seed=seed)
        for key in keys:
            start = time.perf_counter()
            model = train(data, LOSSES[key[-1]](), steps=options.steps, seed=seed)
            row = dict(zip(KEY, key)) | {"steps": options.steps} | scores(model, data)
            row |= {"seconds": time.perf_counter() - start, "torch": torch.__version__}
            header = not options.out.exists()
            pd.DataFrame([row], columns=COLUMNS).to_csv(
                options.out, mode="a", header=header, index=False, float_format="%.6g"
            )
    rows = pd.read_csv(options.out)
    print(table(rows))
    image = options.out.with_suffix(".png")
    plot(rows, image)
    print(f"{len(rows)} rows in {options.out}, figure in {image}")
    return 0


def _parse(arguments: Sequence[str] | None) -> tuple[argparse.Namespace, pd.DataFrame, Images]:
    """(options, the rows that are there already, the images)"""

    class Help(argparse.ArgumentDefaultsHelpFormatter, argparse.RawDescriptionHelpFormatter):
        pass

    parser = argparse.ArgumentParser(
        prog="python -m ghm_triton.classification.train", description=__doc__, formatter_class=Help
    )
    add = parser.add_argument
    add("--out", type=Path, default=Path("classification.csv"), help="CSV to write or to continue")
    add("--data", choices=DATA, default="digits", help="images to learn")
    add("--root", metavar="DIR", type=Path, help="of Fashion-MNIST in torchvision's format; Debian's if not given")
    add("--imbalance", nargs="+", type=real(1), default=[1.0, 10.0, 100.0], help="first class to last class")
    add("--wrong-labels", nargs="+", type=real(0, 1), default=[0.0, 0.2, 0.4], help="share of the training labels")
    add("--losses", nargs="+", choices=LOSSES, default=list(LOSSES), metavar="LOSS", help="names of losses")
    add("--seeds", type=whole(1), default=10, help="runs per setting and loss")
    add("--steps", type=whole(1), default=300, help=f"of {BATCH} images")
    add("--threads", type=whole(1), default=1, help="of PyTorch")
    options = parser.parse_args(arguments)
    rows = pd.read_csv(options.out) if options.out.exists() else pd.DataFrame(columns=COLUMNS)
    if list(rows.columns) != COLUMNS:
        parser.error(f"argument --out: must be a file that this command wrote, got {options.out} with other columns")
    for name in ("data", "steps"):
        if set(rows[name]) - {getattr(options, name)}:
            first, given = rows[name].iloc[0], getattr(options, name)
            parser.error(f"argument --{name}: must be {first}, as in the rows of {options.out}, got {given}")
    if options.root is not None and options.data == "digits":
        parser.error(f"argument --root: must be left out with --data digits, got {options.root}")
    try:
        return options, rows, load_images(options.data, options.root)
    except FileNotFoundError as error:
        parser.error(f"argument --data: {error}")


if __name__ == "__main__":
    sys.exit(main())
