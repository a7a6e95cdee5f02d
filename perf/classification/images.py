"""The images of the comparison: scikit-learn's handwritten digits, or Fashion-MNIST."""

import gzip
import shutil
import tempfile
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor

CLASSES = 10  # of each data set
DATA = ("digits", "fashion-mnist")
DEBIAN = Path("/usr/share/datasets/fashion-mnist")  # of Debian's package dataset-fashion-mnist


class Images(NamedTuple):
    """Images [N, pixels] in [0, 1] and class indices [N], and separate test images or None."""

    images: Tensor
    labels: Tensor
    test_images: Tensor | None = None
    test_labels: Tensor | None = None


def load_images(data: str, root: Path | None = None) -> Images:
    """Return the images of one of `DATA`.

    Args:
        data: "digits" has 1,797 images of 8 x 8 pixels. "fashion-mnist" has 60,000 and 10,000 images of 28 x 28 pixels.
        root: Folder of Fashion-MNIST as :class:`torchvision.datasets.FashionMNIST` takes it. If None, the files of
            Debian's package are read.

    Raises:
        FileNotFoundError: Fashion-MNIST is not there.
    """
    if data == "digits":
        from sklearn.datasets import load_digits

        digits = load_digits()
        return Images(torch.from_numpy(digits.data).float() / 16, torch.from_numpy(digits.target))
    if root is not None:
        return _fashion_mnist(root)
    packed = sorted(DEBIAN.glob("*-ubyte.gz"))
    if not packed:
        raise FileNotFoundError(f"no Fashion-MNIST in {DEBIAN}: install Debian's dataset-fashion-mnist, or give --root")
    with tempfile.TemporaryDirectory() as folder:
        raw = Path(folder) / "FashionMNIST" / "raw"
        raw.mkdir(parents=True)
        for file in packed:
            with gzip.open(file) as source, (raw / file.stem).open("wb") as target:
                shutil.copyfileobj(source, target)
        return _fashion_mnist(Path(folder))


def _fashion_mnist(root: Path) -> Images:
    from torchvision.datasets import FashionMNIST

    try:
        train, test = (FashionMNIST(str(root), train=part) for part in (True, False))
    except RuntimeError:  # torchvision: not found
        raise FileNotFoundError(f"no FashionMNIST/raw with its four files in {root}") from None
    pixels = [part.data.flatten(1).float() / 255 for part in (train, test)]
    return Images(pixels[0], train.targets, pixels[1], test.targets)
