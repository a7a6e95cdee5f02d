"""The training command: resumed to the bit, over several processes as over one, and its files."""

import subprocess
import sys

import pytest
import torch

pytest.importorskip("torchvision")
pytest.importorskip("sklearn")
pytest.importorskip("pycocotools")
pd = pytest.importorskip("pandas")

from ghm_triton.detection import digits, evaluate, predict, train
from ghm_triton.detection.data import digit_drawing, digit_scenes
from ghm_triton.detection.losses import LossOptions, use_losses
from ghm_triton.detection.models.small import small_retinanet
from ghm_triton.detection.training import checkpoint, engine, schedules
from ghm_triton.detection.training.evaluation import METRICS

FAST = ["--batch-size", "4", "--workers", "0", "--flip", "0.5", "--warmup", "2", "--device", "cpu", "--min-size", "64"]


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    folder = tmp_path_factory.mktemp("data")
    digits.main([str(folder), "--train", "14", "--val", "4", "--size", "64", "--style", "hard", "--digits", "1", "3"])
    return folder


def run(data, output, *more):
    return train.main(["--data", str(data), "--output", str(output), *FAST, *more])


def weights(output):
    return checkpoint.load_checkpoint(output / "checkpoint.pt")


def same(one, two):
    """To the bit, through dicts and lists."""
    if isinstance(one, torch.Tensor):
        return torch.equal(one, two)
    if isinstance(one, dict):
        return one.keys() == two.keys() and all(same(one[key], two[key]) for key in one)
    if isinstance(one, (list, tuple)):
        return len(one) == len(two) and all(map(same, one, two))
    return one == two


class Killed(BaseException):
    """As by a signal that nobody can catch: nothing may run after it."""


@pytest.mark.parametrize("step", [2, 4, 6])
def test_killed_and_resumed_is_the_same_to_the_bit(data, tmp_path, monkeypatch, step):
    """Within the first epoch, at its end, and within the second; the last save is up to a step before the kill."""
    more = ("--epochs", "2", "--save-every", "1" if step == 2 else "3")
    assert run(data, tmp_path / "whole", *more) == 0
    steps = 0
    original = engine.Trainer.train_step

    def killed(self, *arguments):
        nonlocal steps
        steps += 1
        if steps > step:
            raise Killed
        return original(self, *arguments)

    with monkeypatch.context() as patch:
        patch.setattr(engine.Trainer, "train_step", killed)
        with pytest.raises(Killed):
            run(data, tmp_path / "killed", *more)
    before = weights(tmp_path / "killed")
    assert before["epoch"] * 4 + before["step"] <= step
    torch.manual_seed(99)
    assert run(data, tmp_path / "killed", *more, "--resume") == 0
    whole, resumed = weights(tmp_path / "whole"), weights(tmp_path / "killed")
    for name in ("model", "optimizer", "schedule", "scaler", "random", "log"):
        assert same(whole[name], resumed[name]), name
    assert whole["model"]["head.classification_loss.running_counts"].sum() > 0
    rows = [pd.read_csv(tmp_path / name / "metrics.csv") for name in ("whole", "killed")]
    assert rows[0].epoch.tolist() == [1, 2] and set(METRICS) <= set(rows[0])
    assert rows[0].drop(columns="seconds").equals(rows[1].drop(columns="seconds"))
    assert {path.name for path in (tmp_path / "whole").iterdir()} == {
        "checkpoint.pt",
        "metrics.csv",
        "losses.png",
        "ap.png",
    }


def test_an_evaluation_that_was_killed_is_repeated(data, tmp_path, monkeypatch):
    def killed(self):
        raise Killed

    with monkeypatch.context() as patch:
        patch.setattr(train.Training, "_evaluate", killed)
        with pytest.raises(Killed):
            run(data, tmp_path / "killed", "--epochs", "2")
    assert weights(tmp_path / "killed")["epoch"] == 1 and not (tmp_path / "killed" / "metrics.csv").exists()
    for name, more in (("whole", ()), ("killed", ("--resume",))):
        assert run(data, tmp_path / name, "--epochs", "2", *more) == 0
    whole, resumed = (
        pd.read_csv(tmp_path / name / "metrics.csv").drop(columns="seconds") for name in ("whole", "killed")
    )
    assert whole.equals(resumed) and whole.epoch.tolist() == [1, 2]


def test_a_stop_signal_saves_the_step_it_came_in(data, tmp_path, monkeypatch):
    import os
    import signal

    original = engine.Trainer.train_step

    def interrupted(self, *arguments):
        os.kill(os.getpid(), signal.SIGTERM)
        return original(self, *arguments)

    before = signal.getsignal(signal.SIGTERM)
    monkeypatch.setattr(engine.Trainer, "train_step", interrupted)
    assert run(data, tmp_path / "run", "--epochs", "1") == 130
    assert weights(tmp_path / "run")["step"] == 1
    assert signal.getsignal(signal.SIGTERM) == before


def test_processes_share_the_batches_of_one():
    whole = engine.epoch_batches(14, 4, seed=3, epoch=1)
    parts = [engine.epoch_batches(14, 4, seed=3, epoch=1, rank=rank, count=2) for rank in (0, 1)]
    assert [one + two for one, two in zip(*parts)] == whole
    assert {index for batch in whole for index in batch} == set(range(14)) and {len(batch) for batch in whole} == {4}
    assert engine.epoch_batches(14, 4, seed=3, epoch=2) != whole
    assert [len(batch) for batch in engine.epoch_batches(1, 4, seed=0, epoch=0)] == [4]


def test_schedule_warms_up_and_falls():
    optimizer, schedule = schedules.warmup_and_falls(torch.nn.Linear(1, 1), rate=1.0, warmup=4, falls=[6, 8])
    rates = []
    for _ in range(10):
        rates.append(schedule.get_last_lr()[0])
        optimizer.step()
        schedule.step()
    assert rates == pytest.approx([1 / 3, 1 / 2, 2 / 3, 5 / 6, 1, 1, 0.1, 0.1, 0.01, 0.01])
    options = train.parse(["--output", "x"])
    assert train.milestones(options) == [9, 12] and options.epochs == 14 and (options.lr, options.clip) == (0.01, 35)


# Each process writes its gradients; the parent compares.
_PROCESS = """
import sys, torch
torch.set_num_threads(1)
from ghm_triton.detection.training.processes import join_processes
from ghm_triton.detection.training.engine import Trainer
torch.manual_seed(0)
sys.path.insert(0, {tests!r})
from test_detection_train import gradients, scenes
with join_processes(torch.device("cpu")) as processes:
    images, targets = scenes()
    part = slice(0, 2) if processes.rank == 0 else slice(2, 4)
    found = gradients(images[part], targets[part], processes)
    torch.save(found, f"{folder}/{{processes.rank}}.pt")
"""


def scenes():
    """Four images: of 1 and 3 objects for one process, none for the other."""
    style = digit_drawing.SceneStyle(size=64, digits=(1, 3), height=(12, 30))
    images, targets = map(list, zip(*digit_scenes.DigitScenes(4, split="train", style=style)))
    empty = {"boxes": torch.zeros(0, 4), "labels": torch.zeros(0, dtype=torch.int64)}
    return images, targets[:2] + [empty, empty]


def gradients(images, targets, processes, steps=2):
    """Of a harmonized model whose batch norms stand still, after each step, and the losses' counts."""
    torch.manual_seed(0)
    model = use_losses(small_retinanet(10, size=64), LossOptions(), sync=True)
    for module in model.modules():
        if isinstance(module, torch.nn.BatchNorm2d):
            module.eval().train = lambda mode=True: None
    optimizer = torch.optim.SGD(model.parameters(), lr=0.01)
    schedule = torch.optim.lr_scheduler.ConstantLR(optimizer)
    trainer = engine.Trainer(model, optimizer, schedule, processes=processes, clip=1e9)
    model.head.train()
    found = []
    for _ in range(steps):
        trainer.train_step(images, targets)
        found.append({name: one.grad.clone() for name, one in model.named_parameters() if one.grad is not None})
    return found, {name: value for name, value in model.state_dict().items() if "running_counts" in name}


def test_two_processes_have_the_gradients_of_one(tmp_path):
    """One of them has all objects, the other none."""
    from ghm_triton.detection.training.processes import Processes

    script = tmp_path / "process.py"
    script.write_text(_PROCESS.format(tests=str(__file__.rsplit("/", 1)[0]), folder=tmp_path))
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2", str(script)]
    subprocess.run(command, check=True, timeout=120, capture_output=True)
    images, targets = scenes()
    expected, counts = gradients(images, targets, Processes(torch.device("cpu")))
    for rank in (0, 1):
        found, found_counts = torch.load(tmp_path / f"{rank}.pt")
        for mine, whole in zip(found, expected):
            assert mine.keys() == whole.keys()
            for name, value in whole.items():
                torch.testing.assert_close(mine[name], value, rtol=1e-3, atol=1e-6 + 1e-4 * value.abs().max().item())
        for name, value in counts.items():
            torch.testing.assert_close(found_counts[name], value, rtol=1e-6, atol=0)


def test_torchrun_trains(data, tmp_path):
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2"]
    command += ["-m", "ghm_triton.detection.train", "--data", str(data), "--output", str(tmp_path / "run"), *FAST]
    done = subprocess.run(command + ["--epochs", "1"], timeout=120, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-2000:]
    state = weights(tmp_path / "run")
    assert state["epoch"] == 1 and len(state["random"]) == 2


def test_evaluate_and_predict(data, tmp_path, capsys):
    """The numbers are those that training wrote; the boxes of a picture are those of the evaluation."""
    import json

    assert run(data, tmp_path / "run", "--epochs", "1") == 0
    path = str(tmp_path / "run" / "checkpoint.pt")
    assert evaluate.main([path, "--data", str(data), "--output", str(tmp_path / "all"), "--device", "cpu"]) == 0
    numbers = json.loads((tmp_path / "all" / "metrics.json").read_text())
    written = pd.read_csv(tmp_path / "run" / "metrics.csv").iloc[-1]
    assert list(numbers) == list(METRICS)
    for name, value in numbers.items():
        assert written[name] == pytest.approx(value, rel=1e-4)

    state = checkpoint.load_checkpoint(path)
    state["model"]["head.classification_head.cls_logits.bias"] += 5  # so soon it finds nothing otherwise
    checkpoint.save_checkpoint(path, state)
    assert evaluate.main([path, "--data", str(data), "--output", str(tmp_path / "all"), "--device", "cpu"]) == 0
    found = json.loads((tmp_path / "all" / "detections.json").read_text())
    picture = str(data / "val" / "000001.png")
    options = ["--output", str(tmp_path / "one"), "--threshold", "0", "--device", "cpu"]
    assert predict.main([path, picture, *options]) == 0
    objects = json.loads((tmp_path / "one" / "000001.json").read_text())["objects"]
    of_image = [one for one in found if one["image_id"] == 1]
    assert len(objects) == len(of_image) > 0
    for one, other in zip(objects, of_image):
        assert one["category_id"] == other["category_id"] and one["category"] == str(one["category_id"] - 1)
        assert one["score"] == pytest.approx(other["score"], rel=1e-4)
        assert one["bbox"] == pytest.approx(other["bbox"], rel=1e-3, abs=1e-2)
    from PIL import Image

    assert Image.open(tmp_path / "one" / "000001.png").size == (64, 64)


def test_amp_trains(data, tmp_path):
    assert run(data, tmp_path / "run", "--epochs", "1", "--amp", "--min-size", "32") == 0
    assert all(value.isfinite().all() for value in weights(tmp_path / "run")["model"].values())
