"""GHMC and GHMR against a loop over regions, called as mmdetection's dense heads call them."""

import sys

import pytest
import torch
import torch.nn.functional as F

from compare import logits
from ghm_triton import mmdet
from oracle import norms, one_hot, regions
from tolerances import GRADIENT, LOSS, assert_close

EPS = torch.finfo(torch.float32).eps


class Loop:
    """What the public implementation computes, one region after another, in float64; counts averaged as there."""

    def __init__(self, kind, bins, momentum=0.0, mu=0.02, loss_weight=1.0):
        self.kind, self.bins, self.momentum, self.mu, self.loss_weight = kind, bins, momentum, mu, loss_weight
        self.counts = [0.0] * bins

    def __call__(self, x, target, weight, reduction="mean"):
        region = regions(self.kind, x, target, self.bins, self.mu)
        _, loss, slope = norms(self.kind, x, target, self.mu)
        counted = weight > 0
        total = max((counted.double() if self.kind == "c" else weight.double()).sum().item(), 1.0)
        beta, present = torch.zeros_like(loss), 0
        for i in range(self.bins):
            inside = (region == i) & counted
            if inside.any():
                present += 1
                kept = self.momentum * self.counts[i]
                self.counts[i] = kept + (1 - self.momentum) * inside.sum().item()
                beta[inside] = total / self.counts[i]
        beta *= self.loss_weight / max(present, 1)
        divisor = total + EPS if reduction == "mean" else 1.0
        scaled = torch.where(counted, beta * loss, 0.0) / divisor
        return (scaled if reduction == "none" else scaled.sum()), torch.where(counted, beta * slope, 0.0) / divisor


def levels():
    """The five calls of a step: scores, labels with background 80, label weights with some 0."""
    for seed, anchors in enumerate((120, 60, 30, 7, 2)):
        generator = torch.Generator().manual_seed(seed)
        labels = torch.full((anchors,), 80)
        labels[:: 5 + seed] = torch.randint(0, 80, labels[:: 5 + seed].shape, generator=generator)
        yield logits(anchors, 80, seed=seed, mean=-3), labels, (torch.rand(anchors, generator=generator) > 0.1).float()


@pytest.mark.parametrize("momentum", [0, 0.75])
def test_ghmc_of_a_dense_head(momentum):
    """Level by level, five times a step, with one state that every call updates, also in eval()."""
    loss, loop = mmdet.GHMC(bins=30, momentum=momentum, loss_weight=2.0), Loop("c", 30, momentum, loss_weight=2.0)
    for step in range(2):
        loss.train(step == 0)
        for scores, labels, weights in levels():
            scores.requires_grad_()
            value = loss(scores, labels, weights, avg_factor=int(weights.sum()))
            value.backward()
            dense = one_hot(labels, 80)
            expected, grad = loop(scores.detach(), dense, weights[:, None].expand_as(dense))
            assert_close(value, expected, LOSS * (1 + 5 * step))  # acc_sum is float32, some calls old
            assert_close(scores.grad, grad, 2 * GRADIENT)
    if momentum:
        assert torch.allclose(loss.acc_sum.double(), torch.tensor(loop.counts).double(), rtol=1e-6)


@pytest.mark.parametrize("momentum", [0, 0.7])
@pytest.mark.parametrize("reduction", ["mean", "sum", "none"])
def test_ghmr_of_a_dense_head(momentum, reduction):
    """Box weights are 1 for positives and 0 elsewhere; 'mean' divides by their sum and float32's epsilon."""
    loss = mmdet.GHMR(0.02, 10, momentum, 10.0)
    loop = Loop("r", 10, momentum, loss_weight=10.0)
    for seed in range(3):
        target = logits(50, 4, seed=seed, mean=0, std=1)
        pred = (target + logits(50, 4, seed=9 + seed, mean=0, std=0.05)).requires_grad_()
        weights = (torch.arange(50) % 3 == 0).float()[:, None].repeat(1, 4) * (1 + 0.5 * seed)
        value = loss(pred, target, weights, avg_factor=17, reduction_override=reduction)
        value.sum().backward()
        expected, grad = loop(pred.detach(), target, weights, reduction)
        assert_close(value, expected, 2 * LOSS if reduction != "none" else 2 * GRADIENT, 1e-12)
        assert_close(pred.grad, grad, 2 * GRADIENT, 1e-12)


def test_positional_and_keyword_calls():
    """GHMC swallows keywords that it does not know, as heads pass them to all their losses; GHMR does not."""
    (scores, labels, weights), *_ = levels()
    loss = mmdet.GHMC(10, 0, True, 1.0, "mean")
    expected = loss(scores, labels, weights)
    assert torch.equal(loss(scores, labels, weights, None, avg_factor=3, epoch=7), expected)
    assert torch.equal(loss(pred=scores, target=labels, label_weight=weights), expected)
    assert_close(loss(scores, one_hot(labels, 80).float(), weights[:, None].expand(-1, 80)), expected, LOSS)
    assert torch.equal(loss(scores, labels, weights[:, None]), expected)  # [N, 1], as mmdetection takes it
    assert loss(scores, labels, weights, "none").shape == scores.shape
    box = mmdet.GHMR(mu=0.02, bins=10, momentum=0, loss_weight=1.0, reduction="mean")
    boxes = torch.ones(4, 4)
    assert torch.equal(box(boxes, boxes * 2, boxes, 3, "sum"), box(boxes, boxes * 2, boxes, reduction_override="sum"))
    with pytest.raises(TypeError):
        box(boxes, boxes, boxes, epoch=7)


def test_defaults_and_checkpoint_keys():
    """Constructors, buffers and keys of mmdetection's classes; a checkpoint of theirs loads strictly and is used."""
    loss, box = mmdet.GHMC(), mmdet.GHMR()
    assert (loss.bins, loss.momentum, loss.use_sigmoid, loss.loss_weight, loss.reduction) == (10, 0, True, 1.0, "mean")
    assert (box.mu, box.bins, box.momentum, box.loss_weight, box.reduction) == (0.02, 10, 0, 1.0, "mean")
    assert list(loss.state_dict()) == list(box.state_dict()) == ["edges"]
    edges = torch.arange(31).float() / 30
    edges[-1] += 1e-6
    loss = mmdet.GHMC(bins=30, momentum=0.75)
    assert torch.equal(loss.edges, edges) and mmdet.GHMR().edges[-1] == 1e3
    checkpoint = {"edges": edges, "acc_sum": torch.linspace(0, 1e6, 30)}
    assert set(loss.state_dict()) == set(checkpoint)
    loss.load_state_dict(checkpoint, strict=True)
    loop = Loop("c", 30, 0.75)
    loop.counts = checkpoint["acc_sum"].tolist()
    (scores, labels, weights), *_ = levels()
    dense = one_hot(labels, 80)
    expected, _ = loop(scores, dense, weights[:, None].expand_as(dense))
    assert_close(loss(scores, labels, weights), expected, 2 * LOSS)
    assert torch.allclose(loss.acc_sum, torch.tensor(loop.counts), rtol=1e-6)


def test_16_bit_predictions():
    """Under autocast predictions are 16-bit and targets float32; weights above 65504 must not overflow."""
    scores = torch.full((2000, 80), -9.0, dtype=torch.float16)
    scores[0, 0] = 5.0  # alone in its region: weight 160,000 / 2
    labels, weights = torch.full((2000,), 80), torch.ones(2000)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        scores.requires_grad_()
        value = mmdet.GHMC(bins=30)(scores, labels, weights)
        every = mmdet.GHMC(bins=30)(scores, labels, weights, "none")
        boxes = torch.randn(5, 4, dtype=torch.bfloat16)
        assert mmdet.GHMR()(boxes, boxes.float() + 0.01, torch.ones(5, 4)).dtype == torch.float32
    value.backward()
    expected = (F.softplus(torch.tensor(-9.0)) + F.softplus(torch.tensor(5.0))) / 2
    assert value.item() == pytest.approx(expected.item(), rel=1e-5)
    assert every.isfinite().all() and every[0, 0] > 65504 * 5
    assert scores.grad.dtype == torch.float16 and scores.grad.isfinite().all()


def test_half_module_keeps_g_of_1():
    """In half the last edge 1 + 1e-6 becomes 1, and g = 1 falls out of all regions: buffers stay float32 here."""
    scores = torch.tensor([[40.0, -1.0]])
    labels, weights = torch.tensor([2]), torch.ones(1)
    loss = mmdet.GHMC(bins=10, momentum=0.5).half()
    value = loss(scores, labels, weights)
    assert loss.acc_sum[9] == 0.5 and value > 40 / 2


def test_ignored_nan_stays_out():
    (scores, labels, weights), *_ = levels()
    clean = mmdet.GHMC(bins=30)(scores, labels, weights)
    scores[weights == 0] = float("nan")
    assert (weights == 0).any()
    assert torch.equal(mmdet.GHMC(bins=30)(scores, labels, weights), clean)


def test_without_mmdetection(monkeypatch):
    """The error names mmdetection. test_mmdet_package.py registers the classes in the real package."""
    monkeypatch.setitem(sys.modules, "mmdet", None)
    with pytest.raises(ImportError, match="needs mmdetection 3.x, which cannot be imported: .*mmdet"):
        mmdet.register_mmdet()
