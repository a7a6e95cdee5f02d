"""Random augmentation of detection data, from torchvision's transforms."""

import numpy
import torch
from torch import Tensor
from torch.utils.data import Dataset
from torchvision import tv_tensors
from torchvision.transforms import v2

AUGMENTATIONS = {
    "none": (),
    "flip": (v2.RandomHorizontalFlip(0.5),),
    # The eight symmetries of a square with equal probability: an aerial image has no "up".
    "aerial": (
        v2.RandomHorizontalFlip(0.5),
        v2.RandomVerticalFlip(0.5),
        v2.RandomApply([v2.RandomRotation((90, 90), expand=True)], p=0.5),
        v2.ColorJitter(brightness=0.3, contrast=0.3, saturation=0.3, hue=0.03),
    ),
}


class Augmented(Dataset):
    """Randomly augmented items of `dataset`. An item depends only on the seed, the epoch and the index.

    Args:
        dataset: Its items are (image, target). The image is float32 [3, height, width] in [0, 1]. The target has
            "boxes" (float32 [n, 4], xyxy, pixels).
        augmentation: "none", "flip" or "aerial". "flip" mirrors each image with probability 0.5. "aerial" draws one of
            the eight symmetries of a square, and a random brightness, contrast, saturation and hue.
        seed, epoch: Determine the random choices, together with the index.

    Raises:
        ValueError: `augmentation` is unknown.

    Example:
        >>> image, target = Augmented(CocoBoxes(annotations, images), "aerial", seed=0, epoch=3)[7]
    """

    def __init__(self, dataset: Dataset, augmentation: str, *, seed: int, epoch: int):
        if augmentation not in AUGMENTATIONS:
            raise ValueError(f"augmentation must be one of {tuple(AUGMENTATIONS)}, got {augmentation!r}")
        self.dataset, self.seed, self.epoch = dataset, seed, epoch
        self.transforms = AUGMENTATIONS[augmentation]

    def __len__(self) -> int:
        return len(self.dataset)

    def __getitem__(self, index: int) -> tuple[Tensor, dict]:
        image, target = self.dataset[index]
        if not self.transforms:
            return image, target
        # The transforms draw from PyTorch's CPU generator, whose state must not change.
        with torch.random.fork_rng(devices=[]):
            chosen = numpy.random.default_rng([self.seed, self.epoch, index]).integers(2**63)
            torch.default_generator.manual_seed(int(chosen))
            boxes = tv_tensors.BoundingBoxes(target["boxes"], format="XYXY", canvas_size=image.shape[-2:])
            image, boxes = v2.Compose(self.transforms)(tv_tensors.Image(image), boxes)
        return image.as_subclass(Tensor), target | {"boxes": boxes.as_subclass(Tensor)}
