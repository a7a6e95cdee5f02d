"""A training of the command `train`: data, model and files around a :class:`Trainer`."""

import argparse
import math
import pathlib
import time
import warnings

import torch

from ..data.augment import Augmented
from ..data.coco import CocoBoxes
from ..data.split_files import locate_split
from ..losses import LossOptions, use_losses
from ..models.builder import build_model
from ..pretrain import load_backbone, pretrain
from .checkpoint import load_checkpoint, save_checkpoint
from .curves import draw_curves, write_metrics
from .density import draw_density, observe
from .engine import Trainer
from .evaluation import average_precision, detect, warn_unreadable
from .processes import Processes
from .recipes import describe_schedule, make_optimizer
from .resume import check_same, describe
from .signals import Stopped, StopRequest

_EVALUATED = 16  # images per process between two looks at the stop request
_SEEN = 8  # images that density.png shows the gradient of


class Run:
    """A training with its folder.

    Args:
        options: The options of the command.
        processes: The processes that train together.
        request: Asks to stop.

    Raises:
        OSError, ValueError: The data, the checkpoint or an option is not as it should be.
    """

    def __init__(self, options: argparse.Namespace, processes: Processes, request: StopRequest):
        self.options, self.processes, self.request = options, processes, request
        self.folder = pathlib.Path(options.output)
        self.checkpoint = self.folder / "checkpoint.pt"
        self.unreadable = 0
        places = [locate_split(options, split) for split in ("train", "val")]
        self.train_data = CocoBoxes(*places[0])
        self.val_data = CocoBoxes(*places[1], category_ids=self.train_data.category_ids)
        state = self._open_output()
        self.about = describe(options, self.train_data)
        if state is not None:
            check_same(state.get("about", {}), self.about)
        self.trainer = self._make_trainer(download=state is None)
        if state is not None:
            self.trainer.load_state_dict(state)
        else:
            self._save(must=True)  # a disk that takes no checkpoint is better known now

    def _say(self, text: str) -> None:
        if self.processes.first:
            print(text, flush=True)

    def _open_output(self) -> dict | None:
        """Returns the checkpoint to resume, if any."""
        if self.options.resume:
            return load_checkpoint(self.checkpoint)
        if self.checkpoint.exists():
            raise FileExistsError(f"output must hold no checkpoint, got {self.checkpoint}; --resume continues from it")
        self.folder.mkdir(parents=True, exist_ok=True)
        self.processes.gather(None)  # no process writes before all have looked
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
        use_losses(model, LossOptions(**self.about["losses"]), sync=self.processes.count > 1)
        model.to(self.processes.device)
        steps = math.ceil(len(self.train_data) / options.batch_size)
        optimizer, schedule = make_optimizer(model, options, steps)
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

    def train(self) -> None:
        """Trains the epochs that are left, with an evaluation after each.

        Raises:
            Stopped: A signal asked for the end; the checkpoint is written.
        """
        options, trainer = self.options, self.trainer
        if trainer.epoch >= options.epochs and not self._lacks_evaluation():
            self._say(
                f"{self.checkpoint} is complete after {trainer.epoch} epochs; "
                f"to train on, repeat the command with --epochs {2 * trainer.epoch} --resume"
            )
            return
        self._say(describe_schedule(options, len(self.train_data)))
        if trainer.epoch == trainer.step == 0:
            self._prepare_backbone()
        while trainer.epoch < options.epochs or self._lacks_evaluation():
            start = time.perf_counter()
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
            row = {"epoch": trainer.epoch, "seconds": time.perf_counter() - start, "unreadable": self.unreadable}
            trainer.metrics.append(row | trainer.log[-1] | {"epoch": trainer.epoch} | self._evaluate())
            self._save(must=trainer.epoch == options.epochs)
            if self.processes.first:
                write_metrics(self.folder / "metrics.csv", trainer.metrics)
                self._say(
                    "epoch {epoch}: AP {AP:.1f}, AP50 {AP50:.1f}, AP75 {AP75:.1f}".format_map(trainer.metrics[-1])
                )
            self._stop_if_asked(save=False)
            if self.processes.first:
                self._draw()

    def _prepare_backbone(self) -> None:
        """Starts the small backbone from a file or a pre-training. A run resumed at step 0 repeats this."""
        options, backbone = self.options, self.trainer.network.backbone
        if options.backbone is not None:
            load_backbone(backbone, options.backbone)
        elif options.pretrain_steps:
            percent = pretrain(
                backbone,
                steps=options.pretrain_steps,
                seed=options.seed,
                after_step=lambda: self._stop_if_asked(save=False),
                show=self.processes.first,
            )
            self._say(f"pre-training: {percent:.1f}% of held-out crops of digits right")
            self.processes.broadcast(backbone)  # processors of several kinds may round otherwise

    def _lacks_evaluation(self) -> bool:
        """Whether the last epoch is complete and its evaluation is not: the run was stopped in between."""
        evaluated = self.trainer.metrics[-1]["epoch"] if self.trainer.metrics else 0
        return self.trainer.step == 0 and evaluated < self.trainer.epoch

    def _evaluate(self) -> dict[str, float]:
        """Returns COCO's numbers. Each process detects in its part of the images."""
        one = self.processes
        found, chunk = [], _EVALUATED * one.count
        for first in range(0, len(self.val_data), chunk):
            indices = range(first, min(first + chunk, len(self.val_data)))[one.rank :: one.count]
            found += detect(self.trainer.network, self.val_data, indices=indices)
            self._stop_if_asked()
        return average_precision(self.val_data.coco(), [one for part in one.gather(found) for one in part])

    def _draw(self) -> None:
        """Draws the pictures after an epoch."""
        trainer = self.trainer
        images = draw_curves(self.folder, trainer.log, trainer.metrics)
        items = [self.train_data[index] for index in range(min(_SEEN, len(self.train_data)))]
        images.append(draw_density(self.folder / "density.png", observe(trainer.network, items)))
        if trainer.epoch == self.options.epochs:
            print(", ".join(str(path) for path in (self.checkpoint, self.folder / "metrics.csv", *images)))
