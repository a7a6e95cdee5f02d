"""Pre-train the backbone of the small detector to classify image crops as one of the ten digits or no digit.

    python -m ghm_triton.detection.pretrain FILE

`train --backbone FILE` starts from it. `train --recipe small` pre-trains automatically.
"""

import pathlib
import sys
from collections.abc import Callable

import numpy
import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset, Subset
from tqdm import tqdm

from ..arguments import command_parser, whole
from .data.digit_drawing import SPLITS, SceneStyle, draw_crop
from .models.small import SmallBackbone
from .training.checkpoint import load_checkpoint, save_checkpoint

CROP = SceneStyle(size=32, height=(16, 32), contrast=(0.4, 1.0), window=(48, 200))
STEPS = 1500
_HELD_OUT = 1000  # crops


class DigitCrops(Dataset):
    """Crops of a split. An item is an image, float32 [3, 32, 32] in [0, 1], and a label, 0..9, or 10 for no digit."""

    def __init__(self, count: int, *, split: str = "train", seed: int = 0):
        self.count, self.split, self.seed = count, split, seed

    def __len__(self) -> int:
        return self.count

    def __getitem__(self, index: int) -> tuple[Tensor, int]:
        if not 0 <= index < self.count:
            raise IndexError(f"index must be in 0..{self.count - 1}, got {index}")
        random = numpy.random.default_rng([self.seed, SPLITS.index(self.split), index, 1])
        picture, label = draw_crop(random, self.split, CROP)
        return torch.from_numpy(picture).permute(2, 0, 1).float() / 255, label


class _Classifier(nn.Module):
    """A linear layer on the spatial maxima of the backbone's levels before the pyramid."""

    def __init__(self, backbone: SmallBackbone):
        super().__init__()
        self.backbone = backbone
        self.linear = nn.Linear(32 + 64 + 96, 11)

    def forward(self, images: Tensor) -> Tensor:
        fine = self.backbone.stem((images - 0.45) / 0.225)  # about the normalization of a detector
        middle = self.backbone.middle(fine)
        levels = fine, middle, self.backbone.top(middle)
        return self.linear(torch.cat([level.amax(dim=(2, 3)) for level in levels], dim=1))


def pretrain(
    backbone: SmallBackbone,
    *,
    steps: int = STEPS,
    batch: int = 64,
    seed: int = 0,
    resume: dict | None = None,
    after_step: Callable[[int, Callable[[], dict]], None] = lambda step, state: None,
    show: bool = True,
) -> float:
    """Train all of `backbone` except its pyramid. The state of PyTorch's generator does not change.

    Args:
        backbone: On any device.
        steps: Steps of AdamW with one cycle of the learning rate.
        batch: Crops per step.
        seed: Seed of the crops and of the linear layer on top.
        resume: The state of a stopped pre-training with the same arguments. The result has the same weights as without
            the stop, to the bit on the CPU.
        after_step: Called after each step with the number of steps done and a function that returns the state.
        show: Show a progress bar.

    Returns:
        The percentage of held-out crops that the model classifies correctly.
    """
    device = next(backbone.parameters()).device
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = _Classifier(backbone).to(device).train()
    optimizer = torch.optim.AdamW(model.parameters(), lr=5e-3, weight_decay=1e-2)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, 5e-3, total_steps=steps)
    parts = {"model": model, "optimizer": optimizer, "schedule": schedule}
    first = 0
    if resume:
        first = resume["step"]
        for name, part in parts.items():
            part.load_state_dict(resume[name])
    crops = Subset(DigitCrops(steps * batch, seed=seed), range(first * batch, steps * batch))
    bar = tqdm(total=steps, initial=first, desc="pre-training", unit="step", disable=not show)
    for done, (images, labels) in enumerate(_loader(crops, batch), start=first + 1):
        optimizer.zero_grad()
        nn.functional.cross_entropy(model(images.to(device)), labels.to(device)).backward()
        optimizer.step()
        schedule.step()
        bar.update()
        after_step(done, lambda done=done: {"step": done} | {name: part.state_dict() for name, part in parts.items()})
    bar.close()
    return _right_percent(model)


def _right_percent(model: _Classifier) -> float:
    """Return the percentage of held-out crops that the model classifies correctly. The model keeps its mode."""
    device = next(model.parameters()).device
    model.eval()
    right = 0
    with torch.inference_mode():
        for images, labels in _loader(DigitCrops(_HELD_OUT, split="val"), 100):
            right += int((model(images.to(device)).argmax(dim=1).cpu() == labels).sum())
    model.train()
    return 100 * right / _HELD_OUT


def _loader(crops: Dataset, batch: int) -> DataLoader:
    return DataLoader(crops, batch_size=batch, generator=torch.Generator())  # else it draws from PyTorch's generator


def save_backbone(path: str | pathlib.Path, backbone: SmallBackbone, right_percent: float) -> None:
    """Write a file that :func:`load_backbone` reads."""
    save_checkpoint(path, {"backbone": backbone.state_dict(), "right_percent": right_percent})


def load_backbone(backbone: SmallBackbone, path: str | pathlib.Path) -> float:
    """Load all weights except those of the pyramid from a file, and return the accuracy stored with them, in percent.

    Raises:
        OSError: The file does not exist, or cannot be read.
        ValueError: The file was not written by :func:`save_backbone`.
    """
    state = load_checkpoint(path)
    try:
        weights = {name: value for name, value in state["backbone"].items() if not name.startswith("pyramid.")}
        backbone.load_state_dict(backbone.state_dict() | weights)
        return state["right_percent"]
    except (KeyError, RuntimeError) as error:
        raise ValueError(f"backbone must be a file of ghm_triton.detection.pretrain, got {path}: {error}") from error


def main(arguments: list[str] | None = None) -> int:
    """Run the pre-training. Return 1 if the file cannot be written."""
    parser = command_parser("ghm_triton.detection.pretrain", __doc__)
    parser.add_argument("file", metavar="FILE", help="file to write the weights to")
    parser.add_argument("--steps", type=whole(1), default=STEPS, help="training steps of 64 crops each")
    parser.add_argument("--seed", type=whole(0, 2**63 - 1), default=0, help="random seed of the weights and the crops")
    options = parser.parse_args(arguments)
    torch.manual_seed(options.seed)
    backbone = SmallBackbone()
    percent = pretrain(backbone, steps=options.steps, seed=options.seed)
    try:
        save_backbone(options.file, backbone, percent)
    except OSError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    print(f"{options.file}: {percent:.1f}% of held-out crops right")
    return 0


if __name__ == "__main__":
    sys.exit(main())
