"""GHM-C in the criteria of Ultralytics' YOLO and RT-DETR: values, gradients, state."""

import importlib.util
import os
import sys

import pytest
import torch
from torch import nn

from bce_reference import OPTIONS, RELATIVE, reference
from ghm_triton import HarmonizedBCELoss

os.environ.setdefault("YOLO_OFFLINE", "true")  # before ultralytics is first imported: it looks for the network
os.environ.setdefault("YOLO_AUTOINSTALL", "false")

INSTALLED = importlib.util.find_spec("ultralytics") is not None
if INSTALLED:
    from ultralytics.cfg import get_cfg
    from ultralytics.models.utils.loss import RTDETRDetectionLoss
    from ultralytics.nn.tasks import DetectionModel, OBBModel, PoseModel, SegmentationModel

    from ghm_triton.ultralytics import GHMDetectionTrainer
    from ghm_triton.ultralytics.criterion import harmonize_criterion, losses_of_branches

needs_ultralytics = pytest.mark.skipif(not INSTALLED, reason="needs ultralytics")
pytestmark = pytest.mark.xdist_group("ultralytics")


def test_missing(monkeypatch):
    monkeypatch.setitem(sys.modules, "ultralytics", None)
    for name in [name for name in sys.modules if name.startswith("ghm_triton.ultralytics")]:
        monkeypatch.delitem(sys.modules, name)
    with pytest.raises(
        ImportError, match=r"needs the package ultralytics.*pip install -e '.\[ultralytics\]' in the clone"
    ):
        importlib.import_module("ghm_triton.ultralytics")


class Recorder(nn.Module):
    """A module `bce` that keeps its arguments and its values."""

    def __init__(self, bce):
        super().__init__()
        self.bce = bce

    def forward(self, logits, target):
        self.logits, self.target = logits, target
        self.values = self.bce(logits, target)
        return self.values.clone()  # class weights are multiplied in place


def two_images(task):
    """A batch of two images with three objects, as the data loader of the task makes it."""
    batch = {
        "img": torch.rand(2, 3, 64, 64, generator=torch.Generator().manual_seed(0)),
        "batch_idx": torch.tensor([0.0, 0, 1]),
        "cls": torch.tensor([[3.0], [7], [1]]),
        "bboxes": torch.tensor([[0.3, 0.3, 0.3, 0.4], [0.7, 0.6, 0.4, 0.4], [0.5, 0.5, 0.6, 0.6]]),
    }
    if task == "obb":
        batch["bboxes"] = torch.cat([batch["bboxes"], torch.tensor([[0.1], [0.2], [0.3]])], dim=1)
    if task == "pose":
        batch["keypoints"] = torch.rand(3, 17, 3)
    if task == "seg":
        batch["masks"] = torch.zeros(2, 16, 16)
        batch["masks"][:, 4:9, 4:9] = 1
        batch["sem_masks"] = batch["masks"]
    return batch


MODELS = ["yolo11n", "yolo26n", "yolo11n-seg", "yolo11n-obb", "yolo11n-pose", "yolo26n-seg"]


@needs_ultralytics
@pytest.mark.slow
@pytest.mark.parametrize("weighted", [False, True])
@pytest.mark.parametrize("name", MODELS)
def test_criterion(name, weighted):
    """On the same assignment: all terms of the plain criterion, and the gradient of the float64 reference."""
    torch.manual_seed(0)
    _, _, task = name.partition("-")
    kinds = {"seg": SegmentationModel, "obb": OBBModel, "pose": PoseModel}
    model = kinds.get(task, DetectionModel)(f"{name}.yaml", nc=10, verbose=False)
    model.args = get_cfg()
    if weighted:
        model.class_weights = torch.linspace(0.5, 1.5, 10)
    batch = two_images(task)
    preds = model(batch["img"])
    plain, harmonized = model.init_criterion(), harmonize_criterion(model.init_criterion(), **OPTIONS)
    names = ["one2many", "one2one"] if "26" in name else ["detect"]
    losses = losses_of_branches(harmonized)
    assert list(losses) == names
    found = []
    for criterion in (plain, harmonized):
        branches = [getattr(criterion, key, criterion) for key in names]
        for branch in branches:
            branch.bce = Recorder(branch.bce)
        found.append(([branch.bce for branch in branches], *criterion(preds, batch)))
    (of_plain, expected, terms), (of_harmonized, loss, _) = found
    at = list(terms).index("cls_loss")
    others = [i for i in range(len(expected)) if i != at]
    assert torch.equal(loss[others], expected[others])
    if not weighted:
        torch.testing.assert_close(loss[at], expected[at], rtol=RELATIVE, atol=0)
    for key, recorded, ours in zip(names, of_plain, of_harmonized):
        assert torch.equal(recorded.logits, ours.logits) and torch.equal(recorded.target, ours.target)
        (factor,) = torch.autograd.grad(expected[at], recorded.values, retain_graph=True)
        (got,) = torch.autograd.grad(loss[at], ours.logits, retain_graph=True)
        _, gradient, state = reference(ours.logits.detach(), ours.target, torch.zeros(31))
        torch.testing.assert_close(got.double(), factor.double() * gradient, rtol=RELATIVE, atol=0)
        torch.testing.assert_close(losses[key].running_counts.double(), state, rtol=1e-6, atol=0)


def queries(seed, groups=(2, 1)):
    """(predictions, batch) of RT-DETR: three layers, two images, 20 queries, 5 classes; and the objects per image."""
    generator = torch.Generator().manual_seed(seed)
    boxes = torch.rand(3, 2, 20, 4, generator=generator) * 0.3 + 0.2
    scores = torch.randn(3, 2, 20, 5, generator=generator) * 2 - 3
    count = sum(groups)
    batch = {"cls": torch.arange(count) % 5, "gt_groups": list(groups)}
    batch["bboxes"] = torch.rand(count, 4, generator=generator) * 0.3 + 0.2
    return boxes, scores, batch


@needs_ultralytics
@pytest.mark.parametrize("preserve", ["value", "gradient"])
def test_rtdetr(preserve):
    """Values or gradient norms of the varifocal loss (focal loss without objects), boxes as they were, one density."""
    plain = RTDETRDetectionLoss(nc=5, use_vfl=True)
    harmonized = harmonize_criterion(RTDETRDetectionLoss(nc=5, use_vfl=True), preserve=preserve, **OPTIONS)
    assert len({id(loss) for loss in harmonized.modules() if isinstance(loss, HarmonizedBCELoss)}) == 1
    state = torch.zeros(31)
    for seed, groups in enumerate([(2, 1), (0, 0), (1, 1)]):
        boxes, scores, batch = queries(seed, groups)
        results = []
        for criterion in (plain, harmonized):
            leaf = scores.clone().requires_grad_()
            targets = []
            watch = criterion.vfl if sum(groups) else criterion.fl
            handle = watch.register_forward_pre_hook(lambda _, given: targets.append(given[:2]))
            losses = criterion((boxes, leaf), batch)
            handle.remove()
            gradient = torch.autograd.grad(losses["loss_class"] + losses["loss_class_aux"], leaf)[0]
            results.append((losses, gradient, targets))
        (theirs, slope, targets), (ours, gradient, _) = results
        for key in ("loss_bbox", "loss_giou", "loss_bbox_aux", "loss_giou_aux"):
            assert torch.equal(ours[key], theirs[key])
        for layer, (logits, target) in zip((2, 0, 1), targets):  # the last layer comes first
            _, expected, state = reference(logits.detach(), target, state, preserve=preserve)
            expected = expected / expected.abs().sum()
            share = gradient[layer] / gradient[layer].abs().sum()
            torch.testing.assert_close(share.double(), expected, rtol=RELATIVE, atol=0)
            if preserve == "gradient":
                total, wanted = gradient[layer].abs().sum(), slope[layer].abs().sum()
                torch.testing.assert_close(total, wanted, rtol=RELATIVE, atol=0)
        if preserve == "value":
            for key in ("loss_class", "loss_class_aux"):
                torch.testing.assert_close(ours[key], theirs[key], rtol=RELATIVE, atol=0)
    torch.testing.assert_close(
        losses_of_branches(harmonized)["detect"].running_counts.double(), state, rtol=1e-6, atol=0
    )
    before = losses_of_branches(harmonized)["detect"].running_counts.clone()
    boxes, scores, batch = queries(5)
    with torch.no_grad():
        ours, theirs = harmonized((boxes, scores), batch), plain((boxes, scores), batch)
    assert all(torch.equal(ours[key], theirs[key]) for key in theirs)
    assert torch.equal(losses_of_branches(harmonized)["detect"].running_counts, before)


@needs_ultralytics
def test_other_criterion():
    with pytest.raises(TypeError, match="criterion must be that of a model that detects.*, got Module"):
        harmonize_criterion(nn.Module(), **OPTIONS)


@needs_ultralytics
def test_bad_options(tmp_path):
    """Errors come before a folder is made."""
    bad = type("Bad", (GHMDetectionTrainer,), {"exponent": 2})
    with pytest.raises(ValueError, match="exponent must be in"):
        bad(overrides={"model": "yolo11n.yaml", "project": str(tmp_path / "runs")})
    assert not (tmp_path / "runs").exists()
