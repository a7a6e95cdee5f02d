"""Train a YOLO detector with GHM-C: what `yolo detect train` does, with another classification loss.

python -m ghm_triton.ultralytics model=yolo11n.yaml data=coco8.yaml epochs=100 imgsz=640 --exponent 0.5
"""

import argparse
from collections.abc import Sequence

from ultralytics import YOLO
from ultralytics.cfg import parse_key_value_pair

from ..arguments import command_parser
from .criterion import HarmonizedBCE
from .trainer import GHMDetectionTrainer


def main(arguments: Sequence[str] | None = None) -> None:
    options = _parse(arguments)
    settings = dict(options.settings)
    names = ("bins", "momentum", "exponent")
    trainer = type("Trainer", (GHMDetectionTrainer,), {name: getattr(options, name) for name in names})
    YOLO(settings.pop("model"), task="detect").train(trainer=trainer, **settings)


def _parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = command_parser("ghm_triton.ultralytics", __doc__)
    parser.add_argument(
        "settings",
        nargs="+",
        type=_setting,
        metavar="NAME=VALUE",
        help="training settings of Ultralytics; model is required",
    )
    parser.add_argument("--bins", type=int, default=GHMDetectionTrainer.bins, help="number of unit regions")
    parser.add_argument(
        "--momentum",
        type=float,
        default=GHMDetectionTrainer.momentum,
        help="momentum of the moving average of the density",
    )
    parser.add_argument(
        "--exponent",
        type=float,
        default=GHMDetectionTrainer.exponent,
        help="exponent of the density: 1 is the paper, 0 is BCE",
    )
    options = parser.parse_intermixed_args(arguments)
    if "model" not in dict(options.settings):
        parser.error("model=... is required, for example model=yolo11n.yaml")
    try:
        HarmonizedBCE(bins=options.bins, momentum=options.momentum, exponent=options.exponent)
    except ValueError as error:
        parser.error(str(error))
    return options


def _setting(text: str) -> tuple[str, object]:
    try:
        return parse_key_value_pair(text)
    except (AssertionError, ValueError) as error:
        raise argparse.ArgumentTypeError(f"must be NAME=VALUE, got {text!r}") from error


if __name__ == "__main__":
    main()
