"""The tables and the figure of the comparison."""

from pathlib import Path

import pandas as pd

from ..markdown_table import as_markdown
from ..paired import difference
from .losses import LOSSES, RIVALS
from .plan import with_chosen_rate

OURS = "GHM 0.5"
TAIL = ["recall_7", "recall_8", "recall_9"]


def means(rows: pd.DataFrame) -> pd.DataFrame:
    """Return the mean and the standard deviation over the seeds, in percent, of each setting and loss.

    Columns: accuracy, and tail, the mean recall of the three classes with the fewest training images.
    """
    rows = with_chosen_rate(rows)
    rows = rows.assign(tail=rows[TAIL].mean(axis=1))
    grouped = rows.groupby(["imbalance", "wrong_labels", "loss"], sort=False)[["accuracy", "tail"]]
    return 100 * grouped.agg(["mean", "std"])


def table(rows: pd.DataFrame) -> str:
    """Make a Markdown table with a line per setting: accuracy ± standard deviation (recall of the tail) per loss."""
    found = means(rows)
    names = [name for name in LOSSES if name in set(rows["loss"])]
    lines = ["| imbalance | wrong labels | " + " | ".join(names) + " |", "| --- " * (2 + len(names)) + "|"]
    for (imbalance, wrong), own in found.groupby(level=[0, 1]):
        cells = []
        for name in names:
            if (imbalance, wrong, name) not in own.index:
                cells.append("")
                continue
            row = own.loc[(imbalance, wrong, name)]
            spread = "" if pd.isna(row["accuracy", "std"]) else f" ± {row['accuracy', 'std']:.1f}"  # of one seed
            cells.append(f"{row['accuracy', 'mean']:.1f}{spread} ({row['tail', 'mean']:.0f})")
        lines.append(f"| {imbalance:g} | {wrong:.0%} | " + " | ".join(cells) + " |")
    return "\n".join(lines)


def differences(rows: pd.DataFrame) -> str:
    """Make a Markdown table with a line per setting: points of accuracy between pairs of losses, paired by seed.

    A cell holds the mean and half of its 95% interval. The best rival is the one with the highest mean.
    """
    lines = []
    for (imbalance, wrong), own in with_chosen_rate(rows).groupby(["imbalance", "wrong_labels"]):
        by_seed = 100 * own.pivot(index="seed", columns="loss", values="accuracy")
        best = by_seed[[name for name in RIVALS if name in by_seed]].mean().idxmax()
        pairs = {
            f"{OURS} - cross entropy": (OURS, "cross entropy"),
            f"{OURS} - focal": (OURS, "focal"),
            f"{OURS} - best rival": (OURS, best),
            f"{OURS} adjusted - logit adjustment": (f"{OURS} adjusted", "logit adjustment"),
            f"{OURS} adjusted - best rival": (f"{OURS} adjusted", best),
        }
        line = {"imbalance": f"{imbalance:g}", "wrong labels": f"{wrong:.0%}", "best rival": best}
        for title, (first, second) in pairs.items():
            there = first in by_seed and second in by_seed
            mean, half, _ = difference(by_seed[first], by_seed[second]) if there else (0.0, float("nan"), 0)
            line[title] = "" if pd.isna(half) else f"{mean:+.1f} ± {half:.1f}"
        lines.append(line)
    return as_markdown(pd.DataFrame(lines))


def plot(rows: pd.DataFrame, path: Path) -> None:
    """Draw the accuracy and the recall of the tail over the imbalance, a panel per fraction of wrong labels."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    found = means(rows)
    fractions = sorted(rows["wrong_labels"].unique())
    size = (4 * len(fractions), 7)
    figure, axes = pyplot.subplots(2, len(fractions), figsize=size, squeeze=False, layout="constrained")
    for line, (kind, label) in enumerate(
        [("accuracy", "accuracy [%]"), ("tail", "recall of the 3 rarest classes [%]")]
    ):
        for column, fraction in enumerate(fractions):
            axis = axes[line][column]
            for name in LOSSES:
                own = found[(found.index.get_level_values(1) == fraction) & (found.index.get_level_values(2) == name)]
                if own.empty:
                    continue
                x = own.index.get_level_values(0)
                style = "--" if not name.startswith("GHM") else "-"
                axis.errorbar(x, own[kind, "mean"], own[kind, "std"], fmt=style, marker="o", capsize=2, label=name)
            axis.set(xscale="log", xlabel="imbalance", ylabel=label, title=f"{fraction:.0%} wrong labels")
            axis.grid(alpha=0.3)
    handles, labels = axes[0][0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside lower center", ncols=2 * len(fractions))  # more would not fit
    figure.suptitle("Accuracy on balanced test images after training on a long tail and wrong labels")
    figure.savefig(path, dpi=110)
    pyplot.close(figure)
