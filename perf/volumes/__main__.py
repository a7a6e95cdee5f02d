"""Compare classification losses of MONAI's 3D RetinaNet on volumes with small blobs, with and without a sampler.

    python -m perf.volumes --out volumes.csv

The command appends a row after each run. Started again, it continues where it stopped. Each loss has the same grid of
learning rates and weights of the box loss. Its best cell on seed 0 and on other held-out volumes is used for the seeds
that are reported. It ends with a table.
"""

import argparse
import itertools
import sys
import time
import warnings
from collections.abc import Iterator, Sequence
from pathlib import Path

import monai
import torch

from ghm_triton.arguments import command_parser, whole

from ..provenance import now, provenance
from ..resumable_csv import ResumableCsv, continued
from .detector import METRICS, average_precision, train
from .losses import WAYS
from .report import best_cell, table
from .volumes import draw

RATES = (2e-3, 6e-3, 1.8e-2)
BOX_WEIGHTS = (0.004, 0.04, 0.4, 4.0)
GRID_SEED = 0  # its runs are not reported
HELD_OUT = {"grid": 0, "main": 1}  # seeds of the held-out volumes
KEY = ["stage", "loss", "rate", "box_weight", "seed"]
COLUMNS = [*KEY, "steps", "volumes", *METRICS, "seconds", "threads", "torch", "monai", "commit", "measured_at"]


def runs(rows: ResumableCsv, losses: Sequence[str], seeds: int) -> Iterator[dict]:
    """Yield the runs that have no row yet: the grid of each loss, then the seeds with the best cell."""
    for loss, rate, box_weight in itertools.product(losses, RATES, BOX_WEIGHTS):
        run = {"stage": "grid", "loss": loss, "rate": rate, "box_weight": box_weight, "seed": GRID_SEED}
        if run not in rows:
            yield run
    for seed, loss in itertools.product(range(1, seeds + 1), losses):
        run = {"stage": "main", "loss": loss, **best_cell(rows.read(), loss), "seed": seed}
        if run not in rows:
            yield run


def main(arguments: Sequence[str] | None = None) -> int:
    """Do the runs that have no row yet, and print the table. Return the exit code."""
    options, rows = _parse(arguments)
    torch.set_num_threads(options.threads)
    warnings.filterwarnings("ignore", "No anchor is matched")  # one blob in a hundred
    about = {name: value for name, value in provenance().items() if name in COLUMNS}
    about |= {
        "threads": options.threads,
        "steps": options.steps,
        "volumes": options.volumes,
        "monai": monai.__version__,
    }
    for run in runs(rows, options.losses, options.seeds):
        settings = {name: run[name] for name in ("rate", "box_weight", "seed")}
        start = time.perf_counter()
        detector = train(WAYS[run["loss"]], steps=options.steps, **settings)
        seconds = time.perf_counter() - start
        held_out = [draw(0, HELD_OUT[run["stage"]], item) for item in range(options.volumes)]
        scores = average_precision(detector, held_out)
        rows.append(run | scores | about | {"seconds": seconds, "measured_at": now()})
        print(*run.values(), *(f"{name} {value:.1f}" for name, value in scores.items()), flush=True)
    print(table(rows.read()))
    print(f"{len(rows.done)} rows in {options.out}")
    return 0


def _parse(arguments: Sequence[str] | None) -> tuple[argparse.Namespace, ResumableCsv]:
    """Return the options and the existing rows."""
    parser = command_parser("perf.volumes", __doc__)
    add = parser.add_argument
    add("--out", type=Path, default=Path("volumes.csv"), help="CSV to write or to continue")
    add("--losses", nargs="+", choices=WAYS, default=list(WAYS), metavar="LOSS", help="names of losses")
    add("--seeds", type=whole(1), default=6, help="reported runs per loss")
    add("--steps", type=whole(4), default=150, help="of 4 volumes")
    add("--volumes", type=whole(1), default=120, help="held out for the evaluation")
    add("--threads", type=whole(1), default=1, help="of PyTorch")
    options = parser.parse_args(arguments)
    return options, continued(parser, options, COLUMNS, KEY, same="steps volumes")


if __name__ == "__main__":
    sys.exit(main())
