"""The data set of tree crowns: what its tiles show, which boxes they have, and the errors of the command."""

import hashlib
import io
import itertools
import json
import zipfile

import numpy
import pytest
import torch

pytest.importorskip("torchvision")
pytest.importorskip("pycocotools")

from PIL import Image

from ghm_triton.detection import trees
from ghm_triton.detection.data import trees as data
from ghm_triton.detection.data.coco import CocoBoxes
from ghm_triton.detection.data.split_files import find_split

WIDTH, HEIGHT = 420, 640  # 30 % of the rows make one row of validation tiles, and two tiles fit side by side
VAL_TOP = HEIGHT - data.TILE


def photograph(boxes=()):
    """A photograph whose pixels all differ."""
    rows, columns = numpy.mgrid[:HEIGHT, :WIDTH]
    pixels = numpy.stack([rows % 256, rows // 256 * 16 + columns // 256, columns % 256], axis=-1)
    image = Image.fromarray(pixels.astype(numpy.uint8))
    return data.Photograph("wood", image, torch.tensor(boxes, dtype=torch.float32).reshape(-1, 4))


def read_tiles(folder, split):
    """The pixels of each tile by its file name."""
    return {path.name: numpy.asarray(Image.open(path)) for path in sorted((folder / split).glob("*.png"))}


def test_tiles_show_the_photograph_and_share_no_pixel_between_splits(tmp_path):
    wood = photograph()
    for split in data.SPLITS:
        data.write_tiles(tmp_path, [wood], split)
    tiles = {split: read_tiles(tmp_path, split) for split in data.SPLITS}
    # Every 96 pixels in the 448 rows and 420 columns for training, every 192 pixels in the 192 rows for validation.
    places = {
        "train": {(top, left) for top in (0, 96, 192) for left in (0, 96, 192)},
        "val": {(VAL_TOP, 0), (VAL_TOP, 192)},
    }
    pixels = numpy.asarray(wood.image)
    for split in data.SPLITS:
        assert set(tiles[split]) == {f"wood_{top:04d}_{left:04d}.png" for top, left in places[split]}
        for top, left in places[split]:
            shown = pixels[top : top + data.TILE, left : left + data.TILE]
            assert (tiles[split][f"wood_{top:04d}_{left:04d}.png"] == shown).all()
    seen = {split: numpy.unique(numpy.stack(list(tiles[split].values())) @ [65536, 256, 1]) for split in data.SPLITS}
    assert not numpy.intersect1d(seen["train"], seen["val"]).size
    assert len(seen["val"]) == 2 * data.TILE**2  # no pixel counts twice


def test_boxes_are_clipped_to_their_tiles_and_crowds_where_less_than_half_is_in(tmp_path):
    boxes = [
        [10, VAL_TOP + 20, 40, VAL_TOP + 60],  # whole, in the left tile
        [182, VAL_TOP + 100, 212, VAL_TOP + 130],  # 10 of 30 columns in the left tile, 20 in the right one
        [300, VAL_TOP - 20, 340, VAL_TOP + 20],  # half of it below the border of the splits: not a crowd
        [390, VAL_TOP + 50, 410, VAL_TOP + 70],  # right of all validation tiles
    ]
    content = data.write_tiles(tmp_path, [photograph(boxes)], "val")
    found = [(entry["image_id"], entry["bbox"], entry["iscrowd"]) for entry in content["annotations"]]
    assert found == [
        (0, [10, 20, 30, 40], 0),
        (0, [182, 100, 10, 30], 1),
        (1, [0, 100, 20, 30], 0),
        (1, [108, 0, 40, 20], 0),
    ]
    assert [entry["area"] for entry in content["annotations"]] == [1200, 300, 600, 800]
    assert json.loads((tmp_path / "annotations" / "instances_val.json").read_text()) == content


def test_the_reader_of_coco_takes_the_tiles_without_a_warning(tmp_path, recwarn):
    spots = itertools.product(range(20, WIDTH, 96), range(20, HEIGHT, 96))
    data.write_tiles(tmp_path, [photograph([[left, top, left + 30, top + 20] for left, top in spots])], "train")
    tiles = CocoBoxes(*find_split(tmp_path, "train"))
    image, target = tiles[4]
    assert image.shape == (3, data.TILE, data.TILE)
    assert target["boxes"].tolist() == [[x, y, x + 30, y + 20] for x in (20, 116) for y in (20, 116)]
    assert not recwarn.list


def make_wheel(path, monkeypatch):
    """A wheel with a small photograph and one box under both names, whose hash is the one that is expected."""
    picture = io.BytesIO()
    photograph().image.save(picture, format="PNG")
    with zipfile.ZipFile(path, "w") as wheel:
        for name in data.PHOTOGRAPHS:
            wheel.writestr(f"deepforest/data/{name}.png", picture.getvalue())
            corners = "<xmin>10</xmin><ymin>20</ymin><xmax>40</xmax><ymax>60</ymax>"
            box = f"<object><name>Tree</name><bndbox>{corners}</bndbox></object>"
            wheel.writestr(f"deepforest/data/{name}.xml", f"<annotation>{box}</annotation>")
    monkeypatch.setattr(data, "SHA256", hashlib.sha256(path.read_bytes()).hexdigest())


def test_the_command_writes_both_splits(tmp_path, monkeypatch, capsys):
    make_wheel(tmp_path / "deepforest.whl", monkeypatch)
    assert trees.main([str(tmp_path / "trees"), "--wheel", str(tmp_path / "deepforest.whl")]) == 0
    printed = capsys.readouterr().out.splitlines()
    # One box per photograph, which only the tile in the upper left corner shows.
    assert printed == [
        f"18 tiles with 2 boxes in {tmp_path / 'trees' / 'train'}",
        f"4 tiles with 0 boxes in {tmp_path / 'trees' / 'val'}",
    ]
    content = json.loads((tmp_path / "trees" / "annotations" / "instances_train.json").read_text())
    assert [(entry["image_id"], entry["bbox"]) for entry in content["annotations"]] == [
        (0, [10, 20, 30, 40]),
        (9, [10, 20, 30, 40]),
    ]


def test_another_wheel_is_an_error_that_names_both_hashes(tmp_path, capsys):
    wheel = tmp_path / "deepforest.whl"
    wheel.write_bytes(b"")
    assert trees.main([str(tmp_path / "trees"), "--wheel", str(wheel)]) == 1
    error = capsys.readouterr().err
    assert f"wheel must be the one of deepforest==2.1.0 with SHA-256 {data.SHA256}, got {wheel}" in error
    assert "e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855" in error  # of nothing
    assert not (tmp_path / "trees").exists()


def test_a_missing_wheel_is_an_error(tmp_path, capsys):
    assert trees.main([str(tmp_path / "trees"), "--wheel", str(tmp_path / "none.whl")]) == 1
    assert f"wheel must be an existing file, got {tmp_path / 'none.whl'}" in capsys.readouterr().err


def test_another_data_set_is_not_overwritten(tmp_path, monkeypatch, capsys):
    make_wheel(tmp_path / "deepforest.whl", monkeypatch)
    arguments = [str(tmp_path / "data"), "--wheel", str(tmp_path / "deepforest.whl")]
    assert trees.main(arguments) == trees.main(arguments) == 0  # tree crowns are
    path = tmp_path / "data" / "annotations" / "instances_val.json"
    path.write_text("{}")
    assert trees.main(arguments) == 1
    assert f"directory must be empty or hold tree crowns, got {path} of another" in capsys.readouterr().err
    assert path.read_text() == "{}"


@pytest.mark.slow
def test_a_failed_download_is_an_error_that_names_the_other_way(tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("PIP_INDEX_URL", tmp_path.as_uri())  # an index without packages
    monkeypatch.setenv("PIP_CONFIG_FILE", "/dev/null")
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    assert trees.main([str(tmp_path / "trees")]) == 1
    error = capsys.readouterr().err
    assert "error: pip cannot download deepforest==2.1.0 (ERROR: No matching distribution found" in error
    assert "--wheel takes a file" in error
    assert not (tmp_path / "trees").exists()


@pytest.mark.slow
def test_the_real_wheel_has_the_hash_and_the_boxes(tmp_path):
    try:
        wheel = trees.download_wheel(tmp_path)
    except OSError as error:
        pytest.skip(str(error))
    photographs = data.read_wheel(wheel)
    assert [(one.image.size, len(one.boxes)) for one in photographs] == [((2299, 2472), 574), ((1249, 1035), 279)]
    for one in photographs:
        assert (one.boxes[:, :2] >= 0).all() and (one.boxes[:, 2:] <= torch.tensor(one.image.size)).all()
        assert (one.boxes[:, 2:] > one.boxes[:, :2]).all()
