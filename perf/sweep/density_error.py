"""Print how far the weights of unit regions are from those of the exact gradient density, by number of bins.

Both densities see the same logits, with windows and regions of the same width 1 / M. The table has:

- mean error: of beta, relative to the exact one, over all elements;
- p95 error: its 95th percentile;
- mean error, hard: over the elements with a gradient norm of at least 0.5;
- loss ratio: the loss with unit regions over that with the exact density.
"""

import sys
from collections.abc import Sequence
from pathlib import Path

import pandas as pd
import torch
import torch.nn.functional as F

import ghm_triton
from ghm_triton.arguments import command_parser, whole

from ..exact_density import exact_weights
from ..markdown_table import as_markdown
from .cases import CLASSES, Case
from .data import make_data

BINS = (5, 10, 20, 30, 40, 100, 300)
DISTRIBUTIONS = ("start", "trained", "uniform")
COLUMNS = {
    "mean_error": "mean error",
    "p95_error": "p95 error",
    "hard_mean_error": "mean error, hard",
    "loss_ratio": "loss ratio",
}


def density_error(case: Case) -> dict:
    """Compute the row of one case, in float64."""
    data = make_data(case, torch.device("cpu"))
    logits, target = data.input.detach().double(), data.one_hot.double()
    norm = (logits.sigmoid() - target).abs()
    exact = exact_weights(norm, bins=case.bins)
    losses = F.binary_cross_entropy_with_logits(logits, target, reduction="none")
    weighted = ghm_triton.ghmc_loss(logits, target, bins=case.bins, exponent=1.0, reduction="none")
    error = ((weighted / losses) / exact - 1).abs()
    hard = norm >= 0.5
    rank = max(1, round(0.95 * error.numel()))  # torch.quantile takes at most 2^24 elements
    return {
        "distribution": case.distribution,
        "bins": case.bins,
        "elements": case.elements,
        "hard_elements": int(hard.sum()),
        "mean_error": error.mean().item(),
        "p95_error": error.flatten().kthvalue(rank).values.item(),
        "hard_mean_error": error[hard].mean().item(),
        "loss_ratio": (weighted.sum() / (losses * exact).sum()).item(),
    }


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command and return its exit code."""
    parser = command_parser("perf.sweep.density_error", __doc__)
    parser.add_argument(
        "--anchors", type=whole(1), default=12_500, help=f"number of anchors, with {CLASSES} classes each"
    )
    parser.add_argument("--bins", nargs="+", type=whole(1), metavar="M", default=list(BINS), help="numbers of bins")
    parser.add_argument("--out", type=Path, help="CSV to write; without it, the table is only printed")
    options = parser.parse_args(arguments)
    cases = [
        Case("ghmc", options.anchors, CLASSES, bins=m, distribution=d) for d in DISTRIBUTIONS for m in options.bins
    ]
    table = pd.DataFrame([density_error(case) for case in cases])
    print(as_markdown(density_error_table(table)))
    if options.out:
        options.out.parent.mkdir(parents=True, exist_ok=True)
        table.to_csv(options.out, index=False, float_format="%.6g")
        print(f"written to {options.out}")
    return 0


def density_error_table(rows: pd.DataFrame) -> pd.DataFrame:
    """Return the rows as they are shown: errors in percent."""
    table = rows[["distribution", "bins"]].rename(columns={"distribution": "logits"})
    for name, heading in COLUMNS.items():
        table[heading] = rows[name].map("{:.3f}".format if name == "loss_ratio" else "{:.1%}".format)
    return table


if __name__ == "__main__":
    sys.exit(main())
