"""Losses by name, GHM-C in an FCOS, the pre-training, and the module for mmdetection."""

import dataclasses
import importlib
import math
import sys
import types

import pytest
import torch

from calls import ghmc_loss
from ghm_triton import GHMCLoss, GHMRLoss, mmdet

pytest.importorskip("torchvision")
pytest.importorskip("sklearn")
pytest.importorskip("pycocotools")
pd = pytest.importorskip("pandas")

from torchvision.models.detection import FCOS
from torchvision.models.detection.anchor_utils import AnchorGenerator
from torchvision.ops import sigmoid_focal_loss

from ghm_triton.detection import harmonize
from ghm_triton.detection.data.digit_drawing import STYLES
from ghm_triton.detection.data.digit_scenes import DigitScenes
from ghm_triton.detection.losses import (
    CrossEntropyLoss,
    FocalLoss,
    LossOptions,
    SmoothL1Loss,
    stored_options,
    use_losses,
)
from ghm_triton.detection.models.builder import build_model
from ghm_triton.detection.models.small import SmallBackbone, small_retinanet
from ghm_triton.detection.pretrain import DigitCrops, pretrain


def small_fcos():
    anchors = AnchorGenerator(((4,), (8,), (16,)), ((1.0,),) * 3)
    return FCOS(SmallBackbone(), 4, anchor_generator=anchors, min_size=64, max_size=64)


@pytest.fixture
def fcos_batch():
    """Two images, the second without objects."""
    torch.manual_seed(0)
    targets = [
        {"boxes": torch.tensor([[4.0, 4, 24, 30], [30, 20, 60, 50]]), "labels": torch.tensor([2, 0])},
        {"boxes": torch.zeros(0, 4), "labels": torch.zeros(0, dtype=torch.int64)},
    ]
    return list(torch.rand(2, 3, 64, 64)), targets


def test_fcos_classifies_with_ghmc_over_all_locations(fcos_batch):
    plain = small_fcos().train()
    expected_boxes = plain(*fcos_batch)
    model = harmonize(plain, GHMCLoss(momentum=0.0, exponent=1.0))
    seen = {}
    original = model.head.classification_loss.forward
    model.head.classification_loss.forward = lambda *inputs: seen.update(inputs=inputs) or original(*inputs)
    losses = model(*fcos_batch)
    logits, labels, counted = seen["inputs"]
    assert logits.shape == (2, 16 * 16 + 8 * 8 + 4 * 4, 4) and counted.all()
    assert set(labels[0].tolist()) == {-1, 0, 2} and set(labels[1].tolist()) == {-1}
    one_hot = (labels[..., None] == torch.arange(4)).float()
    # The locations are those of torchvision: its focal loss on them is its own loss.
    focal = sigmoid_focal_loss(logits, one_hot, reduction="sum") / (labels >= 0).sum()
    torch.testing.assert_close(focal, expected_boxes["classification"], rtol=1e-4, atol=0)
    torch.testing.assert_close(losses["classification"], ghmc_loss(logits.detach(), one_hot), rtol=1e-5, atol=0)
    for name in ("bbox_regression", "bbox_ctrness"):
        torch.testing.assert_close(losses[name], expected_boxes[name], rtol=1e-4, atol=0)
    sum(losses.values()).backward()
    assert all(parameter.grad.isfinite().all() for parameter in model.head.parameters())
    assert model.head.classification_head.cls_logits.weight.grad.abs().sum() > 0


def test_fcos_keeps_the_names_of_its_checkpoint():
    plain, model = small_fcos(), harmonize(small_fcos())
    added = {"head.classification_loss.running_counts"}
    assert set(model.state_dict()) == set(plain.state_dict()) | added
    model.load_state_dict(plain.state_dict())
    assert use_losses(small_fcos(), LossOptions()).head.regression_loss is None


def test_an_fcos_takes_no_box_loss():
    with pytest.raises(ValueError, match="regression_loss must be left out for an FCOS.* got GHMRLoss"):
        harmonize(small_fcos(), GHMCLoss(), GHMRLoss())
    for name, value in (("box_loss", "ghmr"), ("box_loss_weight", 2.0)):
        with pytest.raises(ValueError, match=f"{name} must be left out for an FCOS"):
            use_losses(small_fcos(), LossOptions(**{name: value}))


@pytest.mark.parametrize(("kind", "alpha", "gamma"), [(CrossEntropyLoss, -1, 0), (FocalLoss, 0.25, 2)])
def test_sums_are_divided_by_the_positives(kind, alpha, gamma):
    """Of the batch, or of each image as torchvision does it. One image has none; ignored anchors count nowhere."""
    torch.manual_seed(0)
    logits, labels = torch.randn(3, 40, 5, requires_grad=True), torch.randint(-1, 5, (3, 40))
    labels[1, 10:] = -1
    labels[2] = -1
    counted = torch.rand(3, 40) < 0.7
    counted |= labels >= 0
    counted[2, 0] = False
    sums, positives = [], []
    for x, t, c in zip(logits, labels, counted):
        one_hot = (t[:, None] == torch.arange(5)).float()
        sums.append(sigmoid_focal_loss(x[c], one_hot[c], alpha=alpha, gamma=gamma, reduction="sum"))
        positives.append((t >= 0).sum())
    expected = {
        "batch": 2 * sum(sums) / sum(positives),
        "image": 2 * sum(total / max(count, 1) for total, count in zip(sums, positives)) / 3,
    }
    assert abs(expected["batch"] - expected["image"]) > 0.1 * expected["batch"]
    for normalize, value in expected.items():
        loss = kind(normalize, 2.0)(logits, labels, counted)
        torch.testing.assert_close(loss, value)
        torch.testing.assert_close(*(torch.autograd.grad(one, logits, retain_graph=True)[0] for one in (loss, value)))
    with torch.no_grad():
        logits[2, 0] = float("nan")
    assert all(kind(normalize)(logits, labels, counted).isfinite() for normalize in expected)
    with pytest.raises(ValueError, match="normalize must be one of .*, got 'anchor'"):
        kind("anchor")


def test_no_object_in_the_batch():
    """The sum stands as it is, instead of a division by 0."""
    logits, labels = torch.zeros(2, 3, 1), torch.full((2, 3), -1)
    total = CrossEntropyLoss("batch")(logits, labels, torch.ones(2, 3))
    assert total.item() == pytest.approx(6 * math.log(2))


def test_focal_loss_per_image_is_that_of_torchvision():
    torch.manual_seed(0)
    model = small_retinanet(4).train()
    images = list(torch.rand(2, 3, 96, 96))
    targets = [
        {"boxes": torch.tensor([[4.0, 4, 24, 30], [30, 20, 60, 50]]), "labels": torch.tensor([2, 0])},
        {"boxes": torch.zeros(0, 4), "labels": torch.zeros(0, dtype=torch.int64)},
    ]
    own = model(images, targets)
    losses = use_losses(model, LossOptions("focal", normalize="image"))(images, targets)
    torch.testing.assert_close(losses, own)


def test_smooth_l1_is_the_mean_over_coordinates():
    loss = SmoothL1Loss(loss_weight=3.0)
    assert loss(torch.tensor([[0.0, 1.0]]), torch.zeros(1, 2)).item() == pytest.approx(3 * (1 - 1 / 18) / 2)
    assert loss(torch.zeros(1, 1), torch.full((1, 1), 0.1)).item() == pytest.approx(3 * 0.5 * 0.01 * 9)
    empty = torch.zeros(0, 4, requires_grad=True)
    loss(empty, torch.zeros(0, 4)).backward()
    assert empty.grad is not None


def test_names_choose_the_losses():
    def kinds(*names, **options):
        head = use_losses(small_retinanet(4), LossOptions(*names, **options)).head
        return tuple(type(getattr(head, name, None)) for name in ("classification_loss", "regression_loss"))

    none = type(None)
    assert kinds("ghm") == (GHMCLoss, GHMRLoss)
    assert kinds("ghmc") == (GHMCLoss, none)
    assert kinds("model") == (none, none)
    assert kinds("focal", normalize="image") == (FocalLoss, none)
    assert kinds("ce", "smooth_l1", box_loss_weight=2.0) == (CrossEntropyLoss, SmoothL1Loss)
    plain = LossOptions("ghmc", "asl1", mu=0.1, box_loss_weight=2.0)
    plain = use_losses(small_retinanet(4), plain).head.regression_loss
    tempered = use_losses(small_retinanet(4), LossOptions(exponent=0.5)).head
    assert (tempered.classification_loss.exponent, tempered.regression_loss.exponent) == (0.5, 0.5)
    assert (plain.bins, plain.momentum, plain.mu, plain.loss_weight) == (1, 0.0, 0.1, 2.0)
    for names, message in ((["ohem"], "loss must be one of"), (["ce", "l2"], "box_loss must be one of")):
        with pytest.raises(ValueError, match=message):
            LossOptions(*names)
    with pytest.raises(ValueError, match="box_loss_weight must be 1 for the model's own loss, got 2.0"):
        LossOptions("focal", box_loss_weight=2.0)
    with pytest.raises(ValueError, match="model must be one of .*retinanet_resnet50_fpn_v2.* got 'yolo'"):
        build_model("yolo", 3)


def test_sync_reaches_the_losses(monkeypatch):
    group = torch.distributed.ProcessGroup(0, 2)
    monkeypatch.setattr("ghm_triton.detection.losses.world", lambda: group)
    monkeypatch.setattr("ghm_triton.losses.base.group_name", lambda group: None)  # it has none
    for sync in (True, False):
        head = use_losses(small_retinanet(4), LossOptions(), sync=sync).head
        for loss in (head.classification_loss, head.regression_loss):
            assert loss.process_group is (group if sync else None)


def test_options_of_an_early_checkpoint():
    """They have a `variant`, which is no option now."""
    options = LossOptions(exponent=0.25)
    assert stored_options(dataclasses.asdict(options) | {"variant": "paper"}) == options


def test_hard_scenes_have_more_and_fainter_digits():
    easy, hard = (DigitScenes(30, split="train", style=STYLES[name]) for name in ("easy", "hard"))
    count = [sum(len(scenes.scene(index)[2]) for index in range(30)) for scenes in (easy, hard)]
    assert count[1] > 1.3 * count[0]
    assert STYLES["hard"].contrast[0] < STYLES["easy"].contrast[0] and STYLES["hard"].clutter[1] > 0


@pytest.mark.slow
def test_pretraining_trains_all_levels_and_leaves_the_pyramid():
    """What it reaches takes minutes, and the command prints it."""
    torch.manual_seed(0)
    backbone = SmallBackbone()
    before = {name: value.clone() for name, value in backbone.named_parameters()}
    assert 0 <= pretrain(backbone, steps=2, batch=8) <= 100
    for name, value in backbone.named_parameters():
        assert torch.equal(value, before[name]) == name.startswith("pyramid."), name
    assert backbone.training


def test_crops_depend_on_seed_and_index_and_have_all_labels():
    crops = DigitCrops(220, split="train")
    labels = torch.tensor([label for _, label in crops])
    counts = labels.bincount(minlength=11)
    assert len(counts) == 11 and counts.min() >= 5 and counts.max() <= 45
    image, label = DigitCrops(5, split="train")[3]
    assert torch.equal(image, crops[3][0]) and label == crops[3][1] and image.shape == (3, 32, 32)
    assert not torch.equal(image, DigitCrops(5, split="train", seed=1)[3][0])


def test_importing_the_plugin_registers(monkeypatch):
    found = {}
    registry = types.ModuleType("mmdet.registry")
    registry.MODELS = types.SimpleNamespace(register_module=lambda name, module, force: found.update({name: module}))
    for name in ("mmdet", "mmdet.models"):
        monkeypatch.setitem(sys.modules, name, types.ModuleType(name))
    monkeypatch.setitem(sys.modules, "mmdet.registry", registry)
    monkeypatch.delitem(sys.modules, "ghm_triton.mmdet_plugin", raising=False)
    importlib.import_module("ghm_triton.mmdet_plugin")
    assert found == {"GHMC": mmdet.GHMC, "GHMR": mmdet.GHMR}
    monkeypatch.delitem(sys.modules, "ghm_triton.mmdet_plugin")


def test_the_plugin_says_what_is_missing(monkeypatch):
    monkeypatch.setitem(sys.modules, "mmdet", None)
    monkeypatch.delitem(sys.modules, "ghm_triton.mmdet_plugin", raising=False)
    with pytest.raises(ImportError, match="needs mmdetection 3.x"):
        importlib.import_module("ghm_triton.mmdet_plugin")
