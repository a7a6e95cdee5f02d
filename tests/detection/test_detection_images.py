"""Pictures that are not plain 8-bit RGB, and pictures that are not what the annotations say."""

import json

import numpy
import pytest
import torch

pytest.importorskip("torchvision")
pytest.importorskip("pycocotools")

from PIL import Image

from ghm_triton.detection.data.coco import CocoBoxes
from ghm_triton.detection.data.images import image_size, read_image

# Where the pixel in the upper left corner of the upright picture is stored, by EXIF orientation: (row, column).
CORNERS = {1: (0, 0), 2: (0, -1), 3: (-1, -1), 4: (-1, 0), 5: (0, 0), 6: (-1, 0), 7: (-1, -1), 8: (0, -1)}


def save_turned(path, orientation):
    """An upright picture of 12 x 8 pixels, white in the upper left corner, as a camera stores it."""
    height, width = (12, 8) if orientation >= 5 else (8, 12)
    pixels = numpy.zeros((height, width, 3), dtype=numpy.uint8)
    pixels[CORNERS[orientation]] = 255
    exif = Image.Exif()
    exif[0x0112] = orientation
    Image.fromarray(pixels).save(path, exif=exif)


@pytest.mark.parametrize("orientation", CORNERS)
def test_pictures_are_turned_upright(tmp_path, orientation):
    """Boxes are annotated on the upright picture."""
    save_turned(tmp_path / "a.png", orientation)
    image = read_image(tmp_path / "a.png")
    assert image.shape == (3, 8, 12) and image_size(tmp_path / "a.png") == (12, 8)
    assert image[:, 0, 0].tolist() == [255] * 3 and image.sum() == 3 * 255


@pytest.mark.parametrize("ending", ["png", "tif"])
def test_16_bits_are_scaled(tmp_path, ending):
    """They used to be clipped at 255, which made nearly every picture white."""
    ramp = numpy.linspace(0, 65535, 256 * 4).astype(numpy.uint16).reshape(4, 256)
    path = tmp_path / f"ramp.{ending}"
    Image.fromarray(ramp).save(path)
    image = read_image(path)
    expected = torch.from_numpy(numpy.round(ramp / 257).astype(numpy.uint8))
    assert image.shape == (3, 4, 256) and all(torch.equal(channel, expected) for channel in image)


@pytest.mark.parametrize("values", [numpy.float32, numpy.int32])
def test_values_without_a_range_are_refused(tmp_path, values):
    path = tmp_path / "wide.tif"
    Image.fromarray(numpy.ones((4, 4), dtype=values)).save(path)
    kind = {numpy.float32: "floating point", numpy.int32: "32-bit integers"}[values]
    for read in (read_image, image_size):
        with pytest.raises(OSError, match=f"8 or 16 bits per color, got .*wide.tif with {kind}"):
            read(path)


def converted(mode):
    pixels = numpy.zeros((6, 8, 3), dtype=numpy.uint8)
    pixels[:3], pixels[3:, 4:] = [200, 40, 40], [30, 90, 220]
    image = Image.fromarray(pixels)
    return image.convert("P", palette=Image.Palette.ADAPTIVE) if mode == "P" else image.convert(mode)


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize(
    "mode, ending",
    [("P", "png"), ("P", "gif"), ("CMYK", "tif"), ("LA", "png"), ("RGBA", "png"), ("1", "png"), ("L", "png")],
)
def test_other_modes_show_the_same(tmp_path, mode, ending):
    """As Pillow converts the picture that was saved."""
    image = converted(mode)
    path = tmp_path / f"picture.{ending}"
    image.save(path)
    expected = torch.from_numpy(numpy.asarray(image.convert("RGB")).copy()).permute(2, 0, 1)
    assert torch.equal(read_image(path), expected)


@pytest.mark.filterwarnings("error")
def test_a_palette_with_transparency(tmp_path):
    """Pillow warns of each of these when they are converted at once."""
    path = tmp_path / "picture.png"
    converted("P").save(path, transparency=bytes([0, 128, 255]))
    assert torch.equal(read_image(path), read_image_of(converted("P"), tmp_path))


def read_image_of(image, folder):
    image.save(folder / "opaque.png")
    return read_image(folder / "opaque.png")


def test_the_first_frame_of_an_animation(tmp_path):
    frames = [Image.new("RGB", (4, 4), color) for color in ("red", "blue")]
    frames[0].save(tmp_path / "a.gif", save_all=True, append_images=frames[1:])
    assert read_image(tmp_path / "a.gif")[:, 0, 0].tolist() == [255, 0, 0]


def test_a_truncated_file_is_unreadable(tmp_path):
    path = tmp_path / "a.png"
    Image.fromarray(numpy.random.default_rng(0).integers(0, 255, (64, 64, 3), dtype=numpy.uint8)).save(path)
    path.write_bytes(path.read_bytes()[:2000])
    with pytest.raises(OSError):
        read_image(path)
    path.write_bytes(b"")
    assert image_size(path) is None


def annotate(folder, name, width, height, boxes=((1, 1, 4, 4),)):
    path = folder / "annotations.json"
    annotations = [{"image_id": 1, "category_id": 1, "bbox": list(box)} for box in boxes]
    images = [{"id": 1, "file_name": name, "width": width, "height": height}]
    path.write_text(json.dumps({"images": images, "annotations": annotations, "categories": [{"id": 1, "name": "a"}]}))
    return path


def test_another_size_is_refused(tmp_path):
    """Both sizes and the file are named, and the turn of a picture whose size was taken before it."""
    save_turned(tmp_path / "a.png", 6)
    data = CocoBoxes(annotate(tmp_path, "a.png", 12, 8), tmp_path)
    assert data[0][0].shape == (3, 8, 12)
    with pytest.raises(ValueError, match=r"got .*a.png with 12 x 8 pixels instead of 8 x 12; .* EXIF orientation"):
        CocoBoxes(annotate(tmp_path, "a.png", 8, 12), tmp_path)
    with pytest.raises(ValueError, match="a.png with 12 x 8 pixels instead of 24 x 16$"):
        CocoBoxes(annotate(tmp_path, "a.png", 24, 16), tmp_path)


def test_boxes_beyond_the_border_are_clipped_with_a_warning(tmp_path):
    save_turned(tmp_path / "a.png", 1)
    path = annotate(tmp_path, "a.png", 12, 8, [(-3, -2, 6, 6), (9, 4, 8, 2), (1, 1, 3, 3)])
    with pytest.warns(UserWarning, match="2 boxes cut at the edge of the image"):
        data = CocoBoxes(path, tmp_path)
    assert data[0][1]["boxes"].tolist() == [[0, 0, 3, 4], [9, 4, 12, 6], [1, 1, 4, 4]]


def test_float_pictures_end_before_the_training(tmp_path):
    Image.fromarray(numpy.ones((8, 12), dtype=numpy.float32)).save(tmp_path / "a.tif")
    with pytest.raises(OSError, match="a.tif with floating point"):
        CocoBoxes(annotate(tmp_path, "a.tif", 12, 8), tmp_path)
