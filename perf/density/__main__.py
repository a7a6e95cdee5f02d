"""Draw what harmonizing does to the gradient density of a trained detector.

    python -m perf.density RUN/checkpoint.pt

Reads the moving average of GHM-C's counts from a checkpoint of `ghm_triton.detection.train`, writes it as a CSV, and
draws the counts, the share of each region in the total weight, and the weight of an example, for a few exponents.
Without a checkpoint, only draws the CSV.
"""

from pathlib import Path

import pandas as pd
import torch

from ghm_triton import GHMCLoss
from ghm_triton.arguments import command_parser
from ghm_triton.detection.training.checkpoint import load_checkpoint
from ghm_triton.regions import state_size

EXPONENTS = {0.0: "cross entropy", 0.5: "exponent 0.5", 1.0: "exponent 1 (the paper)"}
COLORS = {0.0: "tab:gray", 0.5: "tab:blue", 1.0: "tab:orange"}
COUNTS = "head.classification_loss.running_counts"


def read_counts(checkpoint: Path) -> pd.DataFrame:
    """Read one row per region: its edges, and the moving average of the number of elements in it.

    Raises:
        OSError: The file does not exist, or cannot be read.
        ValueError: It is not a checkpoint of a detector with GHM-C.
    """
    state = load_checkpoint(checkpoint)["model"]
    if COUNTS not in state:
        raise ValueError(
            f"checkpoint must be of a RetinaNet or FCOS trained with GHM-C, got {checkpoint} without {COUNTS}"
        )
    loss = GHMCLoss(bins=len(state[COUNTS]) - 1)
    loss.load_state_dict({"running_counts": state[COUNTS]})
    density = loss.density()
    return pd.DataFrame({"low": density.edges[:-1], "high": density.edges[1:], "count": density.counts})


def shares(counts: pd.Series, exponent: float) -> pd.DataFrame:
    """Compute the share of each region in the total weight, and the weight of an element of it."""
    loss = GHMCLoss(bins=len(counts), exponent=exponent)
    state = torch.ones(state_size(len(counts), "paper"))
    state[:-1] = torch.tensor(counts.to_numpy())
    loss.load_state_dict({"running_counts": state})
    density = loss.density()
    return pd.DataFrame({"share": density.shares, "weight": density.weights})


def draw(rows: pd.DataFrame, path: Path) -> None:
    """Draw the counts, the shares and the weights over the gradient norm."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    edges = [*rows.low, rows.high.iloc[-1]]
    figure, (left, middle, right) = pyplot.subplots(1, 3, figsize=(12, 3.6), layout="constrained")
    left.stairs(rows["count"].clip(lower=0.1), edges, fill=True, baseline=0.1, color="tab:gray", alpha=0.6)
    left.set(yscale="log", ylabel="elements per step", title="Nearly all gradients are tiny")
    for exponent, name in EXPONENTS.items():
        own = shares(rows["count"], exponent)
        style = {"color": COLORS[exponent], "label": name, "linewidth": 2}
        middle.stairs(100 * own.share, edges, baseline=None, **style)
        right.stairs(own.weight.where(rows["count"] > 0), edges, baseline=None, **style)
    middle.set(ylabel="share of the total weight, %", title="Harmonizing spreads the weight", yscale="log")
    right.set(ylabel="weight of an element", title="by weighting rare gradients more", yscale="log")
    for axes in (left, middle, right):
        axes.set(xlabel="gradient norm g", xlim=(0, 1))
        axes.grid(True, alpha=0.3)
    figure.legend(*middle.get_legend_handles_labels(), loc="outside lower center", ncols=len(EXPONENTS), frameon=False)
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=110)
    pyplot.close(figure)


def main(arguments: list[str] | None = None) -> None:
    """Run the command."""
    parser = command_parser("perf.density", __doc__.splitlines()[0])
    parser.add_argument(
        "checkpoint", type=Path, nargs="?", help="checkpoint.pt of a training with GHM-C; without it, --csv is read"
    )
    parser.add_argument("--csv", type=Path, default=Path("perf/results/density-cpu.csv"), help="CSV of the counts")
    parser.add_argument("--image", type=Path, default=Path("docs/images/density.png"), help="figure to write")
    options = parser.parse_args(arguments)
    if options.checkpoint is not None:
        try:
            counts = read_counts(options.checkpoint)
        except (OSError, ValueError) as error:
            parser.error(str(error))
        options.csv.parent.mkdir(parents=True, exist_ok=True)
        counts.to_csv(options.csv, index=False, float_format="%.6g")
    draw(pd.read_csv(options.csv), options.image)
    print(f"{options.csv}, {options.image}")


if __name__ == "__main__":
    main()
