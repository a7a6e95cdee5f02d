"""The training loop of the command `train`, the demo and the comparison."""

import itertools
import math
from collections.abc import Callable

import torch
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel
from torch.utils.data import DataLoader, Dataset
from tqdm import tqdm

from .checkpoint import random_state, set_random_state
from .processes import Processes
from .schedules import one_cycle
from .signals import hold_stop_signals, ignore_stop_signals

LOG_EVERY = 10  # steps per row of the log, which holds their mean


class Means:
    """Means of named numbers since the last call of :meth:`take`.

    Attributes:
        totals: The sum by name.
        count: The number of calls of :meth:`add`.
    """

    def __init__(self, totals: dict[str, float] | None = None, count: int = 0):
        self.totals, self.count = dict(totals or {}), count

    def add(self, values: dict[str, float]) -> None:
        """Add a value per name."""
        self.totals = {name: self.totals.get(name, 0.0) + value for name, value in values.items()}
        self.count += 1

    def take(self) -> dict[str, float]:
        """Return the means and start over."""
        means = {name: total / self.count for name, total in self.totals.items()}
        self.totals, self.count = {}, 0
        return means


def epoch_batches(length: int, batch: int, *, seed: int, epoch: int, rank: int = 0, count: int = 1) -> list[list[int]]:
    """Return the indices of each batch of an epoch that belong to process `rank` of `count`.

    They depend only on the seed and the epoch, and all processes together use the batches of a single process. The last
    batch is filled up with the first examples.
    """
    order = torch.randperm(length, generator=_generator(seed * 1_000_003 + epoch)).tolist()
    order = list(itertools.islice(itertools.cycle(order), batch * math.ceil(length / batch)))
    part = batch // count
    return [order[first : first + part] for first in range(rank * part, len(order), batch)]


class Trainer:
    """A detector in training: the model, its optimizer, its schedule and its progress.

    Args:
        model: A detector of torchvision, on the device of `processes`.
        optimizer: The optimizer of its parameters.
        schedule: Stepped after each step.
        processes: The processes that train together. None: this process alone, on the device of the model.
        clip: Maximum norm of the gradient.
        amp: Compute in 16 bits where PyTorch's autocast does: float16 on GPUs, bfloat16 on the CPU.

    Attributes:
        epoch, step: The number of complete epochs, and of steps done in the current one.
        log: A dict per `LOG_EVERY` steps, with the means of the losses over these steps.
        since: The means of the losses since the caller last took them.
        metrics: A dict per evaluation, which the caller appends.
    """

    def __init__(
        self,
        model: nn.Module,
        optimizer: torch.optim.Optimizer,
        schedule: torch.optim.lr_scheduler.LRScheduler,
        *,
        processes: Processes | None = None,
        clip: float = 35.0,
        amp: bool = False,
    ):
        self.processes = processes or Processes(next(model.parameters()).device)
        self.network, self.optimizer, self.schedule, self.clip, self.amp = model, optimizer, schedule, clip, amp
        device = self.processes.device
        self.model = model
        if self.processes.count > 1:
            self.model = DistributedDataParallel(model, device_ids=[device] if device.type == "cuda" else None)
        self.scaler = torch.amp.GradScaler(device.type, enabled=amp and device.type == "cuda")
        self.epoch = self.step = 0
        self.log: list[dict] = []
        self.recent, self.since = Means(), Means()
        self.metrics: list[dict] = []

    def train_step(self, images: list[Tensor], targets: list[dict]) -> dict[str, float]:
        """Run a training step and return the losses by name.

        Raises:
            FloatingPointError: The gradient is not finite. The parameters stay as they were.
        """
        device = self.processes.device
        images = [image.to(device, non_blocking=True) for image in images]
        targets = [
            {name: target[name].to(device, non_blocking=True) for name in ("boxes", "labels")} for target in targets
        ]
        with torch.autocast(device.type, enabled=self.amp):
            losses = self.model(images, targets)
        self.optimizer.zero_grad()
        self.scaler.scale(sum(losses.values())).backward()
        self.scaler.unscale_(self.optimizer)
        norm = nn.utils.clip_grad_norm_(self.network.parameters(), self.clip)
        values = {name: loss.item() for name, loss in losses.items()}
        # The scaler skips steps whose gradient exceeds the range of float16. Without the scaler, training stops.
        if not self.scaler.is_enabled() and not norm.isfinite():
            raise FloatingPointError(
                f"gradient must be finite, got inf or NaN in epoch {self.epoch + 1}, step {self.step + 1}: {values}"
            )
        self.scaler.step(self.optimizer)
        self.scaler.update()
        self.schedule.step()
        return values

    def train_epoch(
        self,
        dataset: Dataset,
        *,
        batch: int,
        seed: int = 0,
        workers: int = 0,
        after_step: Callable[[list[dict]], None] = lambda targets: None,
    ) -> None:
        """Train the rest of the epoch, in an order that depends on `seed` and the epoch, with a progress bar.

        Args:
            dataset: Items (image, target) as torchvision's detectors take them.
            batch: Images per step, of all processes together.
            seed: Seed of the order.
            workers: Processes that load the images. 0: this process loads them.
            after_step: Called after each step with its targets.
        """
        one = self.processes
        batches = epoch_batches(len(dataset), batch, seed=seed, epoch=self.epoch, rank=one.rank, count=one.count)
        loader = DataLoader(
            dataset,
            batch_sampler=batches[self.step :],
            collate_fn=_collate,
            num_workers=workers,
            pin_memory=one.device.type == "cuda",
            worker_init_fn=ignore_stop_signals,
            generator=_generator(seed),  # else it draws from PyTorch's generator, and once more after a resume
        )
        self.model.train()
        name = f"epoch {self.epoch + 1}"
        with hold_stop_signals():  # until the workers ignore them
            loaded = iter(loader)
        with tqdm(total=len(batches), initial=self.step, desc=name, unit="step", disable=not one.first) as bar:
            for images, targets in loaded:
                rate = self.optimizer.param_groups[0]["lr"]
                losses = self.train_step(images, targets)
                self.step += 1
                self._note(losses, self.epoch * len(batches) + self.step, rate)
                bar.set_postfix({name: f"{loss:.3f}" for name, loss in losses.items()}, refresh=False)
                bar.update()
                after_step(targets)
        self.epoch, self.step = self.epoch + 1, 0

    def _note(self, losses: dict[str, float], step: int, rate: float) -> None:
        """Add the losses to the log. `step` counts from the start of the training."""
        self.recent.add(losses)
        self.since.add(losses)
        if step % LOG_EVERY == 0:
            self.log.append({"epoch": self.epoch + 1, "step": step} | self.recent.take() | {"lr": rate})

    def state_dict(self) -> dict:
        """Return everything that the rest of the training depends on. Every process must call this."""
        return {
            "model": self.network.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "schedule": self.schedule.state_dict(),
            "scaler": self.scaler.state_dict(),
            "random": self.processes.gather(random_state()),
            "epoch": self.epoch,
            "step": self.step,
            "log": self.log,
            "means": {name: vars(getattr(self, name)) for name in ("recent", "since")},
            "metrics": self.metrics,
        }

    def load_state_dict(self, state: dict) -> None:
        """Restore the state that :meth:`state_dict` returned.

        The schedule keeps the length of this trainer, so that a run can be resumed with more epochs.
        """
        self.network.load_state_dict(state["model"])
        self.optimizer.load_state_dict(state["optimizer"])
        place = {name: state["schedule"][name] for name in ("last_epoch", "_step_count", "_last_lr")}
        self.schedule.load_state_dict(place)
        self.scaler.load_state_dict(state["scaler"])
        if len(state["random"]) == self.processes.count:
            set_random_state(state["random"][self.processes.rank])
        self.epoch, self.step = state["epoch"], state["step"]
        self.log, self.metrics = list(state["log"]), list(state["metrics"])
        self.recent, self.since = (Means(**state["means"][name]) for name in ("recent", "since"))


def train_one_cycle(
    model: nn.Module,
    dataset: Dataset,
    *,
    batch: int,
    rate: float,
    epochs: int = 1,
    seed: int = 0,
    after_step: Callable[[list[dict]], None] = lambda targets: None,
) -> Trainer:
    """Train with AdamW and a one-cycle learning rate, whose maximum is `rate`. Return the trainer.

    Args:
        model: A detector of torchvision, on its device.
        dataset, batch, seed, after_step: As for :meth:`Trainer.train_epoch`.
        rate: Maximum learning rate.
        epochs: Passes over `dataset`.
    """
    steps = epochs * math.ceil(len(dataset) / batch)
    trainer = Trainer(model, *one_cycle(model, rate=rate, steps=steps))
    for _ in range(epochs):
        trainer.train_epoch(dataset, batch=batch, seed=seed, after_step=after_step)
    return trainer


def _generator(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed % 2**63)


def _collate(items: list[tuple[Tensor, dict]]) -> tuple[list[Tensor], list[dict]]:
    images, targets = zip(*items)
    return list(images), list(targets)
