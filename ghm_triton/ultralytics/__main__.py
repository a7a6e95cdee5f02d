"""Train a model of Ultralytics with GHM: what `yolo train` does, with another classification loss.

The task is that of the model: detection, instance segmentation, oriented boxes, poses, classification, or semantic
segmentation; or RT-DETR.

python -m ghm_triton.ultralytics model=yolo11n.yaml data=coco8.yaml epochs=100 imgsz=640 --exponent 0.5
"""

import argparse
from collections.abc import Sequence
from pathlib import Path

from ultralytics import RTDETR, YOLO
from ultralytics.cfg import parse_key_value_pair

from ..arguments import command_parser
from ..losses.harmonized_bce import HarmonizedBCELoss
from .trainer import OPTIONS, HarmonizedTrainer, trainer_of


def main(arguments: Sequence[str] | None = None) -> None:
    """Run the command."""
    options = _parse(arguments)
    settings = dict(options.settings)
    path = str(settings.pop("model"))
    model = RTDETR(path) if "rtdetr" in Path(path).stem.lower() else YOLO(path)  # as the command of Ultralytics
    try:
        base = trainer_of(model)
    except ValueError as error:
        raise SystemExit(f"error: {error}") from error
    trainer = type("Trainer", (base,), {name: getattr(options, name) for name in OPTIONS})
    model.train(trainer=trainer, **settings)


def _parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = command_parser("ghm_triton.ultralytics", __doc__)
    parser.add_argument(
        "settings",
        nargs="+",
        type=_setting,
        metavar="NAME=VALUE",
        help="training settings of Ultralytics; model is required",
    )
    parser.add_argument("--bins", type=int, default=HarmonizedTrainer.bins, help="number of unit regions")
    parser.add_argument(
        "--momentum",
        type=float,
        default=HarmonizedTrainer.momentum,
        help="momentum of the moving average of the density",
    )
    parser.add_argument(
        "--exponent",
        type=float,
        default=HarmonizedTrainer.exponent,
        help="exponent of the density: 1 is the paper, 0 is BCE",
    )
    parser.add_argument(
        "--preserve",
        choices=("value", "gradient"),
        default=HarmonizedTrainer.preserve,
        help="what the loss keeps of BCE: its value, or the L1 norm of its gradient",
    )
    options = parser.parse_intermixed_args(arguments)
    if "model" not in dict(options.settings):
        parser.error("model=... is required, for example model=yolo11n.yaml")
    try:
        HarmonizedBCELoss(bins=options.bins, momentum=options.momentum, exponent=options.exponent)
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
