"""The runs of the comparison, and how the learning rate of each is chosen."""

import itertools
from collections.abc import Iterator, Sequence

import pandas as pd

RATES = (1e-3, 3e-3, 1e-2, 3e-2)
TUNING_SEEDS = (1001, 1002)  # their test images are held out of the training images, and they are not reported
SETTING = ["data", "imbalance", "wrong_labels", "loss"]
KEY = [*SETTING, "seed", "rate"]


def tuning(settings: Sequence[dict]) -> Iterator[dict]:
    """Return the runs that the learning rates are chosen from."""
    for seed, setting, rate in itertools.product(TUNING_SEEDS, settings, RATES):
        yield setting | {"seed": seed, "rate": rate}


def reported(settings: Sequence[dict], rows: pd.DataFrame, seeds: int) -> Iterator[dict]:
    """Return the runs that are reported, each with the rate that is chosen from `rows`."""
    rates = chosen(rows)
    for seed, setting in itertools.product(range(seeds), settings):
        yield setting | {"seed": seed, "rate": rates[tuple(setting.values())]}


def chosen(rows: pd.DataFrame) -> dict[tuple, float]:
    """Return the learning rate with the highest mean accuracy over the tuning seeds, by setting."""
    rows = rows[rows["seed"].isin(TUNING_SEEDS)]
    means = rows.groupby([*SETTING, "rate"])["accuracy"].mean()
    return {setting: own.idxmax()[-1] for setting, own in means.groupby(level=SETTING)}


def with_chosen_rate(rows: pd.DataFrame) -> pd.DataFrame:
    """Return the rows that are reported: those of the chosen rates, without those of the tuning seeds."""
    rates = chosen(rows)
    settings = rows[SETTING].itertuples(index=False, name=None)
    current = [rates.get(setting) == rate for setting, rate in zip(settings, rows["rate"])]
    return rows[pd.Series(current, index=rows.index, dtype=bool) & ~rows["seed"].isin(TUNING_SEEDS)]
