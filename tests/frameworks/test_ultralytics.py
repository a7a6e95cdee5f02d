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
    from ultralytics.nn.tasks import (
        ClassificationModel,
        DetectionModel,
        OBBModel,
        PoseModel,
        SegmentationModel,
        SemanticSegmentationModel,
    )

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


def softmax_reference(logits, labels, *, preserve="value", ignore_index=255, bins=30, exponent=0.5):
    """(gradient of the mean of cross entropy, harmonized; counts), float64. logits [N, C], labels [N]."""
    counted = labels != ignore_index
    p = logits.double().softmax(1)
    y = (labels[:, None] == torch.arange(logits.shape[1])).double()
    region = ((1 - (p * y).sum(1)).clamp(max=1) * bins).long().clamp(max=bins - 1)
    counts = torch.bincount(region[counted], minlength=bins)
    beta = counts[region].double().clamp(min=1) ** -exponent * counted
    ce = -(p.log() * y).sum(1)
    of_value = (ce * counted).sum() / (ce * beta).sum()
    norms = 2 * (1 - (p * y).sum(1))
    of_gradient = (norms * counted).sum() / (norms * beta).sum()
    weights = beta * (of_value if preserve == "value" else of_gradient) / counted.sum()
    return weights[:, None] * (p - y), counts


@needs_ultralytics
@pytest.mark.slow
@pytest.mark.parametrize("preserve", ["value", "gradient"])
@pytest.mark.parametrize("task", ["classify", "semantic"])
def test_softmax_criterion(task, preserve):
    """The value of the plain criterion, or the L1 norm of its gradient; the gradient of an independent computation."""
    torch.manual_seed(0)
    kind = ClassificationModel if task == "classify" else SemanticSegmentationModel
    name = "yolo11n-cls.yaml" if task == "classify" else "yolo26n-sem.yaml"
    model = kind(name, nc=5, verbose=False)
    model.args = get_cfg()
    batch = {"img": torch.rand(4, 3, 64, 64), "cls": torch.tensor([1, 0, 4, 1])}
    batch["semantic_mask"] = torch.randint(5, (4, 64, 64))
    batch["semantic_mask"][0, :20] = 255
    with torch.no_grad():
        preds = model(batch["img"])
    if task == "semantic":  # the sizes of the mask, no auxiliary output
        preds = torch.nn.functional.interpolate((preds[0] if isinstance(preds, tuple) else preds), (64, 64))
    preds = 3 * torch.randn_like(preds)  # in many regions
    plain, harmonized = (
        model.init_criterion(),
        harmonize_criterion(model.init_criterion(), preserve=preserve, **OPTIONS),
    )
    found = []
    for criterion in (plain, harmonized):
        leaf = preds.clone().requires_grad_()
        loss, items = criterion(leaf, batch)
        found.append((items, torch.autograd.grad(loss, leaf)[0]))
    (expected, slope), (items, gradient) = found
    labels = batch["cls"] if task == "classify" else batch["semantic_mask"].flatten()
    rows = preds if task == "classify" else preds.permute(0, 2, 3, 1).reshape(-1, 5)
    own, counts = softmax_reference(rows, labels, preserve=preserve)
    if task == "semantic":  # the Dice term stays: its gradient is what the plain criterion has beyond cross entropy
        own = own.view(4, 64, 64, 5).permute(0, 3, 1, 2)
        plainly = softmax_reference(rows, labels, exponent=0)[0].view(4, 64, 64, 5).permute(0, 3, 1, 2)
        own = 4 * own + (slope.double() - 4 * plainly)
        assert items["dice_loss"] == expected["dice_loss"]
    torch.testing.assert_close(gradient.double(), own, rtol=RELATIVE, atol=1e-8)
    if preserve == "value":
        for key, value in expected.items():
            torch.testing.assert_close(items[key], value, rtol=RELATIVE, atol=0)
    (loss,) = losses_of_branches(harmonized).values()
    assert torch.equal(loss.density().counts.round().long(), counts)

    before = loss.running_counts.clone()
    with torch.no_grad():
        assert torch.equal(harmonized(preds, batch)[0], plain(preds, batch)[0])  # as in validation
    assert torch.equal(loss.running_counts, before)


@needs_ultralytics
def test_binary_masks():
    """Semantic segmentation of one class has a sigmoid: HarmonizedBCELoss."""
    model = SemanticSegmentationModel("yolo26n-sem.yaml", nc=1, verbose=False)
    model.args = get_cfg()
    criterion = harmonize_criterion(model.init_criterion(), **OPTIONS)
    logits, mask = torch.randn(2, 1, 16, 16, requires_grad=True), torch.randint(2, (2, 16, 16))
    mask[0, :3] = 255
    loss, items = criterion(logits, {"semantic_mask": mask})
    expected = model.init_criterion()(logits, {"semantic_mask": mask})[1]
    torch.testing.assert_close(items["ce_loss"], expected["ce_loss"], rtol=RELATIVE, atol=0)
    counted = (mask != 255).flatten()
    _, own, state = reference(logits.detach().flatten()[counted], mask.flatten()[counted].float(), torch.zeros(31))
    dice = criterion._dice_loss(logits, mask, counted)
    (gradient,) = torch.autograd.grad(loss / 2 - dice, logits)
    # The gradient of the Dice term is subtracted again, in float32: up to 1e-3 of a small gradient of GHM-C.
    torch.testing.assert_close(gradient.flatten()[counted].double(), own / counted.sum(), rtol=1e-3, atol=1e-8)
    torch.testing.assert_close(losses_of_branches(criterion)["semantic"].running_counts.double(), state)


@needs_ultralytics
def test_class_weights_are_replaced(monkeypatch):
    """A warning, and the value of cross entropy without them."""
    warned = []
    monkeypatch.setattr("ghm_triton.ultralytics.criterion.LOGGER.warning", warned.append)
    model = SemanticSegmentationModel("yolo26n-sem.yaml", nc=3, verbose=False)
    model.args, model.class_weights = get_cfg(), torch.tensor([1.0, 2.0, 5.0])
    criterion = harmonize_criterion(model.init_criterion(), **OPTIONS)
    assert warned == ["The class weights are not used: the density replaces them."]
    logits, mask = torch.randn(1, 3, 8, 8, requires_grad=True), torch.randint(3, (1, 8, 8))
    value = criterion(logits, {"semantic_mask": mask})[1]["ce_loss"]
    torch.testing.assert_close(value, torch.nn.functional.cross_entropy(logits, mask).detach(), rtol=RELATIVE, atol=0)


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
