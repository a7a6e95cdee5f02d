"""Descriptions of the settings of the comparison."""

import dataclasses

import pandas as pd

from .plan import Run

CHANGES = {  # the description of a setting that differs from the paper's
    "exponent": "exponent {:g}",
    "bins": "M {:g}",
    "momentum": "momentum {:g}",
    "mu": "mu {:g}",
    "variant": "{}",
    "batch": "{:g} images per step",
    "scene_size": "scenes of {:g} pixels",
    "digits": "{} digits",
    "missing": "{:.0%} of the boxes missing",
    "wrong": "{:.0%} of the classes wrong",
    "jitter": "jitter {:.0%}",
}
PAPER = {field.name: field.default for field in dataclasses.fields(Run)} | {"exponent": 1.0}


def describe(run: Run | pd.Series) -> str:
    """Return the losses, and the settings that differ from the paper's, in words."""
    changed = [text.format(getattr(run, name)) for name, text in CHANGES.items() if getattr(run, name) != PAPER[name]]
    return ", ".join([run.losses, *changed])


def spread(values: pd.Series) -> str:
    """Return the mean and, for several values, the standard deviation."""
    return f"{values.mean():.1f}" + (f" ± {values.std():.1f}" if len(values) > 1 else "")
