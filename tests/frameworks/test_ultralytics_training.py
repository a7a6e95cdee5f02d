"""Ultralytics' trainer with GHM-C: checkpoints, resumed runs, prediction, export, the command line."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

os.environ.setdefault("YOLO_OFFLINE", "true")  # before ultralytics is first imported: it looks for the network
os.environ.setdefault("YOLO_AUTOINSTALL", "false")

pytest.importorskip("ultralytics")
pytest.importorskip("sklearn")

from ultralytics import YOLO
from ultralytics.utils.torch_utils import unwrap_model

from ghm_triton.detection.digits import main as write_digits
from ghm_triton.ultralytics import GHMDetectionTrainer
from ghm_triton.ultralytics.__main__ import main
from ghm_triton.ultralytics.criterion import losses_of_branches

pytestmark = [pytest.mark.slow, pytest.mark.xdist_group("ultralytics")]


class Interrupted(Exception):
    pass


def counts(trainer):
    losses = losses_of_branches(unwrap_model(trainer.model).criterion)
    return {name: loss.running_counts.clone() for name, loss in losses.items()}


def equal(one, other):
    return one.keys() == other.keys() and all(torch.equal(one[name], other[name]) for name in one)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("yolo")
    write_digits([str(folder / "data"), "--format", "yolo", "--train", "8", "--val", "4"])
    return folder


@pytest.fixture(scope="module", params=["yolo11n", "yolo26n"])
def interrupted(request, folder):
    """(the bytes of last.pt of a run of three epochs that was stopped after two, what its callbacks saw)."""
    seen = {"validation": []}

    def stop(trainer):
        if trainer.epoch == 1:
            raise Interrupted

    model = YOLO(f"{request.param}.yaml")
    model.add_callback("on_val_start", lambda validator: seen["validation"].append(counts(model.trainer)))
    model.add_callback("on_val_end", lambda validator: seen["validation"].append(counts(model.trainer)))
    model.add_callback("on_model_save", lambda trainer: seen.update(saved=counts(trainer)))
    model.add_callback("on_fit_epoch_end", stop)
    with pytest.raises(Interrupted):
        model.train(trainer=GHMDetectionTrainer, name=request.param, **settings(folder))
    return model.trainer.last.read_bytes(), seen


@pytest.fixture
def last(interrupted, tmp_path):
    """A copy of last.pt: the end of a resumed run overwrites it."""
    path = tmp_path / "last.pt"
    path.write_bytes(interrupted[0])
    return path


def settings(folder):
    data = str(folder / "data" / "data.yaml")
    options = dict(epochs=3, imgsz=96, batch=4, device="cpu", plots=False, exist_ok=True, verbose=False)
    return options | dict(data=data, project=str(folder / "runs"))


def test_validation(interrupted):
    """Validation leaves the state as it is."""
    _, seen = interrupted
    first, before, *_ = seen["validation"]
    assert len(seen["validation"]) == 4 and equal(first, before)
    assert equal(*seen["validation"][2:]) and not equal(first, seen["saved"])


def test_resume(interrupted, last):
    """The state of a resumed run is that of the checkpoint, which is that of the run that wrote it, to the bit."""
    _, seen = interrupted
    started = {}
    model = YOLO(last)
    model.add_callback("on_train_start", lambda trainer: started.update(counts(trainer)))
    model.train(trainer=GHMDetectionTrainer, resume=True)
    assert equal(started, seen["saved"])
    assert model.trainer.start_epoch == 2 and not equal(counts(model.trainer), started)
    assert equal(model.trainer.ema.ema.ghm_density, counts(model.trainer))


def test_plain_checkpoint(last):
    """Nothing in a checkpoint needs ghm_triton."""
    names = torch.serialization.get_unsafe_globals_in_checkpoint(last)
    assert "ultralytics.nn.tasks.DetectionModel" in names
    assert not [name for name in names if name.startswith("ghm_triton")]


def test_other_bins(last):
    other = type("Other", (GHMDetectionTrainer,), {"bins": 10})
    with pytest.raises(ValueError, match="bins must be 30 as in .*last.pt, got 10"):
        YOLO(last).train(trainer=other, resume=True)


def test_predict_and_export(last, folder):
    """A checkpoint predicts, and its export returns the same."""
    model = YOLO(last)
    images = str(folder / "data" / "images" / "val")
    assert len(model.predict(images, imgsz=96, verbose=False, conf=0)) == 4
    picture = torch.rand(1, 3, 96, 96)
    exported = torch.jit.load(model.export(format="torchscript", imgsz=96, verbose=False))
    expected = YOLO(last).model.fuse(verbose=False).eval()(picture)[0]
    torch.testing.assert_close(exported(picture), expected, rtol=1e-3, atol=1e-3)


def test_command(folder, monkeypatch):
    """Settings of Ultralytics and options of the loss arrive where they belong."""
    called = {}
    monkeypatch.setattr(YOLO, "train", lambda self, **given: called.update(given, model=self.overrides["model"]))
    main(["model=yolo11n.yaml", "--exponent", "0.25", "epochs=2", "data=some.yaml"])
    trainer = called.pop("trainer")
    assert called == {"model": "yolo11n.yaml", "epochs": 2, "data": "some.yaml"}
    assert issubclass(trainer, GHMDetectionTrainer) and (trainer.exponent, trainer.bins) == (0.25, 30)


@pytest.mark.parametrize(
    "arguments, message",
    [
        (["epochs=2"], "model=... is required"),
        (["model"], "NAME=VALUE"),
        (["model=yolo11n.yaml", "--exponent", "2"], "exponent must be in [0, 1], got 2.0"),
    ],
)
def test_command_errors(arguments, message, capsys):
    with pytest.raises(SystemExit):
        main(arguments)
    assert message in capsys.readouterr().err


def test_several_processes(folder, tmp_path, monkeypatch):
    """The file that Ultralytics runs in each process of a training on several GPUs, here once and on the CPU.

    It must find the trainer that the command made, with its exponent.
    """
    from ultralytics.utils import dist

    made = {}
    monkeypatch.setattr(YOLO, "train", lambda self, **given: made.update(given))
    main(["model=yolo11n.yaml", "--exponent", "0.25", "--bins", "12"])
    monkeypatch.setattr(dist, "USER_CONFIG_DIR", tmp_path)
    options = settings(folder) | dict(epochs=1, name="process", val=False)
    trainer = made["trainer"](overrides=options | dict(model="yolo11n.yaml"))
    file = dist.generate_ddp_file(trainer)
    environment = os.environ | {"PYTHONPATH": str(Path(__file__).parents[2])}
    done = subprocess.run([sys.executable, file], env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-2000:]
    assert (trainer.exponent, trainer.bins) == (0.25, 12)
    model = YOLO(trainer.last).model
    assert model.ghm_density["detect"].shape == (13,) and model.ghm_density["detect"].sum() > 0
