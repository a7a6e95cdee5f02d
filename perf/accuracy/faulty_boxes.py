"""Training boxes with the errors of real annotations."""

import numpy
import torch
from torch.utils.data import Dataset
from torchvision.ops import clip_boxes_to_image

from ghm_triton.detection.data.digit_scenes import DigitScenes

MIN_SIDE = 2.0  # pixels, of a box after its edges have moved


class FaultyBoxes(Dataset):
    """Scenes with random faults in their boxes, the same for every loss and in every epoch.

    Args:
        scenes: The scenes. Their pictures stay as they are.
        missing: Probability that a box is left out.
        wrong: Probability that a box gets another class, drawn uniformly from the others.
        jitter: Standard deviation of each edge, as a fraction of the width or height of the box.
    """

    def __init__(self, scenes: DigitScenes, *, missing: float = 0.0, wrong: float = 0.0, jitter: float = 0.0):
        self.scenes, self.missing, self.wrong, self.jitter = scenes, missing, wrong, jitter

    def __len__(self) -> int:
        return len(self.scenes)

    def __getitem__(self, index: int) -> tuple[torch.Tensor, dict]:
        image, target = self.scenes[index]
        boxes, labels = target["boxes"], target["labels"]
        random = numpy.random.default_rng([self.scenes.seed, index])
        count, classes = len(boxes), self.scenes.classes
        stays = torch.from_numpy(random.random(count) >= self.missing)
        wrong = torch.from_numpy(random.random(count) < self.wrong)
        other = torch.from_numpy(random.integers(1, max(classes, 2), count))
        moves = torch.from_numpy(random.standard_normal((count, 4))).float()
        labels = torch.where(wrong, (labels + other) % classes, labels)
        sides = (boxes[:, 2:] - boxes[:, :2]).repeat(1, 2)
        moved = clip_boxes_to_image(boxes + self.jitter * sides * moves, image.shape[-2:])
        whole = ((moved[:, 2:] - moved[:, :2]) >= MIN_SIDE).all(dim=1, keepdim=True)
        boxes = torch.where(whole, moved, boxes)
        return image, target | {"boxes": boxes[stays], "labels": labels[stays]}
