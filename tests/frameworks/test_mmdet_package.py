"""GHMC and GHMR in mmdetection itself: its own scripts, configs, and loss classes."""

import importlib.util
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

import mmcv_operators
from ghm_triton.mmdet import GHMC, GHMR
from tolerances import GRADIENT, LOSS, assert_close

pytest.importorskip("mmdet")
pytest.importorskip("sklearn")  # the digits

pytestmark = [pytest.mark.slow, pytest.mark.xdist_group("mmdet")]
FILES = Path(importlib.util.find_spec("mmdet").origin).parent / ".mim"  # its configs and tools

CONFIG = f"""
_base_ = {str(FILES / "configs/ghm/retinanet_r50_fpn_ghm-1x_coco.py")!r}
custom_imports = dict(imports=["ghm_triton.mmdet_plugin"], allow_failed_imports=False)
model = dict(
    backbone=dict(depth=18, init_cfg=None),
    neck=dict(in_channels=[64, 128, 256, 512], out_channels=32),
    bbox_head=dict(
        num_classes=10, in_channels=32, feat_channels=32, stacked_convs=1,
        loss_cls=dict(exponent=0.5), loss_bbox=dict(exponent=0.5),  # mmdetection's own classes do not take an exponent
    ),
    test_cfg=dict(score_thr=1.0),  # no detections: the suppression of overlaps is a compiled operator
)
classes = tuple("0123456789")
data = dict(data_root="data/", metainfo=dict(classes=classes))
pipeline = [
    dict(type="LoadImageFromFile"), dict(type="LoadAnnotations", with_bbox=True),
    dict(type="Resize", scale=(96, 96), keep_ratio=True),
]
given = dict(type="PackDetInputs", meta_keys=("img_id", "img_path", "ori_shape", "img_shape", "scale_factor"))
train_dataloader = dict(num_workers=0, persistent_workers=False, batch_size=2, dataset=dict(
    ann_file="annotations/instances_train.json", data_prefix=dict(img="train/"), pipeline=pipeline + [given], **data))
test_dataloader = dict(num_workers=0, persistent_workers=False, dataset=dict(
    ann_file="annotations/instances_val.json", data_prefix=dict(img="val/"), pipeline=pipeline + [given], **data))
test_evaluator = dict(ann_file="data/annotations/instances_val.json")
train_cfg = dict(max_epochs=1)
val_dataloader, val_cfg, val_evaluator = None, None, None
"""

INFERENCE = """
from mmdet.apis import init_detector  # imports mmdet.models before the config does
model = init_detector("config.py", "runs/epoch_1.pth", device="cpu")
losses = model.bbox_head.loss_cls, model.bbox_head.loss_bbox
print([type(loss).__module__ for loss in losses])
"""

REGISTER = """
from ghm_triton.mmdet import register_mmdet
register_mmdet()
from mmengine.config import Config
from mmengine.registry import init_default_scope
config = Config.fromfile("config.py")
init_default_scope("mmdet")
from mmdet.registry import MODELS
import mmdet.models
losses = [MODELS.build(config.model.bbox_head[name]) for name in ("loss_cls", "loss_bbox")]
print([type(loss).__module__ for loss in losses])
"""


def run(folder, script, *arguments):
    """The output of a script with the arguments, in a process of its own."""
    command = [sys.executable, mmcv_operators.__file__, script, *arguments]
    paths = [str(Path(__file__).parents[2]), os.environ.get("PYTHONPATH", "")]
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(filter(None, paths))}
    environment["TORCH_FORCE_NO_WEIGHTS_ONLY_LOAD"] = "1"  # mmengine's checkpoints hold more than tensors
    done = subprocess.run(list(map(str, command)), cwd=folder, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
    return done.stdout


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """The folder of a run of tools/train.py: config.py, and the checkpoint runs/epoch_1.pth."""
    from ghm_triton.detection.digits import main as write_digits

    folder = tmp_path_factory.mktemp("mmdet")
    write_digits([str(folder / "data"), "--train", "4", "--val", "2"])
    (folder / "config.py").write_text(CONFIG, encoding="utf-8")
    run(folder, FILES / "tools/train.py", "config.py", "--work-dir", "runs")
    return folder


def test_train(trained):
    """tools/train.py reads the config, which imports the plugin, before mmdet.models is imported."""
    state = torch.load(trained / "runs/epoch_1.pth", weights_only=False)["state_dict"]
    for name, bins in (("loss_cls", 30), ("loss_bbox", 10)):
        assert state[f"bbox_head.{name}.acc_sum"].shape == (bins,) and state[f"bbox_head.{name}.acc_sum"].sum() > 0


def test_test(trained):
    """tools/test.py: the config first, then the checkpoint of the training."""
    assert "Epoch(test) [2/2]" in run(trained, FILES / "tools/test.py", "config.py", "runs/epoch_1.pth")


@pytest.mark.parametrize("script", [INFERENCE, REGISTER], ids=["init_detector", "register_mmdet"])
def test_scripts(trained, script):
    """mmdet.models is imported before the config, and after register_mmdet()."""
    path = trained / "script.py"
    path.write_text(script, encoding="utf-8")
    assert "['ghm_triton.mmdet', 'ghm_triton.mmdet']" in run(trained, path)


def levels(seed):
    """Scores, labels with background 80, and label weights of the five levels of a step."""
    generator = torch.Generator().manual_seed(seed)
    for rows in (120, 60, 30, 7, 2):
        labels = torch.randint(0, 80, (rows,), generator=generator)
        labels = torch.where(torch.rand(rows, generator=generator) < 0.8, 80, labels)
        weights = (torch.rand(rows, generator=generator) > 0.1).float()
        yield torch.randn(rows, 80, generator=generator) * 2 - 4, labels, weights


def compare(ours, theirs, pred, target, weight):
    """The loss, its gradient, and the moving average of both."""
    results = []
    for loss in (ours, theirs):
        leaf = pred.clone().requires_grad_()
        value = loss(leaf, target, weight, avg_factor=7)
        value.backward()
        results.append((value.detach(), leaf.grad, loss.acc_sum.clone()))
    (value, gradient, average), (other_value, other_gradient, other_average) = results
    assert_close(value, other_value, 2 * LOSS)  # theirs is float32 too
    assert_close(gradient, other_gradient, 4 * GRADIENT, 1e-12)
    assert_close(average, other_average, 1e-6, 0.0)


def test_values_of_mmdetection():
    """Three steps of five levels, beside mmdetection's own classes with the same state."""
    mmcv_operators.install()
    from mmdet.models.losses.ghm_loss import GHMC as TheirGHMC
    from mmdet.models.losses.ghm_loss import GHMR as TheirGHMR

    classify, their_classify = GHMC(30, 0.75), TheirGHMC(30, 0.75)
    regress, their_regress = GHMR(0.02, 10, 0.7, 10.0), TheirGHMR(0.02, 10, 0.7, 10.0)
    assert classify.state_dict().keys() == their_classify.state_dict().keys()
    assert regress.state_dict().keys() == their_regress.state_dict().keys()
    for step in range(3):
        for scores, labels, weights in levels(step):
            compare(classify, their_classify, scores, labels, weights)
            deltas = scores[:, :4]
            boxes = (labels < 80).float()[:, None].expand(-1, 4)
            compare(regress, their_regress, deltas, deltas + scores[:, 4:8] * 0.01, boxes)
