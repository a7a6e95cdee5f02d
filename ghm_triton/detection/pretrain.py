"""A start for the small backbone: it learns to tell crops of the ten digits and of none apart."""

import numpy
import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset
from tqdm import tqdm

from .data.digit_drawing import SPLITS, SceneStyle, draw_crop
from .models.small import SmallBackbone

CROP = SceneStyle(size=32, height=(16, 32), contrast=(0.4, 1.0), window=(48, 200))


class DigitCrops(Dataset):
    """`count` crops of a split: (image float32 [3, 32, 32] in [0, 1]; the digit, 10 for none)."""

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
    """The levels of a backbone before its pyramid, their greatest values in the picture, and a linear layer on them."""

    def __init__(self, backbone: SmallBackbone):
        super().__init__()
        self.backbone = backbone
        self.linear = nn.Linear(32 + 64 + 96, 11)

    def forward(self, images: Tensor) -> Tensor:
        fine = self.backbone.stem((images - 0.45) / 0.225)  # about what a detector's transform does
        middle = self.backbone.middle(fine)
        levels = fine, middle, self.backbone.top(middle)
        return self.linear(torch.cat([level.amax(dim=(2, 3)) for level in levels], dim=1))


def pretrain(backbone: SmallBackbone, *, steps: int = 1500, batch: int = 64, seed: int = 0) -> float:
    """Train `backbone`, all but its pyramid; returns the percentage of 1,000 held-out crops that it gets right."""
    model = _Classifier(backbone).train()
    optimizer = torch.optim.AdamW(model.parameters(), lr=5e-3, weight_decay=1e-2)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, 5e-3, total_steps=steps)
    loader = DataLoader(DigitCrops(steps * batch, seed=seed), batch_size=batch)
    for images, labels in tqdm(loader, desc="pre-training", unit="step"):
        optimizer.zero_grad()
        nn.functional.cross_entropy(model(images), labels).backward()
        optimizer.step()
        schedule.step()
    model.eval()
    with torch.inference_mode():
        right = sum(
            int((model(images).argmax(dim=1) == labels).sum())
            for images, labels in DataLoader(DigitCrops(1000, split="val"), batch_size=100)
        )
    backbone.train()
    return right / 10
