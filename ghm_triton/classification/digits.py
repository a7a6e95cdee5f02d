"""scikit-learn's handwritten digits (1,797 images of 8 x 8 pixels) with a long tail and with wrong labels."""

from typing import NamedTuple

import torch
from torch import Tensor

CLASSES = 10
TEST_PER_CLASS = 50


class Split(NamedTuple):
    """Images [N, 64] in [0, 1] and class indices [N], for training and for testing.

    Class 0 has the most training images and class 9 the fewest. The test images are balanced. Their labels are right.
    """

    train_images: Tensor
    train_labels: Tensor
    test_images: Tensor
    test_labels: Tensor


def load_split(*, imbalance: float, wrong_labels: float, seed: int) -> Split:
    """The digits with the given defects.

    Args:
        imbalance: Ratio of the numbers of training images of the first and the last class. The numbers between them
            fall geometrically, from 129. A digit with fewer images has them all.
        wrong_labels: Probability that a training label is replaced by another class, drawn uniformly.
        seed: Of the split, of the digit that each class is, and of the wrong labels.
    """
    from sklearn.datasets import load_digits

    digits = load_digits()
    images = torch.from_numpy(digits.data).float() / 16
    labels = torch.from_numpy(digits.target)
    generator = torch.Generator().manual_seed(seed)
    train, test = [], []
    for rank, digit in enumerate(torch.randperm(CLASSES, generator=generator)):
        found = (labels == digit).nonzero().view(-1)
        found = found[torch.randperm(len(found), generator=generator)]
        most = len(labels) // CLASSES - TEST_PER_CLASS
        count = max(1, round(most * imbalance ** (-rank / (CLASSES - 1))))
        test.append(images[found[:TEST_PER_CLASS]])
        train.append(images[found[TEST_PER_CLASS:][:count]])
    train_labels = _ranks(train)
    wrong = torch.rand(len(train_labels), generator=generator) < wrong_labels
    shift = torch.randint(1, CLASSES, (len(train_labels),), generator=generator)
    train_labels = torch.where(wrong, (train_labels + shift) % CLASSES, train_labels)
    return Split(torch.cat(train), train_labels, torch.cat(test), _ranks(test))


def _ranks(images: list[Tensor]) -> Tensor:
    return torch.cat([torch.full((len(each),), rank) for rank, each in enumerate(images)])
