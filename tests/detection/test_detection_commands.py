"""The commands: devices, defaults in their help, files of an earlier run, pictures, and what is not installed."""

import json
import subprocess
import sys

import pytest
import torch

for module in ("torchvision", "sklearn", "pycocotools", "pandas", "matplotlib"):
    pytest.importorskip(module)

from PIL import Image

from ghm_triton.detection import demo, digits, evaluate, hardest, predict, pretrain, train
from ghm_triton.detection.data.digit_scenes import DigitScenes
from ghm_triton.detection.losses import LossOptions, use_losses
from ghm_triton.detection.models.small import SmallBackbone, small_retinanet
from ghm_triton.detection.text import counted, listed
from ghm_triton.detection.training.checkpoint import save_checkpoint
from ghm_triton.detection.training.drawing import draw_objects
from ghm_triton.detection.training.evaluation import average_precision, average_precision_by_class

OPEN = {  # the commands that take a device, with the arguments that they need
    "train": (train.main, ["--data", "x", "--output", "y"]),
    "evaluate": (evaluate.main, ["checkpoint.pt", "--data", "x"]),
    "predict": (predict.main, ["checkpoint.pt", "image.png"]),
}


@pytest.mark.parametrize("device", ["meta", "mps:7", "xpu", "cuda:64", "nonsense", "cpu:1"])
@pytest.mark.parametrize("command", OPEN)
def test_a_device_that_is_not_there_is_named(capsys, command, device):
    """PyTorch knows most of these names, so that some used to be tracebacks."""
    main, arguments = OPEN[command]
    with pytest.raises(SystemExit) as stop:
        main([*arguments, "--device", device])
    assert stop.value.code == 2
    assert "argument --device: must be auto" in (text := capsys.readouterr().err) and f"got '{device}'" in text


@pytest.mark.parametrize("main", [train.main, evaluate.main, predict.main, digits.main, pretrain.main, demo.main])
def test_help_shows_each_default_once(capsys, main):
    with pytest.raises(SystemExit) as stop:
        main(["--help"])
    text = capsys.readouterr().out
    assert stop.value.code == 0 and "(default: " in text
    for nothing in ("default: None", "default: False", "default: none"):
        assert nothing not in text


def test_help_of_a_recipe_shows_its_defaults(capsys):
    for arguments, rate in (
        (["--recipe", "paper"], "0.01"),
        ([], "0.0015"),
        (["--model", "fcos_resnet50_fpn"], "0.01"),
    ):
        with pytest.raises(SystemExit):
            train.main([*arguments, "--help"])
        assert f"maximum learning rate (default: {rate})" in " ".join(capsys.readouterr().out.split())


@pytest.mark.parametrize(
    "arguments, message",
    [
        (["--warmup", "5"], "--warmup must be left out with --recipe small, whose rate follows one cycle, got 5"),
        (["--lr-steps", "2"], "--lr-steps must be left out with --recipe small"),
        (
            ["--model", "fcos_resnet50_fpn", "--pretrain-steps", "9"],
            "--pretrain-steps must be left out with --model fcos",
        ),
        (
            ["--model", "retinanet_resnet50_fpn", "--backbone", "b.pt"],
            "--backbone must be left out with --model retinanet",
        ),
    ],
)
def test_options_that_do_not_go_together_are_named(tmp_path, capsys, arguments, message):
    assert train.main(["--data", "x", "--output", str(tmp_path / "run"), *arguments]) == 1
    assert message in capsys.readouterr().err


@pytest.mark.parametrize("main", [train.main, evaluate.main, predict.main, hardest.main, demo.main])
def test_help_has_an_example(capsys, main):
    with pytest.raises(SystemExit):
        main(["--help"])
    assert "examples:\n  python -m ghm_triton.detection." in capsys.readouterr().out


@pytest.mark.slow
def test_warnings_show_no_source(tmp_path):
    """A line of the source used to follow each of them."""
    digits.main([str(tmp_path / "data"), "--train", "2", "--val", "1", "--size", "32", "--digits", "1", "1"])
    command = [sys.executable, "-m", "ghm_triton.detection.train", "--data", str(tmp_path / "data"), "--output"]
    command += [str(tmp_path / "run"), "--backbone-weights", "unknown", "--model", "lite0", "--device", "cpu"]
    text = subprocess.run(command, capture_output=True, text=True, timeout=120).stderr
    assert text.startswith(f"warning: annotations {tmp_path}") and text.count("\n") == 2  # and the error


def test_numbers_and_their_nouns():
    assert [counted(number, "box") for number in (0, 1, 1500)] == ["0 boxes", "1 box", "1,500 boxes"]
    assert counted(1, "class") == "1 class" and counted(2, "image") == "2 images"
    assert listed("abcde") == "a, b, c, d, e" and listed(range(7)) == "0, 1, 2, 3, 4, and 2 more"


def test_amp_on_a_cpu_warns(tmp_path):
    with pytest.warns(UserWarning, match="bfloat16, which most CPUs do about ten times slower"):
        train.main(["--data", str(tmp_path), "--output", str(tmp_path / "run"), "--amp", "--device", "cpu"])


def test_digits_leave_nothing_of_an_earlier_run(tmp_path, capsys):
    """Fewer scenes over more used to leave the other pictures behind. Other data sets stay as they are."""
    digits.main([str(tmp_path), "--train", "5", "--val", "1", "--size", "32"])
    (tmp_path / "train" / "mine.png").touch()
    assert digits.main([str(tmp_path), "--train", "2", "--val", "1", "--size", "32"]) == 0
    assert sorted(path.name for path in (tmp_path / "train").iterdir()) == ["000000.png", "000001.png", "mine.png"]
    annotations = tmp_path / "annotations" / "instances_train.json"
    for other in ({"images": [{"file_name": "mine.png"}]}, {"info": []}, 3):
        annotations.write_text(json.dumps(other))
        assert digits.main([str(tmp_path), "--train", "2", "--val", "1", "--size", "32"]) == 1
        assert "directory must be empty or hold scenes of digits, got" in capsys.readouterr().err
    assert (tmp_path / "train" / "mine.png").exists() and json.loads(annotations.read_text()) == 3


@pytest.mark.parametrize(
    "content", [b"epoch,AP\n1,2.5\n", b"", b"\x80\x02}q\x00", b"PK\x03\x04 no archive", b"\x93NUMPY"]
)
def test_a_file_that_is_no_checkpoint_is_refused(tmp_path, capsys, content):
    """A metrics.csv in place of a checkpoint.pt used to be an IndexError."""
    path = tmp_path / "metrics.csv"
    path.write_bytes(content)
    assert predict.main([str(path), "image.png", "--output", str(tmp_path / "out")]) == 1
    assert f"checkpoint must be a file of ghm_triton.detection.train, got {path}" in capsys.readouterr().err


def test_numbers_without_objects_are_marked_whatever_was_found():
    """-1 where there is nothing to find, and 0 where nothing was found."""
    numbers = average_precision(DigitScenes(3, split="val", classes=1).coco(), [])
    assert numbers["AP"] == numbers["APs"] == 0 and numbers["APl"] == -1


def test_evaluate_explains_missing_sizes(tmp_path, capsys, monkeypatch):
    digits.main([str(tmp_path), "--train", "1", "--val", "1", "--size", "32"])
    classes = [{"id": 1, "name": "dog", "AP": 50.0, "AP50": 90.0}, {"id": 2, "name": "ibex", "AP": -1.0, "AP50": -1.0}]
    numbers = {"AP": 50.0, "APl": -1.0}
    monkeypatch.setattr(evaluate, "evaluate", lambda *arguments, **options: (numbers, classes, []))
    assert evaluate.main(["checkpoint.pt", "--data", str(tmp_path)]) == 0
    text = capsys.readouterr().out
    assert "APl     -1.0  (-1: the data has no such objects)" in text
    assert "dog     50.0   90.0\nibex    -1.0   -1.0  (-1: the data has no such objects)" in text


def test_average_precision_by_class():
    """Of two classes with one object each, the first is found and the other not; the third has no objects."""
    truth = {
        "images": [{"id": 1, "file_name": "a.png", "width": 64, "height": 64}],
        "annotations": [
            {"id": one, "image_id": 1, "category_id": one, "bbox": [8 * one, 8, 20, 20], "area": 400, "iscrowd": 0}
            for one in (1, 2)
        ],
        "categories": [{"id": one, "name": str(one)} for one in (1, 2, 3)],
    }
    found = [{"image_id": 1, "category_id": 1, "bbox": [8, 8, 20, 20], "score": 0.9}]
    found.append({"image_id": 1, "category_id": 2, "bbox": [16, 8, 20, 13.0], "score": 0.9})  # IoU 0.65
    numbers, by_class = average_precision_by_class(truth, found)
    assert numbers == average_precision(truth, found)
    assert by_class == {
        1: {"AP": pytest.approx(100), "AP50": pytest.approx(100)},
        2: {"AP": pytest.approx(40), "AP50": pytest.approx(100)},  # the thresholds 0.5, 0.55, 0.6, 0.65
        3: {"AP": -1, "AP50": -1},
    }


@pytest.mark.slow
def test_importing_without_torchvision_names_the_extra():
    code = "import sys; sys.modules['torchvision'] = None; import ghm_triton.detection"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=120)
    assert done.returncode != 0 and 'pip install -e ".[detection]" in the clone' in done.stderr


def test_names_of_predictions_do_not_clash():
    """a/0.png and b/0.png used to overwrite each other."""
    names = predict.output_names(["a/0.png", "b/0.png", "0-2.png", "c/0.jpg", "1.png"])
    assert names == ["0", "0-2", "0-2-2", "0-3", "1"]


def test_a_folder_is_all_its_images(tmp_path):
    """By name, without the files and folders that are none."""
    for name in ("b.JPG", "a.png", "notes.txt", "inside/c.png"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).touch()
    folder = str(tmp_path)
    assert predict.find_images(["x.png", folder]) == ["x.png", f"{folder}/a.png", f"{folder}/b.JPG"]
    (tmp_path / "inside" / "c.png").unlink()
    with pytest.raises(FileNotFoundError, match="inside without images"):
        predict.find_images([str(tmp_path / "inside")])


def test_predictions_of_the_same_name_are_all_written(tmp_path):
    paths = []
    for folder in ("a", "b"):
        (tmp_path / folder).mkdir()
        paths.append(str(tmp_path / folder / "0.png"))
        Image.new("RGB", (20, 10)).save(paths[-1])
    about = {"model": "small", "min_size": 32, "max_size": None, "losses": vars(LossOptions())}
    about["categories"] = [{"id": 1, "name": "one"}]
    state = {"model": use_losses(small_retinanet(1, size=32), LossOptions()).state_dict(), "about": about}
    save_checkpoint(tmp_path / "checkpoint.pt", state)
    out = tmp_path / "out"
    assert predict.main([str(tmp_path / "checkpoint.pt"), *paths, "--output", str(out), "--device", "cpu"]) == 0
    assert [json.loads((out / f"{name}.json").read_text())["image"] for name in ("0", "0-2")] == paths
    assert Image.open(out / "0.png").size == (640, 320)  # enlarged, so that captions fit


def test_each_class_has_its_color_and_small_pictures_are_enlarged():
    """All boxes used to be red, and captions covered small pictures."""
    image = torch.zeros(3, 32, 64, dtype=torch.uint8)
    boxes = torch.tensor([[4.0, 4, 20, 28], [40, 4, 60, 28]])
    drawn = draw_objects(image, boxes, torch.tensor([0, 1]), ["", ""], 2)
    assert drawn.shape == (3, 320, 640)
    first, second = drawn[:, 150, 40], drawn[:, 150, 400]  # on the left edge of each box
    assert first.any() and second.any() and not torch.equal(first, second)
    large = torch.zeros(3, 700, 800, dtype=torch.uint8)
    assert torch.equal(draw_objects(large, boxes[:0], torch.zeros(0), [], 2), large)
    many = draw_objects(image, boxes, torch.tensor([0, 40]), ["", ""], 80)
    assert not torch.equal(many[:, 150, 40], many[:, 150, 400])


def test_pretraining_writes_what_a_training_starts_from(tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(pretrain, "_HELD_OUT", 20)
    path = tmp_path / "backbone.pt"
    assert pretrain.main([str(path), "--steps", "1", "--seed", "3"]) == 0
    assert "% of held-out crops right" in capsys.readouterr().out
    torch.manual_seed(3)
    trained, other = SmallBackbone(), SmallBackbone()
    random = torch.get_rng_state()
    percent = pretrain.pretrain(trained, steps=1, seed=3, show=False)
    assert torch.equal(torch.get_rng_state(), random)
    before = {name: value.clone() for name, value in other.state_dict().items()}
    assert pretrain.load_backbone(other, path) == percent
    for name, value in other.state_dict().items():
        assert torch.equal(value, (before if name.startswith("pyramid.") else trained.state_dict())[name]), name
    save_checkpoint(path, {"backbone": {"x": torch.zeros(1)}, "right_percent": 1})
    with pytest.raises(ValueError, match="backbone must be a file of ghm_triton.detection.pretrain, got"):
        pretrain.load_backbone(other, path)


def test_a_stopped_demo_leaves_no_picture(tmp_path, monkeypatch, capsys):
    """It used to leave an empty file. A picture that was there stays."""

    def stop(*arguments, **options):
        raise KeyboardInterrupt

    monkeypatch.setattr(demo, "pretrain", stop)
    path = tmp_path / "demo.png"
    for content in (None, b"earlier"):
        if content:
            path.write_bytes(content)
        assert demo.main(["--output", str(path)]) == 130
        assert (path.read_bytes() if path.exists() else None) == content
    assert "stopped; no picture is written" in capsys.readouterr().err


@pytest.mark.slow
def test_demo_draws_and_compares(tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(pretrain, "_HELD_OUT", 20)
    threads = torch.get_num_threads()
    try:
        assert demo.main(["--smoke", "--threads", "1", "--output", str(tmp_path / "demo.png")]) == 0
    finally:
        torch.set_num_threads(threads)
    text = capsys.readouterr().out
    assert str(tmp_path / "demo.png") in text and "next: " in text
    assert [line.split()[0] for line in text.splitlines() if " 0.0 " in line] == ["GHM-C", "focal"]
    assert Image.open(tmp_path / "demo.png").size[0] > 1000
    assert demo.main(["--smoke", "--alone", "--output", str(tmp_path / "alone.png")]) == 0
    assert "focal" not in capsys.readouterr().out
    assert demo.main(["--smoke", "--output", str(tmp_path)]) == 1  # a folder
    assert "output must be a file that can be written, got" in capsys.readouterr().err


def test_the_demo_runs_the_recommended_setting():
    options, focal = demo.LOSSES.values()
    assert (options.loss, options.box_loss, options.exponent, options.box_loss_weight) == ("ghm", None, 0.5, 4.0)
    assert (focal.loss, focal.box_loss, focal.box_loss_weight) == ("focal", "smooth_l1", 4.0)
