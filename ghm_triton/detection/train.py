"""Train a torchvision detector with GHM-C and GHM-R on a data set in COCO's format.

    python -m ghm_triton.detection.train --data DIR --output RUN
    python -m ghm_triton.detection.train --data DIR --output RUN --resume
    python -m ghm_triton.detection.train --data DIR --output RUN --model retinanet_resnet50_fpn_v2
    torchrun --nproc-per-node=2 -m ghm_triton.detection.train --data DIR --output RUN

After each evaluation, RUN holds checkpoint.pt, best.pt, metrics.csv with COCO's twelve metrics, losses.png, ap.png, and
density.png. --resume continues a run that was killed or stopped at any step.
"""

import argparse
import contextlib
import os
import sys
import warnings

from ..arguments import command_parser, device, plain_warnings, real, whole
from .data.augment import AUGMENTATIONS
from .losses import BOX_LOSSES, LOSSES, NORMALIZE
from .training.processes import join_processes
from .training.recipes import RECIPES, recipe_defaults
from .training.run import Run
from .training.signals import Stopped, catch_stop_signals


def main(arguments: list[str] | None = None) -> int:
    """Run the training. Print an error and return 1 for it, or 130 after a signal."""
    options = parse(arguments)
    with plain_warnings(), join_processes(options.device) as processes, catch_stop_signals() as request:
        run = None
        hint = ""
        try:
            check(options, processes.count)
            run = Run(options, processes, request)
            hint = f"; repeat the command with --resume to continue from {run.checkpoint}"
            run.train()
        except Stopped:
            if processes.first:
                with contextlib.suppress(OSError):  # the terminal may be closed
                    print(f"stopped{hint}", flush=True)
            return 130
        except (ImportError, OSError, ValueError, FloatingPointError) as error:
            print(f"error: {error}{hint}", file=sys.stderr)
            return 1
    return 0


def check(options: argparse.Namespace, processes: int) -> None:
    """Raise a ValueError if options contradict one another."""
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
    """Return the options of the command. Their defaults are those of the recipe."""
    choices = argparse.ArgumentParser(add_help=False, allow_abbrev=False)
    _add_choices(choices)
    first, _ = choices.parse_known_args(arguments)
    recipe = first.recipe or ("small" if first.model in ("small", "lite0") else "paper")
    parser = command_parser(
        "ghm_triton.detection.train", __doc__, allow_abbrev=False, usage="%(prog)s --data DIR --output RUN [options]"
    )
    _add_choices(parser.add_argument_group("model, losses, and recipe: the defaults below depend on them"))
    _add_data(parser.add_argument_group("data and output"))
    _add_schedule(parser.add_argument_group("schedule"), recipe)
    _add_pretraining(parser.add_argument_group("initial weights"))
    _add_losses(parser.add_argument_group("settings of the losses"))
    _add_machine(parser.add_argument_group("machine"))
    parser.set_defaults(recipe=recipe, **recipe_defaults(recipe, first.model, first.loss))
    options = parser.parse_args(arguments)
    if options.epochs is options.steps is None:
        options.epochs, options.steps = RECIPES[recipe]["epochs"], RECIPES[recipe]["steps"]
    return options


def _add_choices(group: argparse._ActionsContainer) -> None:
    add = group.add_argument
    add(
        "--model",
        default="small",
        help="small, lite0, or a RetinaNet, FCOS, or SSD of torchvision: retinanet_resnet50_fpn_v2, ...",
    )
    add("--loss", choices=LOSSES, default="ghm", help="ghm: GHM-C and GHM-R; ghmc: GHM-C alone")
    add(
        "--recipe",
        choices=list(RECIPES),
        help="small: pre-training, AdamW, one cycle of the learning rate (default for --model small and lite0); "
        "paper: SGD and the paper's schedule (default for other models)",
    )


def _add_data(group: argparse._ActionsContainer) -> None:
    add = group.add_argument
    add(
        "--data",
        metavar="DIR",
        help="data set in COCO's layout: annotations/instances_{train,val}*.json and image folders",
    )
    for split in ("train", "val"):
        add(f"--{split}-json", metavar="FILE", help="annotations to use instead of those in --data")
        add(f"--{split}-images", metavar="DIR", help=f"folder of the images of --{split}-json")
    add("--output", metavar="RUN", required=True, help="folder for the checkpoints, metrics.csv, and the figures")
    add("--resume", action="store_true", help="continue from the checkpoint in --output")
    add(
        "--min-size",
        type=whole(1),
        help="shorter side of the resized images, in pixels (small: 96, lite0: 192, others: 800)",
    )
    add("--max-size", type=whole(1), help="maximum longer side, in pixels (small: 96, lite0: 192, others: 1333)")
    text = "flip: mirror half of the images; aerial: also rotate and recolor, for images from above; none: for digits"
    add("--augment", choices=list(AUGMENTATIONS), help=text)


def _add_schedule(group: argparse._ActionsContainer, recipe: str) -> None:
    add = group.add_argument
    default = {
        name: f" (default: {RECIPES[recipe][name]})" if RECIPES[recipe][name] else "" for name in ("epochs", "steps")
    }
    length = group.add_mutually_exclusive_group()
    text = "number of passes over the images"
    length.add_argument("--epochs", type=whole(1), help=text + default["epochs"])
    text = "training steps instead of --epochs, rounded up to whole epochs"
    length.add_argument("--steps", type=whole(1), help=text + default["steps"])
    add("--batch-size", type=whole(1), help="images per step, over all processes")
    add("--lr", type=real(above=0), help="maximum learning rate")
    add(
        "--lr-steps",
        type=whole(2),
        nargs="*",
        metavar="EPOCH",
        help="epochs at whose start the learning rate falls to a tenth; the first epoch is 1",
    )
    add(
        "--warmup",
        type=whole(0),
        metavar="STEPS",
        help="steps over which the rate rises from a third of --lr; at most a tenth of the run",
    )
    add("--clip", type=real(above=0), default=35.0, help="maximum norm of the gradient")
    add(
        "--seed",
        type=whole(0, 2**63 - 1),
        default=0,
        help="random seed of the weights, the order of the images, and the augmentation",
    )


def _add_pretraining(group: argparse._ActionsContainer) -> None:
    add = group.add_argument
    text = "none, or DEFAULT: ImageNet weights, for lite0 from the extra lite0, else downloaded by torchvision"
    add("--backbone-weights", help=text)
    text = (
        "pre-training steps of the small backbone, on crops of digits (small: twice the training steps, at most 1500)"
    )
    add("--pretrain-steps", type=whole(0), help=text)
    add("--backbone", metavar="FILE", help="weights from ghm_triton.detection.pretrain, instead of pre-training")


def _add_losses(group: argparse._ActionsContainer) -> None:
    add = group.add_argument
    add(
        "--normalize",
        choices=NORMALIZE,
        default="batch",
        help="focal and ce: divide by the positive anchors of the batch, or of each image as torchvision does",
    )
    add("--box-loss", choices=BOX_LOSSES, help="box loss to use instead of the default for --loss")
    add(
        "--exponent",
        type=real(0, 1),
        help="exponent of both densities: 1 is the paper",
    )
    add("--bins", type=whole(1), default=30, help="number of unit regions of GHM-C")
    add("--box-bins", type=whole(1), default=10, help="number of unit regions of GHM-R")
    add("--momentum", type=real(), default=0.75, help="momentum of the moving averages of the densities")
    add("--mu", type=real(above=0), default=0.02, help="transition point of ASL1, in units of the box deltas")
    add("--class-loss-weight", type=real(0), default=1.0, help="factor of the classification loss")
    add("--box-loss-weight", type=real(0), help="factor of the box loss")


def cores() -> int:
    """Return the number of cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def _add_machine(group: argparse._ActionsContainer) -> None:
    add = group.add_argument
    add("--device", type=device, default="auto", help="auto, cpu, cuda, cuda:N, ...")
    add("--workers", type=whole(0), default=min(2, cores()), help="number of processes that load images")
    add("--amp", action="store_true", help="compute in 16 bits: float16 on GPUs, bfloat16 on the CPU")
    add("--save-every", type=whole(1), default=200, metavar="STEPS", help="steps between checkpoints within an epoch")


if __name__ == "__main__":
    sys.exit(main())
