"""Train a detector of torchvision with GHM-C and GHM-R on a data set in COCO's format.

    python -m ghm_triton.detection.train --data DIR --output RUN [--recipe small] [--loss ghm] [--resume]
    torchrun --nproc-per-node=2 -m ghm_triton.detection.train --data DIR --output RUN

After each epoch, RUN holds checkpoint.pt, metrics.csv with COCO's twelve numbers, losses.png, ap.png and density.png. A
run that is killed or stopped at any step goes on with --resume.
"""

import argparse
import contextlib
import sys
import warnings

from .argument_types import command_parser, device, real, whole
from .losses import BOX_LOSSES, LOSSES
from .training.processes import join_processes
from .training.recipes import RECIPES, recipe_defaults
from .training.run import Run
from .training.signals import Stopped, catch_stop_signals


def main(arguments: list[str] | None = None) -> int:
    """Trains. Returns 1 after an error, which is printed, and 130 after a signal."""
    options = parse(arguments)
    with join_processes(options.device) as processes, catch_stop_signals() as request:
        run = None
        hint = ""
        try:
            check(options, processes.count)
            run = Run(options, processes, request)
            hint = f"; repeat the command with --resume to go on from {run.checkpoint}"
            run.train()
        except Stopped:
            if processes.first:
                with contextlib.suppress(OSError):  # the terminal may be closed
                    print(f"stopped{hint}", flush=True)
            return 130
        except (OSError, ValueError, FloatingPointError) as error:
            print(f"error: {error}{hint}", file=sys.stderr)
            return 1
    return 0


def check(options: argparse.Namespace, processes: int) -> None:
    """Raises a ValueError where options do not go together."""
    if options.batch_size % processes:
        raise ValueError(f"--batch-size must be a multiple of the {processes} processes, got {options.batch_size}")
    if options.recipe == "small":
        for name in ("warmup", "lr_steps"):
            if getattr(options, name) is not None:
                option = f"--{name.replace('_', '-')}"
                raise ValueError(
                    f"{option} must be left out with --recipe small, whose rate follows one cycle, "
                    f"got {getattr(options, name)}"
                )
    if options.model != "small":
        for option, value in (("--pretrain-steps", options.pretrain_steps), ("--backbone", options.backbone)):
            if value:
                raise ValueError(f"{option} must be left out with --model {options.model}, got {value}")
    if options.amp and options.device.type == "cpu":
        warnings.warn(
            "--amp computes in bfloat16, which most CPUs do about ten times slower than float32", stacklevel=2
        )


def parse(arguments: list[str] | None) -> argparse.Namespace:
    """Returns the options of the command. Their defaults are those of the recipe."""
    choices = argparse.ArgumentParser(add_help=False, allow_abbrev=False)
    choices.add_argument(
        "--model", default="small", help="small, or a RetinaNet or FCOS of torchvision: retinanet_resnet50_fpn_v2, ..."
    )
    choices.add_argument("--loss", choices=LOSSES, default="ghm", help="ghm: GHM-C and GHM-R; ghmc: GHM-C alone")
    choices.add_argument(
        "--recipe",
        choices=list(RECIPES),
        help="small: pre-training, AdamW and one cycle, exponent 0.5 (default for --model small); "
        "paper: SGD and the paper's schedule and losses (default for other models)",
    )
    first, _ = choices.parse_known_args(arguments)
    recipe = first.recipe or ("small" if first.model == "small" else "paper")
    parser = command_parser("train", __doc__, parents=[choices], allow_abbrev=False)
    _add_data(parser)
    _add_losses(parser)
    _add_schedule(parser)
    parser.set_defaults(recipe=recipe, **recipe_defaults(recipe, first.model, first.loss))
    return parser.parse_args(arguments)


def _add_data(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument
    add("--data", metavar="DIR", help="in COCO's layout: annotations/instances_{train,val}*.json and image folders")
    for split in ("train", "val"):
        add(f"--{split}-json", metavar="FILE", help="annotations, instead of those in --data")
        add(f"--{split}-images", metavar="DIR", help="their images")
    add("--output", metavar="DIR", required=True, help="folder of the checkpoint, metrics.csv and the pictures")
    add("--resume", action="store_true", help="go on from the checkpoint in --output")
    add("--min-size", type=whole(1), help="shorter side that images are scaled to, pixels (small: 96, others: 800)")
    add("--max-size", type=whole(1), help="greatest longer side, pixels (small: 96, others: 1333)")
    add("--flip", type=real(0, 1), default=0.5, help="share of the images that are mirrored; 0 for digits")
    add("--workers", type=whole(0), default=2, help="processes that load images")
    add("--device", type=device, default="auto", help="auto, cpu, cuda, cuda:N, ...")


def _add_losses(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument
    add("--box-loss", choices=BOX_LOSSES, help="instead of the one that belongs to --loss")
    add("--exponent", type=real(0, 1), help="of both densities: 1 is the paper, 0.5 is recommended elsewhere")
    add("--bins", type=whole(1), default=30, help="unit regions of GHM-C")
    add("--box-bins", type=whole(1), default=10, help="unit regions of GHM-R")
    add("--momentum", type=real(), default=0.75, help="of the densities")
    add("--mu", type=real(above=0), default=0.02, help="of ASL1")
    add("--variant", choices=["paper", "mmdet"], default="paper", help="of both losses")
    add("--class-loss-weight", type=real(0), default=1.0, help="factor of the classification loss")
    add("--box-loss-weight", type=real(0), help="factor of the box loss")


def _add_schedule(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument
    add("--backbone-weights", default="none", help="of torchvision, to be downloaded: DEFAULT, ...")
    add("--pretrain-steps", type=whole(0), help="of the small backbone, on crops of digits")
    add("--backbone", metavar="FILE", help="of ghm_triton.detection.pretrain, instead of the pre-training")
    add("--epochs", type=whole(1), help="passes over the images")
    add("--batch-size", type=whole(1), help="images per step, of all processes together")
    add("--lr", type=real(above=0), help="greatest learning rate")
    add(
        "--lr-steps",
        type=whole(2),
        nargs="*",
        metavar="EPOCH",
        help="starts of the epochs where the rate falls to a tenth",
    )
    add("--warmup", type=whole(0), metavar="STEPS", help="from a third of the rate; at most a tenth of the run")
    add("--clip", type=real(above=0), default=35.0, help="greatest norm of the gradient")
    add("--amp", action="store_true", help="16-bit computation, float16 on GPUs and bfloat16 on the CPU")
    add("--save-every", type=whole(1), default=200, metavar="STEPS", help="between checkpoints within an epoch")
    add("--seed", type=whole(0, 2**63 - 1), default=0, help="of the weights, the order and the flips")


if __name__ == "__main__":
    sys.exit(main())
