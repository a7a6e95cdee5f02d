"""A run of the command `train`: a :class:`Trainer` with its data, model and files."""

import argparse
import math
import pathlib
import sys
import time
import warnings
from collections.abc import Callable

import torch
from tqdm import tqdm

from ..data.augment import Augmented
from ..data.coco import CocoBoxes
from ..data.split_files import locate_split
from ..losses import stored_options, use_losses
from ..models.builder import build_model
from ..pretrain import load_backbone, pretrain
from .checkpoint import load_checkpoint, save_checkpoint
from .curves import draw_curves, write_metrics
from .density_figure import draw_density, observe
from .engine import Trainer
from .evaluation import average_precision, detect, warn_unreadable
from .pace import Pace
from .processes import Processes
from .recipes import complete, describe_plan, evaluated_every, make_optimizer
from .resume import check_same, describe
from .signals import Stopped, StopRequest

_EVALUATED = 16  # images per process between two checks of the stop request
_SEEN = 8  # images whose gradient density.png shows


class Run:
    """A training and its output folder.

    Args:
        options: The options of the command.
        processes: The processes that train together.
        request: The request to stop.

    Raises:
        OSError, ValueError: The data, the checkpoint or an option is missing or invalid.
    """

    def __init__(self, options: argparse.Namespace, processes: Processes, request: StopRequest):
        self.options, self.processes, self.request = options, processes, request
        self.folder = pathlib.Path(options.output)
        self.checkpoint = self.folder / "checkpoint.pt"
        self.unreadable = 0
        self.pace = Pace(self._say, "training", ", plus the evaluations")
        self.pretraining_pace = Pace(self._say, "pre-training")
        places = [locate_split(options, split) for split in ("train", "val")]
        self.train_data = CocoBoxes(*places[0])
        self.steps_per_epoch = math.ceil(len(self.train_data) / options.batch_size)
        self.val_data = CocoBoxes(*places[1], category_ids=self.train_data.category_ids)
        state = self._open_output()
        complete(options, len(self.train_data), resumed=(state or {}).get("about"))
        self.about = describe(options, self.train_data)
        self.pretraining = (state or {}).get("pretraining")  # its state, or "done"
        if state is not None:
            check_same(state.get("about", {}), self.about)
        self.trainer = self._make_trainer(download=state is None)
        if state is not None:
            self.trainer.load_state_dict(state)
        else:
            self._save(must=True)  # fails now rather than later if the disk is full

    def _say(self, text: str) -> None:
        if self.processes.first:
            tqdm.write(text)
            sys.stdout.flush()

    def _open_output(self) -> dict | None:
        """Return the checkpoint to resume, if any."""
        if self.options.resume:
            return load_checkpoint(self.checkpoint)
        if self.checkpoint.exists():
            raise FileExistsError(f"output must hold no checkpoint, got {self.checkpoint}; --resume continues from it")
        self.folder.mkdir(parents=True, exist_ok=True)
        self.processes.gather(None)  # no process writes before all have checked
        return None

    def _make_trainer(self, *, download: bool) -> Trainer:
        options = self.options
        torch.manual_seed(options.seed)
        weights = options.backbone_weights if download and options.backbone_weights != "none" else None
        model = build_model(
            options.model,
            len(self.about["categories"]),
            min_size=options.min_size,
            max_size=options.max_size,
            backbone_weights=weights,
        )
        use_losses(model, stored_options(self.about["losses"]), sync=self.processes.count > 1)
        model.to(self.processes.device)
        optimizer, schedule = make_optimizer(model, options, self.steps_per_epoch)
        torch.manual_seed(options.seed + self.processes.rank)
        return Trainer(model, optimizer, schedule, processes=self.processes, clip=options.clip, amp=options.amp)

    def _save(self, *, must: bool = False, name: str = "checkpoint.pt") -> None:
        state = self.trainer.state_dict() | {"about": self.about, "pretraining": self.pretraining}
        if not self.processes.first:
            return
        try:
            save_checkpoint(self.folder / name, state)
        except OSError as error:
            if must:
                raise
            warnings.warn(f"{error}; training continues", stacklevel=2)

    def _stop_if_asked(self, *, save: bool = True) -> None:
        if self.processes.any(self.request.asked):
            if save:
                self._save(must=True)
            raise Stopped

    def _after_step(self, targets: list[dict]) -> None:
        self.unreadable += warn_unreadable(targets)
        self._stop_if_asked()
        if self.trainer.step % self.options.save_every == 0:
            self._save()
        self.pace.step(self.steps_per_epoch * (self.options.epochs - self.trainer.epoch) - self.trainer.step)

    def _after_pretraining_step(self, step: int, state: Callable[[], dict]) -> None:
        asked = self.processes.any(self.request.asked)
        if asked or step % self.options.save_every == 0:
            self.pretraining = state()
            self._save(must=asked)
        if asked:
            raise Stopped
        self.pretraining_pace.step(self.options.pretrain_steps - step)

    def train(self) -> None:
        """Train the remaining epochs and evaluate.

        Raises:
            Stopped: A signal asked to stop, and the checkpoint is written.
        """
        options, trainer = self.options, self.trainer
        if trainer.epoch >= options.epochs and not self._lacks_evaluation():
            self._say(
                f"{self.checkpoint} is complete after {trainer.epoch} epochs; "
                f"to train on, repeat the command with --epochs {2 * trainer.epoch} --resume"
            )
            return
        self._say(describe_plan(options, len(self.train_data)))
        if trainer.epoch == trainer.step == 0 and self.pretraining != "done":
            self._prepare_backbone()
        start = time.perf_counter()
        while trainer.epoch < options.epochs or self._lacks_evaluation():
            if not self._lacks_evaluation():
                data = Augmented(self.train_data, options.augment, seed=options.seed, epoch=trainer.epoch)
                trainer.train_epoch(
                    data,
                    batch=options.batch_size,
                    seed=options.seed,
                    workers=options.workers,
                    after_step=self._after_step,
                )
                self._save()
            if self._lacks_evaluation():
                self._finish_epochs(time.perf_counter() - start)
                start = time.perf_counter()

    def _finish_epochs(self, seconds: float) -> None:
        """Evaluate, and write the metrics, the pictures, and the checkpoints."""
        trainer, before = self.trainer, [row["AP"] for row in self.trainer.metrics]
        row = {"epoch": trainer.epoch, "step": trainer.epoch * self.steps_per_epoch, "seconds": seconds}
        rate = {"lr": trainer.optimizer.param_groups[0]["lr"], "unreadable": self.unreadable}
        numbers = self._evaluate()
        trainer.metrics.append(row | trainer.since.take() | rate | numbers)
        if numbers["AP"] > max(before, default=-1):
            self._save(name="best.pt")
        self._save(must=trainer.epoch == self.options.epochs)
        if self.processes.first:
            write_metrics(self.folder / "metrics.csv", trainer.metrics)
            self._say("epoch {epoch}: AP {AP:.1f}, AP50 {AP50:.1f}, AP75 {AP75:.1f}".format_map(trainer.metrics[-1]))
        self._stop_if_asked(save=False)
        if self.processes.first:
            self._draw()

    def _prepare_backbone(self) -> None:
        """Load the small backbone from a file, or pre-train it, or continue the pre-training."""
        options, backbone = self.options, self.trainer.network.backbone
        if options.backbone is not None:
            load_backbone(backbone, options.backbone)
        elif options.pretrain_steps:
            percent = pretrain(
                backbone,
                steps=options.pretrain_steps,
                seed=options.seed,
                resume=self.pretraining,
                after_step=self._after_pretraining_step,
                show=self.processes.first,
            )
            self._say(f"pre-training: {percent:.1f}% of held-out crops of digits right")
            self.processes.broadcast(backbone)  # different processors may round differently
        self.pretraining = "done"
        self._save()

    def _lacks_evaluation(self) -> bool:
        """Whether an evaluation follows the last epoch and is not complete."""
        epoch, evaluated = self.trainer.epoch, self.trainer.metrics[-1]["epoch"] if self.trainer.metrics else 0
        due = epoch % evaluated_every(self.options, self.steps_per_epoch) == 0 or epoch >= self.options.epochs
        return self.trainer.step == 0 and evaluated < epoch and due

    def _evaluate(self) -> dict[str, float]:
        """Return COCO's metrics. Each process runs the detector on its part of the images."""
        one = self.processes
        found, chunk = [], _EVALUATED * one.count
        for first in range(0, len(self.val_data), chunk):
            indices = range(first, min(first + chunk, len(self.val_data)))[one.rank :: one.count]
            found += detect(self.trainer.network, self.val_data, indices=indices)
            self._stop_if_asked()
        return average_precision(self.val_data.coco(), [one for part in one.gather(found) for one in part])

    def _draw(self) -> None:
        """Draw the pictures after an epoch."""
        trainer = self.trainer
        images = draw_curves(self.folder, trainer.log, trainer.metrics)
        items = [self.train_data[index] for index in range(min(_SEEN, len(self.train_data)))]
        images.append(draw_density(self.folder / "density.png", observe(trainer.network, items)))
        if trainer.epoch == self.options.epochs:
            written = [self.checkpoint, *self.folder.glob("best.pt"), self.folder / "metrics.csv", *images]
            self._say(", ".join(map(str, written)))
