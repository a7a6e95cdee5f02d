"""Trainings of Ultralytics' other tasks, and of RT-DETR, by the command that picks the trainer."""

import itertools
import os

import numpy
import pytest
import torch

os.environ.setdefault("YOLO_OFFLINE", "true")  # before ultralytics is first imported: it looks for the network
os.environ.setdefault("YOLO_AUTOINSTALL", "false")

pytest.importorskip("ultralytics")

import cv2
from ultralytics import RTDETR, YOLO
from ultralytics.models.rtdetr.train import RTDETRTrainer
from ultralytics.models.yolo.classify import ClassificationTrainer
from ultralytics.models.yolo.obb import OBBTrainer
from ultralytics.models.yolo.pose import PoseTrainer
from ultralytics.models.yolo.segment import SegmentationTrainer
from ultralytics.models.yolo.semantic import SemanticSegmentationTrainer

from ghm_triton.ultralytics.__main__ import main

pytestmark = [pytest.mark.slow, pytest.mark.xdist_group("ultralytics")]

CORNERS = "0.2 0.2 0.7 0.2 0.7 0.8 0.2 0.8"
LABELS = {
    "detect": "1 0.45 0.5 0.5 0.6",
    "segment": f"1 {CORNERS}",
    "obb": f"1 {CORNERS}",
    "pose": "1 0.45 0.5 0.5 0.6 0.3 0.3 2 0.6 0.7 2",
    "semantic": f"1 {CORNERS}",
}
RTDETR_TINY = """
nc: 2
scales: {l: [1.00, 1.00, 1024]}
backbone:
  - [-1, 1, Conv, [16, 3, 2]]
  - [-1, 1, Conv, [32, 3, 2]]
  - [-1, 1, Conv, [32, 3, 2]]
head:
  - [-1, 1, Conv, [32, 3, 2]]
  - [[2, 3], 1, RTDETRDecoder, [nc, 32, 20, 2, 4, 2, 64]]
"""


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    """A function of the task to its data.yaml: four images with one object each."""
    folder = tmp_path_factory.mktemp("tasks")

    def write(task):
        if task == "classify":  # a folder per class
            for part, kind, i in itertools.product(("train", "val"), "ab", range(2)):
                (folder / task / part / kind).mkdir(parents=True, exist_ok=True)
                cv2.imwrite(str(folder / task / part / kind / f"{i}.png"), numpy.full((64, 64, 3), 80 * i, numpy.uint8))
            return folder / task
        for part in ("images", "labels"):
            (folder / task / part).mkdir(parents=True, exist_ok=True)
        for i in range(4):
            picture = numpy.random.default_rng(i).integers(0, 255, (64, 64, 3), numpy.uint8)
            cv2.imwrite(str(folder / task / "images" / f"{i}.png"), picture)
            (folder / task / "labels" / f"{i}.txt").write_text(LABELS[task], encoding="utf-8")
        text = f"path: {folder / task}\ntrain: images\nval: images\nnames: [a, b]\n"
        path = folder / f"{task}.yaml"
        path.write_text(text + ("kpt_shape: [2, 3]\n" if task == "pose" else ""), encoding="utf-8")
        return path

    return write


@pytest.mark.parametrize(
    "model, task, base",
    [
        ("yolo11n-seg.yaml", "segment", SegmentationTrainer),
        ("yolo11n-obb.yaml", "obb", OBBTrainer),
        ("yolo11n-pose.yaml", "pose", PoseTrainer),
        ("rtdetr", "detect", RTDETRTrainer),
        ("yolo11n-cls.yaml", "classify", ClassificationTrainer),
        ("yolo26n-sem.yaml", "semantic", SemanticSegmentationTrainer),
    ],
)
def test_command(model, task, base, data, tmp_path, monkeypatch):
    """An epoch of each task: the trainer of the task, a density, and a checkpoint with it that the package loads."""
    if model == "rtdetr":
        model = tmp_path / "rtdetr-tiny.yaml"
        model.write_text(RTDETR_TINY, encoding="utf-8")
    trained = []
    train = YOLO.train
    monkeypatch.setattr(YOLO, "train", lambda self, **given: (trained.append(self), train(self, **given)))
    given = dict(model=model, data=data(task), epochs=1, imgsz=64, batch=2, device="cpu", plots=False, workers=0)
    given |= dict(project=tmp_path / "runs", amp=False, optimizer="SGD", val=False, deterministic=False)
    if task == "detect":
        monkeypatch.setattr(RTDETR, "train", YOLO.train)
    main([f"{name}={value}" for name, value in given.items()] + ["--exponent", "0.25", "--preserve", "gradient"])
    trainer = trained[0].trainer
    assert isinstance(trainer, base) and (trainer.exponent, trainer.preserve) == (0.25, "gradient")
    (branch,) = trainer.density()
    assert branch == (task if task in ("classify", "semantic") else "detect")
    counts = trainer.density()[branch].counts
    assert counts.sum() > 0
    saved = (RTDETR if base is RTDETRTrainer else YOLO)(trainer.last).model.ghm_density[branch]
    assert saved.shape == (31,) and torch.allclose(saved[:-1] / saved[-1], counts, rtol=1e-6)


def test_other_task():
    with pytest.raises(SystemExit, match="model must have one of the tasks detect, .*semantic, got 'depth'"):
        main(["model=yolo26n-depth.yaml"])
