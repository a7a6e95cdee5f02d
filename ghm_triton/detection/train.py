"""Train a detector of torchvision with GHM-C and GHM-R on a data set in COCO's format.

    python -m ghm_triton.detection.train --data DIR --output RUN [--model small] [--loss ghm] [--resume]
    torchrun --nproc-per-node=2 -m ghm_triton.detection.train --data DIR --output RUN

RUN gets checkpoint.pt, metrics.csv (COCO's twelve numbers after each epoch), losses.png and ap.png.
"""

import argparse
import dataclasses
import pathlib
import signal
import sys
import time
import warnings

import torch

from .argument_types import device, real, whole
from .data.coco import CocoBoxes, Flipped
from .data.split_files import locate_split
from .losses import BOX_LOSSES, LOSSES, LossOptions, use_losses
from .models.builder import build_model
from .training.checkpoint import load_checkpoint, save_checkpoint
from .training.curves import draw_curves, write_metrics
from .training.engine import Trainer, epoch_batches
from .training.evaluation import average_precision, detect, warn_unreadable
from .training.processes import Processes, join_processes
from .training.schedules import warmup_and_falls

PAPER_EPOCHS, PAPER_STEPS = 14, (9, 12)


class Stopped(Exception):
    """A signal asked for the end of the training; its checkpoint is written."""


class Training:
    """The command: data, model and files around a :class:`Trainer`."""

    def __init__(self, options: argparse.Namespace, processes: Processes):
        self.options, self.processes = options, processes
        self.folder = pathlib.Path(options.output)
        self.checkpoint = self.folder / "checkpoint.pt"
        self.stopping = False
        self.unreadable = 0
        self.train_data, self.val_data = load_data(options)
        state = self._open_output()
        self.about = describe(options, self.train_data)
        if state is not None:
            check_same(state.get("about", {}), self.about)
        self.trainer = self._make_trainer(pretrained=state is None)
        if state is not None:
            self.trainer.load_state_dict(state)
        else:
            self._save(must=True)  # that the disk takes checkpoints is better known now

    def _open_output(self) -> dict | None:
        """The checkpoint to go on from, if any."""
        if self.options.resume:
            return load_checkpoint(self.checkpoint)
        if self.checkpoint.exists():
            raise FileExistsError(f"output: {self.checkpoint} exists; --resume goes on from it")
        self.folder.mkdir(parents=True, exist_ok=True)
        self.processes.gather(None)  # no process writes before all have looked
        return None

    def _make_trainer(self, *, pretrained: bool) -> Trainer:
        options, about = self.options, self.about
        torch.manual_seed(options.seed)
        model = build_model(
            options.model,
            len(about["categories"]),
            min_size=options.min_size,
            max_size=options.max_size,
            backbone_weights=options.backbone_weights if pretrained and options.backbone_weights != "none" else None,
        )
        several = self.processes.count > 1
        use_losses(model, LossOptions(**about["losses"]), sync=several)
        model.to(self.processes.device)
        steps = len(epoch_batches(len(self.train_data), options.batch_size, seed=0, epoch=0))
        falls = [steps * (epoch - 1) for epoch in milestones(options)]
        optimizer, schedule = warmup_and_falls(model, rate=options.lr, warmup=options.warmup, falls=falls)
        torch.manual_seed(options.seed + self.processes.rank)
        return Trainer(model, optimizer, schedule, processes=self.processes, clip=options.clip, amp=options.amp)

    def _save(self, *, must: bool = False) -> None:
        state = self.trainer.state_dict() | {"about": self.about}
        if not self.processes.first:
            return
        try:
            save_checkpoint(self.checkpoint, state)
        except OSError as error:
            if must:
                raise
            warnings.warn(f"{error}; the training goes on", stacklevel=2)

    def _after_step(self, targets: list[dict]) -> None:
        self.unreadable += warn_unreadable(targets)
        if self.stopping and self.processes.count == 1:
            self._save(must=True)
            raise Stopped
        if self.trainer.step % self.options.save_every == 0:
            self._save()

    def run(self) -> None:
        """Train the epochs that are left, with an evaluation after each."""
        options, trainer = self.options, self.trainer
        while trainer.epoch < options.epochs or self._lacks_evaluation():
            start = time.perf_counter()
            if not self._lacks_evaluation():
                data = Flipped(self.train_data, probability=options.flip, seed=options.seed, epoch=trainer.epoch)
                trainer.train_epoch(
                    data,
                    batch=options.batch_size,
                    seed=options.seed,
                    workers=options.workers,
                    after_step=self._after_step,
                )
                self._save()
            row = {"epoch": trainer.epoch, "seconds": time.perf_counter() - start, "unreadable": self.unreadable}
            trainer.metrics.append(row | trainer.log[-1] | {"epoch": trainer.epoch} | self._evaluate())
            self._save(must=trainer.epoch == options.epochs)
            if self.processes.first:
                write_metrics(self.folder / "metrics.csv", trainer.metrics)
                print("epoch {epoch}: AP {AP:.1f}, AP50 {AP50:.1f}, AP75 {AP75:.1f}".format_map(trainer.metrics[-1]))
        if self.processes.first:
            images = draw_curves(self.folder, trainer.log, trainer.metrics)
            print(", ".join(str(path) for path in (self.checkpoint, self.folder / "metrics.csv", *images)))

    def _lacks_evaluation(self) -> bool:
        """Whether the last epoch is complete and its evaluation is not: that was killed."""
        evaluated = self.trainer.metrics[-1]["epoch"] if self.trainer.metrics else 0
        return self.trainer.step == 0 and evaluated < self.trainer.epoch

    def _evaluate(self) -> dict[str, float]:
        """Of the images, each process looks at its part."""
        one = self.processes
        part = range(one.rank, len(self.val_data), one.count)
        found = one.gather(detect(self.trainer.network, self.val_data, indices=part))
        return average_precision(self.val_data.coco(), [result for results in found for result in results])


def load_data(options: argparse.Namespace) -> tuple[CocoBoxes, CocoBoxes]:
    """The data sets for training and validation, with the labels of the first."""
    places = [locate_split(options, split) for split in ("train", "val")]
    train = CocoBoxes(*places[0])
    return train, CocoBoxes(*places[1], category_ids=train.category_ids)


def describe(options: argparse.Namespace, data: CocoBoxes) -> dict:
    """What a checkpoint says of its model, and what must be the same to go on from it."""
    losses = LossOptions(**{field.name: getattr(options, field.name) for field in dataclasses.fields(LossOptions)})
    return {
        "model": options.model,
        "min_size": options.min_size,
        "max_size": options.max_size,
        "losses": dataclasses.asdict(losses),
        "categories": [{"id": one, "name": data.category_names[one]} for one in data.category_ids],
        "batch_size": options.batch_size,
        "seed": options.seed,
    }


def check_same(about: dict, expected: dict) -> None:
    """Raises a ValueError that names what in the `about` of a checkpoint differs from what is asked for."""
    for name, value in expected.items():
        if isinstance(value, dict):
            check_same(about.get(name, {}), value)
        elif about.get(name) != value:
            raise ValueError(f"{name} must be {about.get(name)!r} as in the checkpoint, got {value!r}")


def milestones(options: argparse.Namespace) -> list[int]:
    """The epochs, from 1, at whose start the rate falls."""
    if options.lr_steps is not None:
        return options.lr_steps
    return [round(options.epochs * step / PAPER_EPOCHS) for step in PAPER_STEPS]


def main(arguments: list[str] | None = None) -> int:
    """Train; 1 after an error in the input, which is printed, and 130 after a signal."""
    options = parse(arguments)
    with join_processes(options.device) as processes:
        try:
            if options.batch_size % processes.count:
                raise ValueError(
                    f"--batch-size must be a multiple of the {processes.count} processes, got {options.batch_size}"
                )
            training = Training(options, processes)
        except (OSError, ValueError) as error:
            print(f"error: {error}", file=sys.stderr)
            return 1

        def stop(*_):
            training.stopping = True

        before = {number: signal.signal(number, stop) for number in (signal.SIGINT, signal.SIGTERM)}
        try:
            training.run()
        except Stopped:
            print(f"stopped; --resume goes on from {training.checkpoint}")
            return 130
        except (OSError, ValueError, FloatingPointError) as error:
            print(f"error: {error}; --resume goes on from {training.checkpoint}", file=sys.stderr)
            return 1
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)
    return 0


def parse(arguments: list[str] | None) -> argparse.Namespace:
    """The options of the command."""
    parser = argparse.ArgumentParser(prog="python -m ghm_triton.detection.train", description=__doc__.splitlines()[0])
    add = parser.add_argument
    add(
        "--data",
        metavar="DIR",
        help="folder in COCO's layout: annotations/instances_{train,val}*.json and image folders",
    )
    for split in ("train", "val"):
        add(f"--{split}-json", metavar="FILE", help="annotations, instead of those in --data")
        add(f"--{split}-images", metavar="DIR", help="their images")
    add("--output", metavar="DIR", required=True, help="folder of the checkpoint, metrics.csv and the curves")
    add("--resume", action="store_true", help="go on from the checkpoint in --output")
    add(
        "--model",
        default="small",
        help="small, or a RetinaNet or FCOS of torchvision, as retinanet_resnet50_fpn_v2 (small)",
    )
    add("--backbone-weights", default="none", help="of torchvision, to be downloaded, as DEFAULT (none)")
    add("--min-size", type=whole(1), help="shorter side that images are scaled to, pixels (800; small: 96)")
    add("--max-size", type=whole(1), help="greatest longer side (1333)")
    add("--loss", choices=LOSSES, default="ghm", help="ghm: GHM-C and GHM-R; ghmc: with the model's box loss (ghm)")
    add("--box-loss", choices=BOX_LOSSES, help="instead of the one that belongs to --loss")
    add("--bins", type=whole(1), default=30, help="M of GHM-C (30)")
    add("--box-bins", type=whole(1), default=10, help="M of GHM-R (10)")
    add("--momentum", type=real(), default=0.75, help="of the densities (0.75)")
    add("--mu", type=real(above=0), default=0.02, help="of ASL1 (0.02)")
    add("--exponent", type=real(0, 1), default=1.0, help="of both densities; 1 is the paper, try 0.5 (1)")
    add("--variant", choices=["paper", "mmdet"], default="paper", help="(paper)")
    add("--class-loss-weight", type=real(0), default=1.0, help="(1)")
    add("--box-loss-weight", type=real(0), default=1.0, help="(1)")
    add("--epochs", type=whole(1), default=PAPER_EPOCHS, help="(14)")
    add("--batch-size", type=whole(1), default=16, help="images a step, of all processes together (16)")
    add("--lr", type=real(above=0), default=0.01, help="of SGD with momentum 0.9 and weight decay 1e-4 (0.01)")
    add(
        "--lr-steps",
        type=whole(1),
        nargs="*",
        metavar="EPOCH",
        help="at whose start the rate falls to a tenth (9 and 12 of 14)",
    )
    add("--warmup", type=whole(0), default=500, metavar="STEPS", help="from a third of the rate (500)")
    add("--clip", type=real(above=0), default=35.0, help="greatest norm of the gradient (35)")
    add("--flip", type=real(0, 1), default=0.5, help="part of the images that are mirrored, 0 for digits (0.5)")
    add("--amp", action="store_true", help="16-bit computation, float16 on GPUs and bfloat16 on the CPU")
    add("--workers", type=whole(0), default=2, help="processes that load images (2)")
    add("--save-every", type=whole(1), default=200, metavar="STEPS", help="between checkpoints within an epoch (200)")
    add("--seed", type=whole(0), default=0, help="(0)")
    add("--device", type=device, default="auto", help="auto, cpu, cuda or cuda:N (auto)")
    return parser.parse_args(arguments)


if __name__ == "__main__":
    sys.exit(main())
