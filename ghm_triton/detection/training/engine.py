"""The training loop of the demo, of the command `train` and of the comparison."""

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

LOG_EVERY = 10  # steps between two rows of the log


def epoch_batches(length: int, batch: int, *, seed: int, epoch: int, rank: int = 0, count: int = 1) -> list[list[int]]:
    """The indices of each batch of an epoch, those of process `rank` of `count`; of seed and epoch alone.

    All processes together have the batches of one process. The last batch is filled up with the first examples.
    """
    order = torch.randperm(length, generator=torch.Generator().manual_seed(seed * 1_000_003 + epoch)).tolist()
    order = list(itertools.islice(itertools.cycle(order), batch * math.ceil(length / batch)))
    part = batch // count
    return [order[first : first + part] for first in range(rank * part, len(order), batch)]


class Trainer:
    """A detector in training: the model, its optimizer and schedule, and where they are.

    Args:
        model: a detector of torchvision, on the device of `processes`.
        optimizer: of its parameters.
        schedule: stepped after each step.
        processes: that train together; the default is this process alone, on the device of the model.
        clip: greatest norm of the gradient.
        amp: compute in 16 bits where PyTorch's autocast does: float16 on GPUs, bfloat16 on the CPU.

    Attributes:
        epoch, step: epochs that are complete, and steps of the next one.
        log: a dict of the losses every `LOG_EVERY` steps.
        metrics: a dict for each epoch, of the caller's making.
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
        self.metrics: list[dict] = []

    def train_step(self, images: list[Tensor], targets: list[dict]) -> dict[str, float]:
        """One step; the losses by name.

        Raises:
            FloatingPointError: the gradient is not finite. The parameters are as they were.
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
        # The scaler skips a step whose gradient left float16's range. Elsewhere there is no way back from one.
        if not self.scaler.is_enabled() and not norm.isfinite():
            raise FloatingPointError(
                f"the gradient is not finite in epoch {self.epoch + 1}, step {self.step + 1}: {values}"
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
        """The rest of the epoch, in the order of `seed` and the epoch, with a progress bar.

        Args:
            dataset: of (image, target) as torchvision's detectors take them.
            batch: images a step, of all processes together.
            seed: of the order.
            workers: processes that load the images, 0: this one.
            after_step: called with the targets of each step when it is complete.
        """
        one = self.processes
        batches = epoch_batches(len(dataset), batch, seed=seed, epoch=self.epoch, rank=one.rank, count=one.count)
        loader = DataLoader(
            dataset,
            batch_sampler=batches[self.step :],
            collate_fn=_collate,
            num_workers=workers,
            pin_memory=one.device.type == "cuda",
            generator=torch.Generator().manual_seed(
                seed
            ),  # else a loader draws from PyTorch's, once more after a resume
        )
        self.model.train()
        name = f"epoch {self.epoch + 1}"
        with tqdm(total=len(batches), initial=self.step, desc=name, unit="step", disable=not one.first) as bar:
            for images, targets in loader:
                losses = self.train_step(images, targets)
                if self.step % LOG_EVERY == 0:
                    place = {"epoch": self.epoch + 1, "step": self.epoch * len(batches) + self.step + 1}
                    self.log.append(place | losses | {"lr": self.optimizer.param_groups[0]["lr"]})
                self.step += 1
                bar.set_postfix({name: f"{loss:.3f}" for name, loss in losses.items()}, refresh=False)
                bar.update()
                after_step(targets)
        self.epoch, self.step = self.epoch + 1, 0

    def state_dict(self) -> dict:
        """Everything that the rest of the training depends on, in plain types and tensors; all processes call this."""
        return {
            "model": self.network.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "schedule": self.schedule.state_dict(),
            "scaler": self.scaler.state_dict(),
            "random": self.processes.gather(random_state()),
            "epoch": self.epoch,
            "step": self.step,
            "log": self.log,
            "metrics": self.metrics,
        }

    def load_state_dict(self, state: dict) -> None:
        """Go on where :meth:`state_dict` was called."""
        self.network.load_state_dict(state["model"])
        self.optimizer.load_state_dict(state["optimizer"])
        self.schedule.load_state_dict(state["schedule"])
        self.scaler.load_state_dict(state["scaler"])
        if len(state["random"]) == self.processes.count:
            set_random_state(state["random"][self.processes.rank])
        self.epoch, self.step = state["epoch"], state["step"]
        self.log, self.metrics = list(state["log"]), list(state["metrics"])


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
    """Trains by AdamW and one cycle of the learning rate, whose maximum is `rate`. Returns the trainer.

    Args:
        model: A detector of torchvision, on its device.
        dataset, batch, seed, after_step: As for :meth:`Trainer.train_epoch`.
        rate: Greatest learning rate.
        epochs: Passes over `dataset`.
    """
    steps = epochs * math.ceil(len(dataset) / batch)
    trainer = Trainer(model, *one_cycle(model, rate=rate, steps=steps))
    for _ in range(epochs):
        trainer.train_epoch(dataset, batch=batch, seed=seed, after_step=after_step)
    return trainer


def _collate(items: list[tuple[Tensor, dict]]) -> tuple[list[Tensor], list[dict]]:
    images, targets = zip(*items)
    return list(images), list(targets)
