"""Compare losses of a softmax classifier on images with a long tail of classes and with wrong labels.

    python -m perf.classification --out classification.csv

The images are scikit-learn's digits, or Fashion-MNIST from Debian's package dataset-fashion-mnist or a folder.

The command appends a row after each run. Started again, it continues where it stopped. It ends with tables and a
figure beside the CSV. All losses share one small network, its initial weights, and the order of the batches. The
learning rate is searched in the same grid for each loss in each setting, on images that are not reported.
"""

import argparse
import itertools
import sys
import time
from collections.abc import Sequence
from pathlib import Path

import torch
from torch import nn

from ghm_triton.arguments import command_parser, real, whole

from ..provenance import provenance
from ..resumable_csv import ResumableCsv, continued
from .images import CLASSES, DATA, Images, load_images
from .losses import LOSSES, Loss, class_counts
from .plan import KEY, SETTING, TUNING_SEEDS, reported, tuning
from .report import differences, plot, table
from .split import Split, split

BATCH = 128
HIDDEN = 64
WEIGHT_DECAY = 1e-2
RECALLS = [f"recall_{rank}" for rank in range(CLASSES)]
COLUMNS = [*KEY, "steps", "accuracy", *RECALLS, "seconds", "torch", "commit"]


def train(data: Split, loss: Loss, *, rate: float, steps: int, seed: int) -> nn.Module:
    """Train a classifier for this many steps of BATCH images and return it."""
    torch.manual_seed(seed)
    model = nn.Sequential(nn.Linear(data.train_images.shape[1], HIDDEN), nn.ReLU(), nn.Linear(HIDDEN, CLASSES))
    optimizer = torch.optim.AdamW(model.parameters(), lr=rate, weight_decay=WEIGHT_DECAY)
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
    """Return the accuracy on the test images, and the recall of each class."""
    right = model(data.test_images).argmax(1) == data.test_labels
    recalls = [right[data.test_labels == rank].float().mean().item() for rank in range(CLASSES)]
    return {"accuracy": right.float().mean().item(), **dict(zip(RECALLS, recalls))}


def run(images: Images, setting: dict, *, steps: int) -> dict:
    """Do one run of the plan and return its row. A tuning seed has its test images from the training images."""
    if setting["seed"] in TUNING_SEEDS:
        images = images._replace(test_images=None, test_labels=None)
    data = split(images, imbalance=setting["imbalance"], wrong_labels=setting["wrong_labels"], seed=setting["seed"])
    loss = LOSSES[setting["loss"]](class_counts(data.train_labels, CLASSES))
    start = time.perf_counter()
    model = train(data, loss, rate=setting["rate"], steps=steps, seed=setting["seed"])
    seconds = time.perf_counter() - start
    return setting | {"steps": steps, "seconds": seconds} | scores(model, data)


def main(arguments: Sequence[str] | None = None) -> int:
    """Do the runs that have no row yet, and print the tables. Return the exit code."""
    options, rows, images = _parse(arguments)
    torch.set_num_threads(options.threads)
    about = {name: value for name, value in provenance().items() if name in COLUMNS}
    values = itertools.product([options.data], options.imbalance, options.wrong_labels, options.losses)
    settings = [dict(zip(SETTING, each)) for each in values]
    for setting in tuning(settings):
        if setting not in rows:
            rows.append(run(images, setting, steps=options.steps) | about)
    for setting in reported(settings, rows.read(), options.seeds):
        if setting not in rows:
            rows.append(run(images, setting, steps=options.steps) | about)
    image = options.out.with_suffix(".png")
    print(table(rows.read()), differences(rows.read()), sep="\n\n")
    plot(rows.read(), image)
    print(f"{len(rows.done)} rows in {options.out}, figure in {image}")
    return 0


def _parse(arguments: Sequence[str] | None) -> tuple[argparse.Namespace, ResumableCsv, Images]:
    """Return the options, the existing rows, and the images."""
    parser = command_parser("perf.classification", __doc__)
    add = parser.add_argument
    add("--out", type=Path, default=Path("classification.csv"), help="CSV to write or to continue")
    add("--data", choices=DATA, default="digits", help="images to learn")
    add("--root", metavar="DIR", type=Path, help="of Fashion-MNIST in torchvision's format; Debian's if not given")
    add("--imbalance", nargs="+", type=real(1), default=[1.0, 10.0, 100.0], help="first class to last class")
    add("--wrong-labels", nargs="+", type=real(0, 1), default=[0.0, 0.2, 0.4], help="fraction of the training labels")
    add("--losses", nargs="+", choices=LOSSES, default=list(LOSSES), metavar="LOSS", help="names of losses")
    add("--seeds", type=whole(1), default=10, help="reported runs per setting and loss")
    add("--steps", type=whole(1), default=300, help=f"of {BATCH} images")
    add("--threads", type=whole(1), default=1, help="of PyTorch")
    options = parser.parse_args(arguments)
    rows = continued(parser, options, COLUMNS, KEY, same="data steps")
    if options.root is not None and options.data == "digits":
        parser.error(f"argument --root: must be left out with --data digits, got {options.root}")
    try:
        return options, rows, load_images(options.data, options.root)
    except FileNotFoundError as error:
        parser.error(f"argument --data: {error}")


if __name__ == "__main__":
    sys.exit(main())
