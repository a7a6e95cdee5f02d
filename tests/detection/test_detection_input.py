"""Bad input of the detection commands: a clear error before training, or a warning that counts."""

import json
import re

import pytest
import torch

pytest.importorskip("torchvision")
pytest.importorskip("sklearn")
pytest.importorskip("pycocotools")
pytest.importorskip("pandas")

from ghm_triton.detection import digits, evaluate, predict, train
from ghm_triton.detection.data import coco
from ghm_triton.detection.models.small import small_retinanet
from ghm_triton.detection.training import checkpoint
from ghm_triton.detection.training import run as run_module
from ghm_triton.detection.training.evaluation import average_precision, detect


@pytest.fixture(autouse=True)
def no_pictures(monkeypatch):
    """They take longer than the steps."""
    monkeypatch.setattr(run_module, "draw_curves", lambda *arguments: [])
    monkeypatch.setattr(run_module, "draw_density", lambda *arguments: None)
    monkeypatch.setattr(run_module, "observe", lambda *arguments: None)


@pytest.fixture
def data(tmp_path):
    digits.main([str(tmp_path / "data"), "--train", "6", "--val", "2", "--size", "64", "--digits", "1", "2"])
    return tmp_path / "data"


@pytest.fixture
def annotations(data):
    return data / "annotations" / "instances_train.json"


def change(path, edit):
    content = json.loads(path.read_text())
    edit(content)
    path.write_text(json.dumps(content))


def corners(left, top, width, height):
    return [left, top, left + width, top + height]


def run(data, *more):
    fast = [
        "--batch-size",
        "2",
        "--workers",
        "0",
        "--epochs",
        "1",
        "--pretrain-steps",
        "0",
        "--device",
        "cpu",
        "--min-size",
        "64",
    ]
    return train.main(["--data", str(data), "--output", str(data.parent / "run"), *fast, *more])


def test_missing_data_is_named(tmp_path, capsys):
    assert run(tmp_path / "nothing") == 1
    assert "must have one" in (text := capsys.readouterr().err) and "instances_train*.json, got none" in text


@pytest.mark.parametrize(
    "option, value, expected",
    [
        ("--batch-size", "0", "must be a whole number from 1, got '0'"),
        ("--epochs", "two", "must be a whole number from 1, got 'two'"),
        ("--warmup", "-1", "must be a whole number from 0, got '-1'"),
        ("--lr", "0", "must be a finite number above 0, got '0'"),
        ("--clip", "nan", "must be a finite number above 0, got 'nan'"),
        ("--exponent", "1.5", "must be a finite number from 0 up to 1, got '1.5'"),
        ("--device", "gpu", "must be auto"),
        ("--device", "cuda:64", "must be auto"),
    ],
)
def test_a_wrong_value_of_an_option_is_named_before_anything_is_done(tmp_path, capsys, option, value, expected):
    with pytest.raises(SystemExit) as stop:
        train.main(["--data", str(tmp_path), "--output", str(tmp_path / "run"), option, value])
    assert stop.value.code == 2 and f"argument {option}: {expected}" in capsys.readouterr().err
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    "edit, message",
    [
        (lambda content: content.pop("images"), "must have a list 'images', got null"),
        (lambda content: content["annotations"][1].pop("bbox"), r"annotations\[1\].bbox must be a list, got nothing"),
        (
            lambda content: content["images"].append(content["images"][0]),
            "must have images with different ids, got id 0 2 times",
        ),
        (lambda content: content.update(categories=[]), "must have categories with different ids, got an empty list"),
    ],
)
def test_malformed_annotations_are_named(data, annotations, edit, message):
    change(annotations, edit)
    with pytest.raises(ValueError, match=message):
        coco.CocoBoxes(annotations, data / "train")


def test_annotations_that_are_no_json(data, annotations, capsys):
    annotations.write_text('{"images": [')
    assert run(data) == 1
    assert "must be JSON, got" in capsys.readouterr().err


def test_missing_images_are_counted(data, annotations):
    for name in ("000001.png", "000004.png"):
        (data / "train" / name).unlink()
    with pytest.raises(FileNotFoundError, match="got 2 of 6 that are not: 000001.png"):
        coco.CocoBoxes(annotations, data / "train")


def test_bad_boxes_are_left_out_and_counted(data, annotations):
    def edit(content):
        content["annotations"] = [
            {"image_id": 0, "category_id": 3, "bbox": box}
            for box in ([10, 10, 0, 5], [70, 10, 5, 5], [60, 50, 10, 10], [1, 2, 3], [1, 2, 3, None], [5, 6, 7, 8])
        ] + [{"image_id": 77, "category_id": 3, "bbox": [1, 1, 5, 5]}]

    change(annotations, edit)
    with pytest.warns(UserWarning) as caught:
        found = coco.CocoBoxes(annotations, data / "train")
    text = str(caught[0].message)
    for expected in (
        "2 boxes without area",
        "2 boxes not of four finite numbers",
        "1 box cut",
        "1 annotation of unknown image_id 77 left out",
        "5 images without",
        "categories without boxes: '0', '1', '3', '4', '5', and 4 more",
    ):
        assert expected in text
    _, target = found[0]
    assert target["boxes"].tolist() == [[60, 50, 64, 60], [5, 6, 12, 14]] and target["labels"].tolist() == [2, 2]
    assert found[1][1]["boxes"].shape == (0, 4)


@pytest.mark.parametrize(
    "edit, message",
    [
        (
            lambda entry: entry.update(bbox=corners(*entry["bbox"])),
            r"must have boxes \[left, top, width, height\] in pixels, got \d+ of \d+ beyond .*: xyxy\?",
        ),
        (
            lambda entry: entry.update(bbox=[value / 64 for value in entry["bbox"]]),
            r"must have boxes \[left, top, width, height\] in pixels, got no value above 1: normalized\?",
        ),
    ],
    ids=["corners", "parts"],
)
def test_boxes_in_other_units_are_guessed(data, annotations, edit, message):
    """Corners used to be clipped, and parts of the size to be boxes of less than a pixel."""
    change(annotations, lambda content: [edit(entry) for entry in content["annotations"]])
    with pytest.raises(ValueError, match=message):
        coco.CocoBoxes(annotations, data / "train")


def test_annotations_without_boxes_are_refused(data, annotations, capsys):
    """They used to train to the end."""
    change(annotations, lambda content: content.update(annotations=[]))
    assert run(data) == 1
    assert "must have boxes, got 0 annotations without any" in capsys.readouterr().err


def test_unknown_categories_are_named(data, annotations):
    change(annotations, lambda content: content["annotations"][0].update(category_id=99))
    with pytest.warns(UserWarning, match="1 annotation of unknown category_id 99 left out"):
        coco.CocoBoxes(annotations, data / "train")


@pytest.mark.parametrize("shift, guess", [(-1, ": off by one?"), (1, ": off by one?"), (1000, "")])
def test_shifted_categories_are_refused(data, annotations, shift, guess):
    """They used to train on the wrong classes, with a warning about those left out."""

    def edit(content):
        for entry in content["annotations"]:
            entry["category_id"] += shift

    change(annotations, edit)
    with pytest.raises(ValueError, match=rf"must have the category ids .* of \d+{re.escape(guess)}$"):
        coco.CocoBoxes(annotations, data / "train")


def test_categories_need_not_be_contiguous(data, annotations):
    """Labels count from 0; results carry the categories of the file again, and are found right."""

    def edit(content):
        for entry in content["categories"]:
            entry["id"] = entry["id"] * 7 + 3
        for entry in content["annotations"]:
            entry["category_id"] = entry["category_id"] * 7 + 3

    change(annotations, edit)
    found = coco.CocoBoxes(annotations, data / "train")
    assert found.category_ids == [7 * number + 3 for number in range(1, 11)]

    class Perfect(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.parameter, self.at = torch.nn.Parameter(torch.zeros(1)), 0

        def forward(self, images):
            targets = [found[index][1] for index in range(self.at, self.at + len(images))]
            self.at += len(images)
            return [{**target, "scores": torch.ones(len(target["labels"]))} for target in targets]

    assert average_precision(found.coco(), detect(Perfect(), found, batch=4))["AP"] == pytest.approx(100)


def test_other_categories_of_the_validation_are_named(data, capsys):
    change(
        data / "annotations" / "instances_val.json",
        lambda content: content["categories"].append({"id": 99, "name": "x"}),
    )
    assert run(data) == 1
    assert "got also [99]" in capsys.readouterr().err


def test_unreadable_images_are_replaced_and_counted(data, annotations):
    """Training goes on with the next image; the evaluation does without."""
    import pandas

    for name in ("train/000002.png", "train/000003.png", "val/000000.png"):
        (data / name).write_bytes((data / name).read_bytes()[:60])
    found = coco.CocoBoxes(annotations, data / "train")
    image, target = found[2]
    assert target["unreadable"] == ["000002.png", "000003.png"] and target["image_id"] == 4
    assert torch.equal(image, found[4][0])
    with pytest.warns(UserWarning, match="got . that are not: 00000"):
        assert run(data) == 0
    assert (
        pandas.read_csv(data.parent / "run" / "metrics.csv")["unreadable"].item() == 3
    )  # 2 and 3 for the one, 3 for the other


def test_a_checkpoint_of_something_else_is_refused(data, tmp_path, capsys):
    other = tmp_path / "other.pt"
    torch.save(small_retinanet(3).state_dict(), other)
    with pytest.raises(ValueError, match="must be a file of ghm_triton.detection.train, format 1, got .*: format None"):
        checkpoint.load_checkpoint(other)
    other.write_bytes(b"no checkpoint at all")
    assert predict.main([str(other), "picture.png"]) == 1
    assert evaluate.main([str(tmp_path / "nothing.pt"), "--data", str(data)]) == 1
    text = capsys.readouterr().err
    assert (
        "must be a file of ghm_triton.detection.train" in text
        and f"must be an existing file, got {tmp_path / 'nothing.pt'}" in text
    )


def test_resuming_with_other_settings_is_refused(data, capsys):
    assert run(data) == 0
    assert run(data) == 1 and "checkpoint.pt; --resume continues" in capsys.readouterr().err
    assert run(data, "--resume", "--loss", "focal") == 1
    assert "--loss must be 'ghm' as in the checkpoint, got 'focal'" in capsys.readouterr().err
    path = data.parent / "run" / "checkpoint.pt"
    state = checkpoint.load_checkpoint(path)
    state["model"] = small_retinanet(3).state_dict()
    checkpoint.save_checkpoint(path, state)
    assert evaluate.main([str(path), "--data", str(data)]) == 1
    assert "must have the weights of small" in capsys.readouterr().err


def test_a_full_disk_keeps_the_last_checkpoint(tmp_path, monkeypatch):
    path = tmp_path / "checkpoint.pt"
    checkpoint.save_checkpoint(path, {"step": 1})

    def full(state, file):
        file.write(b"half of it")
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(torch, "save", full)
    with pytest.raises(OSError, match="No space left on device; the earlier checkpoint is unchanged"):
        checkpoint.save_checkpoint(path, {"step": 2})
    assert checkpoint.load_checkpoint(path)["step"] == 1 and [one.name for one in tmp_path.iterdir()] == [path.name]


def test_a_disk_that_fills_up_does_not_end_the_training(data, monkeypatch, capsys):
    """A save within the epoch fails with a warning, the last one with an error; at the start nothing is begun."""
    original, calls = run_module.save_checkpoint, []

    def fails(*arguments):
        calls.append(arguments)
        if len(calls) in (2, 3):
            raise OSError("no space")
        original(*arguments)

    monkeypatch.setattr(run_module, "save_checkpoint", fails)
    with pytest.warns(UserWarning, match="no space; training continues"):
        assert run(data, "--save-every", "1") == 0
    assert checkpoint.load_checkpoint(data.parent / "run" / "checkpoint.pt")["epoch"] == 1
    (data.parent / "run" / "checkpoint.pt").unlink()
    calls[:] = [None]
    assert run(data) == 1 and "no space" in capsys.readouterr().err


def test_a_gradient_that_is_not_finite_ends_with_the_place(data, capsys):
    assert run(data, "--recipe", "paper", "--lr", "1e30", "--warmup", "0") == 1
    text = capsys.readouterr().err
    assert "gradient must be finite, got inf or NaN in epoch 1, step" in text and "--resume to continue from" in text
