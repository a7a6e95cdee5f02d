"""Pictures of scikit-learn's handwritten digits over its photographs.

Training and validation pictures use different digits and different parts of the photographs, so that they share no
data.
"""

import dataclasses
import functools

import numpy
from sklearn.datasets import load_digits, load_sample_images

SPLITS = ("train", "val")
_TRAIN_DIGITS = 1200  # of 1,797
_TRAIN_COLUMNS = 420  # of the 640 columns of a photograph
_INK = 0.25  # the opacity from which a pixel belongs to the box of its digit
_ATTEMPTS = 20  # to place a digit where it covers no other digit


@dataclasses.dataclass(frozen=True)
class SceneStyle:
    """The look of a scene.

    Attributes:
        size: Side of the square picture, pixels.
        digits: Minimum and maximum number of digits. A digit that would cover another one is left out.
        height: Minimum and maximum height of a digit, pixels. The logarithm is uniform.
        contrast: Minimum and maximum difference between a digit and its background, in units of half the gray scale.
        window: Minimum and maximum side of the part of a photograph that becomes the background, pixels.
        clutter: Minimum and maximum number of distractors: digits with their 8 x 8 pixels shuffled.
    """

    size: int = 96
    digits: tuple[int, int] = (1, 5)
    height: tuple[int, int] = (12, 48)
    contrast: tuple[float, float] = (0.6, 1.0)
    window: tuple[int, int] = (64, 200)
    clutter: tuple[int, int] = (0, 0)


EASY = SceneStyle()
STYLES = {
    "easy": EASY,
    "hard": SceneStyle(digits=(2, 8), height=(14, 40), contrast=(0.45, 1.0), window=(96, 220), clutter=(0, 3)),
}


@functools.cache
def split_digits(split: str) -> tuple[numpy.ndarray, numpy.ndarray]:
    """Return the opacities in [0, 1], [n, 8, 8], and the digits 0..9, [n], of a split."""
    images, labels = load_digits(return_X_y=True)
    part = slice(None, _TRAIN_DIGITS) if split == "train" else slice(_TRAIN_DIGITS, None)
    return images[part].reshape(-1, 8, 8) / 16, labels[part]


@functools.cache
def split_photographs(split: str) -> tuple[numpy.ndarray, ...]:
    """Return the part of each photograph that belongs to the split, uint8 [427, columns, 3]."""
    part = slice(None, _TRAIN_COLUMNS) if split == "train" else slice(_TRAIN_COLUMNS, None)
    return tuple(photograph[:, part] for photograph in load_sample_images().images)


def _resize(image: numpy.ndarray, size: int) -> numpy.ndarray:
    """Scale a square picture [n, n, ...] to size x size by bilinear interpolation, in float64.

    Pillow would give different pixels, because it averages when it shrinks and computes in float32. The committed
    results were measured with these pixels.
    """
    position = ((numpy.arange(size) + 0.5) * len(image) / size - 0.5).clip(0, len(image) - 1)
    low = numpy.minimum(position.astype(int), len(image) - 2)
    part = position - low
    for axis in (0, 1):
        shape = [1] * image.ndim
        shape[axis] = size
        weight = part.reshape(shape)
        image = image.take(low, axis) * (1 - weight) + image.take(low + 1, axis) * weight
    return image


def _background(random: numpy.random.Generator, split: str, style: SceneStyle) -> numpy.ndarray:
    photographs = split_photographs(split)
    photograph = photographs[random.integers(len(photographs))]
    height, width = photograph.shape[:2]
    side = random.integers(style.window[0], min(style.window[1], height, width), endpoint=True)
    top, left = random.integers(height - side, endpoint=True), random.integers(width - side, endpoint=True)
    piece = photograph[top : top + side, left : left + side]
    return _resize(piece[:, ::-1] if random.random() < 0.5 else piece, style.size)


def _color(random: numpy.random.Generator, behind: float, style: SceneStyle) -> numpy.ndarray:
    """Return the RGB color of a digit that stands out from the mean gray value behind it."""
    difference = 127 * random.uniform(*style.contrast)
    brighter = behind < 128 if abs(behind - 128) > 128 - difference else random.random() < 0.5
    return (behind + (difference if brighter else -difference) + random.uniform(-25, 25, 3)).clip(0, 255)


def _side(random: numpy.random.Generator, style: SceneStyle) -> int:
    return min(round(numpy.exp(random.uniform(*numpy.log(style.height)))), style.size)


def _blend(random: numpy.random.Generator, place: numpy.ndarray, opacity: numpy.ndarray, style: SceneStyle) -> None:
    """Draw a digit over `place`, a part of the picture, in place."""
    color = _color(random, place.mean(), style)
    place += opacity[..., None] * (color - place)


def _draw_clutter(
    random: numpy.random.Generator, picture: numpy.ndarray, opacities: numpy.ndarray, style: SceneStyle
) -> None:
    for _ in range(random.integers(*style.clutter, endpoint=True)):
        mixed = random.permutation(opacities[random.integers(len(opacities))].ravel()).reshape(8, 8)
        side = _side(random, style)
        left, top = random.integers(style.size - side, size=2, endpoint=True)
        _blend(random, picture[top : top + side, left : left + side], _resize(mixed, side), style)


def draw_crop(random: numpy.random.Generator, split: str, style: SceneStyle) -> tuple[numpy.ndarray, int]:
    """Return a picture of one digit or of none, and its label: 0..9, or 10 for none."""
    opacities, labels = split_digits(split)
    picture = _background(random, split, style)
    if style.clutter[1]:
        _draw_clutter(random, picture, opacities, style)
    which = random.integers(len(labels) * 11 // 10)
    if which >= len(labels):
        return picture.round().astype(numpy.uint8), 10
    side = _side(random, style)
    left, top = random.integers(style.size - side, size=2, endpoint=True)
    _blend(random, picture[top : top + side, left : left + side], _resize(opacities[which], side), style)
    return picture.round().astype(numpy.uint8), int(labels[which])


def draw_scene(
    random: numpy.random.Generator, split: str, style: SceneStyle
) -> tuple[numpy.ndarray, numpy.ndarray, numpy.ndarray]:
    """Draw a scene of at least one digit.

    Returns:
        The picture (uint8 [size, size, 3]), the boxes (xyxy in pixels, int64 [n, 4]) and the digits 0..9 (int64 [n]).
    """
    opacities, labels = split_digits(split)
    picture = _background(random, split, style)
    if style.clutter[1]:
        _draw_clutter(random, picture, opacities, style)
    boxes, digits = numpy.zeros((0, 4), dtype=numpy.int64), []
    for _ in range(random.integers(*style.digits, endpoint=True)):
        which = random.integers(len(labels))
        side = _side(random, style)
        opacity = _resize(opacities[which], side)
        rows, columns = ((opacity > _INK).any(axis).nonzero()[0] for axis in (1, 0))
        extent = numpy.array([columns[0], rows[0], columns[-1] + 1, rows[-1] + 1])
        for _ in range(_ATTEMPTS):
            left, top = random.integers(style.size - side, size=2, endpoint=True)
            box = extent + [left, top, left, top]
            apart = (boxes[:, :2] >= box[2:]) | (boxes[:, 2:] <= box[:2])
            if apart.any(axis=1).all():
                _blend(random, picture[top : top + side, left : left + side], opacity, style)
                boxes = numpy.concatenate([boxes, box[None]])
                digits.append(labels[which])
                break
    return picture.round().astype(numpy.uint8), boxes, numpy.array(digits, dtype=numpy.int64)
