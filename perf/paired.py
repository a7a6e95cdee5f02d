"""Differences between methods, paired by seed: both trained on the same data, in the same order, from one start."""

import pandas as pd
from scipy.stats import t

CONFIDENCE = 0.95


def difference(first: pd.Series, second: pd.Series) -> tuple[float, float, int]:
    """Return (mean, half of the 95% t-interval, number of seeds) of `first - second`, scores by seed."""
    both = (first - second).dropna()
    count = len(both)
    half = t.ppf((1 + CONFIDENCE) / 2, count - 1) * both.std() / count**0.5 if count > 1 else float("nan")
    return both.mean(), half, count
