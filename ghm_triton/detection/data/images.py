"""Images as a viewer shows them: turned upright, with eight bits per color."""

import pathlib

import numpy
from PIL import Image, ImageOps
from torch import Tensor
from torchvision.transforms.functional import pil_to_tensor

_UPRIGHT_SIDEWAYS = (5, 6, 7, 8)  # EXIF orientations whose width and height are exchanged
_ORIENTATION = 0x0112
# What Pillow raises for broken files, and what Ultralytics' replacement of Image.open raises, where it is imported.
_BROKEN = (ValueError, SyntaxError, Image.DecompressionBombError, ImportError)


def read_image(path: str | pathlib.Path) -> Tensor:
    """Return the picture, uint8 [3, height, width].

    It is turned as its EXIF orientation says. 16-bit gray values are divided by 257. Transparency is dropped. Only
    the first of several frames is read.

    Raises:
        OSError: The file cannot be read, or holds floating point or 32-bit values.
    """
    try:
        with Image.open(path) as image:
            return pil_to_tensor(_rgb(ImageOps.exif_transpose(image), path))
    except _BROKEN as error:
        raise OSError(f"{path}: {error}") from error


def image_size(path: str | pathlib.Path) -> tuple[int, int] | None:
    """Return the width and the height of the picture that :func:`read_image` would return. Only the header is read.

    None if the file is broken.

    Raises:
        OSError: The file has values of a type that :func:`read_image` does not read.
    """
    try:
        with Image.open(path) as image:
            _check_mode(image, path)
            sideways = image.getexif().get(_ORIENTATION) in _UPRIGHT_SIDEWAYS
            return image.size[::-1] if sideways else image.size
    except WrongValues:
        raise
    except (OSError, *_BROKEN):
        return None


class WrongValues(OSError):
    """The values of a picture have a type that cannot be converted to eight bits without a range."""


def _check_mode(image: Image.Image, path: str | pathlib.Path) -> None:
    if image.mode == "F" or (image.mode == "I" and image.format != "PNG"):
        kind = "floating point" if image.mode == "F" else "32-bit integers"
        raise WrongValues(f"images must have 8 or 16 bits per color, got {path} with {kind}")


def _rgb(image: Image.Image, path: str | pathlib.Path) -> Image.Image:
    _check_mode(image, path)
    if image.mode.startswith("I"):  # 16 bits; Pillow would clip them. Older versions call them I in a PNG
        values = numpy.asarray(image).astype(numpy.int64)
        image = Image.fromarray(((values + 128) // 257).astype(numpy.uint8))
    if "transparency" in image.info:
        image = image.convert("RGBA")
    return image.convert("RGB")
