"""GHMC in mmdetection's dense heads, called as they call their own classification losses."""

import sys

import pytest
import torch

import mmcv_operators

pytest.importorskip("mmdet")
mmcv_operators.install()
# mmdetection imports transformers, which imports a package `kernels` if it finds one: the folder here is none.
sys.modules.setdefault("kernels", None)

import mmdet.models  # noqa: F401  registers the heads
from mmdet.registry import MODELS
from mmengine.config import ConfigDict
from mmengine.registry import DefaultScope
from mmengine.structures import InstanceData

from ghm_triton.mmdet import GHMC, register_mmdet
from oracle import harmonize, one_hot
from tolerances import GRADIENT, LOSS, assert_close

pytestmark = pytest.mark.xdist_group("mmdet")

LOSS_CLS = dict(type="GHMC", bins=10, momentum=0.75, exponent=0.5)
BOXES = dict(type="GIoULoss", loss_weight=2.0)
ASSIGNER = dict(type="ATSSAssigner", topk=3)
ANCHORS = dict(type="AnchorGenerator", ratios=[1.0], octave_base_scale=4, scales_per_octave=1, strides=[8, 16])
COMMON = dict(num_classes=3, in_channels=8, feat_channels=8, stacked_convs=1)
CODER = dict(type="DeltaXYWHBBoxCoder")
DYNAMIC = dict(type="DynamicSoftLabelAssigner", topk=3)
HEADS = {
    "RetinaHead": dict(
        COMMON, anchor_generator=ANCHORS, bbox_coder=CODER, loss_cls=LOSS_CLS, loss_bbox=dict(type="L1Loss"),
        train_cfg=dict(assigner=dict(type="MaxIoUAssigner", pos_iou_thr=0.4, neg_iou_thr=0.3), allowed_border=-1,
                       pos_weight=-1),
    ),
    "ATSSHead": dict(
        COMMON, anchor_generator=ANCHORS, bbox_coder=CODER, loss_cls=LOSS_CLS, loss_bbox=BOXES,
        loss_centerness=dict(type="CrossEntropyLoss", use_sigmoid=True), norm_cfg=None,
        train_cfg=dict(assigner=ASSIGNER, allowed_border=-1, pos_weight=-1),
    ),
    "FCOSHead": dict(
        COMMON, strides=[8, 16], regress_ranges=((-1, 32), (32, 1e8)), loss_cls=LOSS_CLS, loss_bbox=BOXES,
        norm_cfg=None,
    ),
    "GFLHead": dict(
        COMMON, anchor_generator=ANCHORS, loss_cls=LOSS_CLS, loss_bbox=BOXES, norm_cfg=None,
        loss_dfl=dict(type="DistributionFocalLoss", loss_weight=0.25), reg_max=4,
        train_cfg=dict(assigner=ASSIGNER, allowed_border=-1, pos_weight=-1),
    ),
    "YOLOXHead": dict(
        COMMON, strides=[8, 16], norm_cfg=dict(type="BN"), loss_cls=dict(LOSS_CLS, reduction="sum"),
        loss_obj=dict(LOSS_CLS, reduction="sum"), train_cfg=dict(assigner=dict(type="SimOTAAssigner")),
    ),
    "RTMDetHead": dict(
        COMMON, anchor_generator=dict(type="MlvlPointGenerator", offset=0, strides=[8, 16]),
        bbox_coder=dict(type="DistancePointBBoxCoder"), loss_cls=LOSS_CLS, loss_bbox=BOXES, with_objectness=False,
        norm_cfg=dict(type="BN"), train_cfg=dict(assigner=DYNAMIC, allowed_border=-1, pos_weight=-1),
    ),
    "CenterNetHead": dict(
        num_classes=3, in_channels=8, feat_channels=8, loss_center_heatmap=dict(LOSS_CLS, activated=True),
        loss_wh=dict(type="L1Loss"), loss_offset=dict(type="L1Loss"),
    ),
}  # fmt: skip


@pytest.fixture(scope="module", autouse=True)
def registered():
    register_mmdet()
    with DefaultScope.overwrite_default_scope("mmdet"):
        yield


def objects():
    """Two images: two objects, and none."""
    first = InstanceData(bboxes=torch.tensor([[8.0, 8, 40, 44], [30, 20, 62, 60]]), labels=torch.tensor([2, 0]))
    return [first, InstanceData(bboxes=torch.zeros(0, 4), labels=torch.zeros(0, dtype=torch.int64))]


@pytest.mark.slow
@pytest.mark.parametrize("name", HEADS)
def test_heads(name, monkeypatch):
    """A head has losses and gradients; those of the classes are what the reference gives on its targets."""
    torch.manual_seed(0)
    head = MODELS.build(ConfigDict(type=name, **HEADS[name]))
    losses = [module for module in head.modules() if isinstance(module, GHMC)]
    assert len(losses) == (2 if name == "YOLOXHead" else 1)
    calls = []
    forward = GHMC.forward

    def record(self, pred, target, label_weight=None, reduction_override=None, **more):
        before = self.acc_sum.clone()
        value = forward(self, pred, target, label_weight, reduction_override, **more)
        calls.append(
            (self, pred, target, label_weight if label_weight is not None else more.get("weight"), value, before)
        )
        return value

    monkeypatch.setattr(GHMC, "forward", record)
    sizes = [16] if name == "CenterNetHead" else [8, 4]
    features = [torch.randn(2, 8, size, size) for size in sizes]
    meta = [dict(img_shape=(64, 64), pad_shape=(64, 64), scale_factor=1.0, batch_input_shape=(64, 64))] * 2
    given = head.loss_by_feat(*head(features), objects(), meta)
    total = sum(sum(value) if isinstance(value, list) else value for value in given.values())
    assert calls and total.isfinite()
    grads = torch.autograd.grad(total, head.parameters(), allow_unused=True)
    assert any(grad is not None and grad.any() for grad in grads)
    for module, pred, target, weight, value, before in calls:
        check_call(module, pred.detach(), target, weight, value.detach(), before)


def check_call(module, pred, target, weight, value, before):
    if isinstance(target, tuple):
        target = one_hot(target[0], pred.shape[-1]) * target[1].double().unsqueeze(-1)
    elif target.dim() < pred.dim():
        target = one_hot(target, pred.shape[-1])
    if module.activated:
        pred = pred.double().logit().float()
    if weight is not None:
        weight = weight.unsqueeze(-1).expand(pred.shape) if weight.dim() < pred.dim() else weight
    options = dict(bins=10, variant="mmdet", momentum=0.75, exponent=0.5, reduction=module.reduction)
    expected, _, _ = harmonize("c", pred, target.float(), weight, state=before, **options)
    rounding = 1e-5 if module.activated else 10 * LOSS  # logits of rounded probabilities
    assert_close(value, expected, rounding)


def test_labels_and_scores():
    """The tuple of quality focal loss is the dense target with the scores at the classes; class C is background."""
    torch.manual_seed(0)
    logits, weight = torch.randn(6, 3), torch.tensor([1.0, 1, 0, 1, 0.5, 1])
    labels, scores = torch.tensor([0, 3, 1, 2, 3, 0]), torch.tensor([0.3, 0.0, 0.9, 1.0, 0.0, 0.7])
    dense = torch.zeros(6, 3)
    for row, (label, score) in enumerate(zip(labels.tolist(), scores.tolist())):
        if label < 3:
            dense[row, label] = score
    results = []
    for target, weights in (((labels, scores), weight), (dense, weight[:, None])):
        leaf = logits.clone().requires_grad_()
        value = GHMC(exponent=0.5)(leaf, target, weight=weights, avg_factor=3.0)
        value.backward()
        results.append((value.detach(), leaf.grad))
    assert all(map(torch.equal, *results))
    options = dict(bins=10, variant="mmdet", exponent=0.5)
    expected, gradient, _ = harmonize("c", logits, dense, weight[:, None].expand(6, 3), **options)
    assert_close(results[0][0], expected, 10 * LOSS)
    assert_close(results[0][1], gradient, 10 * GRADIENT, 1e-8)
    with pytest.raises(
        ValueError, match=r"target must be a tuple of labels \(6,\) and scores \(6,\), got \[\(6,\), \(5,\)"
    ):
        GHMC()(logits, (labels, scores[:5]))


def test_probabilities():
    """`activated` takes what a sigmoid made: the value and the gradient of the logits; 0 and 1 are finite."""
    torch.manual_seed(0)
    logits, target = torch.randn(2, 3, 4, 4) * 3, torch.rand(2, 3, 4, 4)
    results = []
    for activated in (False, True):
        leaf = logits.clone().requires_grad_()
        value = GHMC(exponent=0.5, activated=activated)(leaf.sigmoid() if activated else leaf, target)
        value.backward()
        results.append((value.detach(), leaf.grad))
    assert_close(results[1][0], results[0][0], 1e-5)
    assert_close(results[1][1], results[0][1], 1e-4, 1e-7)  # 1 - p of a rounded p near 1
    sure = torch.tensor([[0.0, 1.0]], requires_grad=True)
    GHMC(activated=True)(sure, torch.tensor([[1.0, 0.0]])).backward()
    assert sure.grad.isfinite().all()
