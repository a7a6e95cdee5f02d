"""The settings that a checkpoint records about its training, and that a resumed training must repeat."""

import argparse
import dataclasses

from ..data.coco import CocoBoxes
from ..losses import LossOptions

# The options to repeat, besides those of the losses. --epochs and --steps may change.
_REPEATED = ("model", "min_size", "max_size", "recipe", "pretrain_steps", "batch_size", "lr", "lr_steps", "warmup")
_REPEATED += ("clip", "augment", "amp", "seed")


def describe(options: argparse.Namespace, data: CocoBoxes) -> dict:
    """Return what a checkpoint records about its training: the settings that a resumed training must share."""
    losses = LossOptions(**{field.name: getattr(options, field.name) for field in dataclasses.fields(LossOptions)})
    return {name: getattr(options, name) for name in _REPEATED} | {
        "losses": dataclasses.asdict(losses),
        "categories": [{"id": one, "name": data.category_names[one]} for one in data.category_ids],
        "images": len(data),
    }


def check_same(about: dict, expected: dict) -> None:
    """Raise a ValueError that names a setting that a resumed training has changed."""
    for name, value in (expected | expected["losses"]).items():
        before = (about | about.get("losses", {})).get(name)
        if name == "losses" or before == value:
            continue
        if name in ("categories", "images"):
            raise ValueError(f"{name} of the data must be {before!r} as in the checkpoint, got {value!r}")
        option = f"--{name.replace('_', '-')}"
        raise ValueError(
            f"{option} must be {before!r} as in the checkpoint, got {value!r}; "
            "repeat the options of the first run with --resume; only --epochs and --steps may change"
        )
