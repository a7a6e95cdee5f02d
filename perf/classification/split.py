"""Images with a long tail of classes and with wrong labels."""

from typing import NamedTuple

import torch
from torch import Tensor

from .images import CLASSES, Images

HELD_OUT = 0.28  # of the mean number of images per class, where there are no test images


class Split(NamedTuple):
    """Images [N, pixels] in [0, 1] and class indices [N], for training and for testing.

    Class 0 has the most training images and class 9 the fewest. The test images are balanced. Their labels are right.
    """

    train_images: Tensor
    train_labels: Tensor
    test_images: Tensor
    test_labels: Tensor


def split(images: Images, *, imbalance: float, wrong_labels: float, seed: int) -> Split:
    """Return the images with the given defects.

    Args:
        images: Without test images, `HELD_OUT` of them are held out, as many of each class.
        imbalance: Ratio of the numbers of training images of the first and the last class. The numbers between them
            fall geometrically, from the mean number per class. A class with fewer images has them all.
        wrong_labels: Probability that a training label is replaced by another class, drawn uniformly.
        seed: Of the held-out images, of the order of the classes, and of the wrong labels.
    """
    generator = torch.Generator().manual_seed(seed)
    mean = len(images.labels) // CLASSES
    held_out = int(HELD_OUT * mean) if images.test_images is None else 0
    most = mean - held_out
    train, test = [], []
    for rank, kind in enumerate(torch.randperm(CLASSES, generator=generator)):
        found = (images.labels == kind).nonzero().view(-1)
        found = found[torch.randperm(len(found), generator=generator)]
        count = max(1, round(most * imbalance ** (-rank / (CLASSES - 1))))
        train.append(images.images[found[held_out:][:count]])
        if held_out:
            test.append(images.images[found[:held_out]])
        else:
            test.append(images.test_images[images.test_labels == kind])
    train_labels = _ranks(train)
    wrong = torch.rand(len(train_labels), generator=generator) < wrong_labels
    shift = torch.randint(1, CLASSES, (len(train_labels),), generator=generator)
    train_labels = torch.where(wrong, (train_labels + shift) % CLASSES, train_labels)
    return Split(torch.cat(train), train_labels, torch.cat(test), _ranks(test))


def _ranks(images: list[Tensor]) -> Tensor:
    return torch.cat([torch.full((len(each),), rank) for rank, each in enumerate(images)])
