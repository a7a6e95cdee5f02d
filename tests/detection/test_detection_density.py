"""What the figures of a training show, against the definition."""

import copy

import pytest
import torch

for module in ("torchvision", "sklearn", "matplotlib"):
    pytest.importorskip(module)

from ghm_triton import GHMCLoss, GHMRLoss
from ghm_triton.detection import harmonize
from ghm_triton.detection.data.digit_scenes import DigitScenes
from ghm_triton.detection.models.small import small_retinanet
from ghm_triton.detection.training import curves
from ghm_triton.detection.training.density_figure import (
    Seen,
    _see,
    draw_counts,
    draw_density,
    draw_gradient,
    draw_weights,
    observe,
)


def test_counts_and_shares_follow_the_definition():
    """The gradient of each element by a loop, harmonized with the weights of the density."""
    torch.manual_seed(0)
    logits, labels = torch.randn(50, 3) * 3, torch.randint(-1, 3, (50,))
    loss = GHMCLoss(bins=5, momentum=0.5, exponent=0.5)
    loss(logits, labels)
    positive = labels[:, None] == torch.arange(3)
    norm = (logits.sigmoid() - positive.float()).abs()
    seen = _see(loss, norm.flatten(), positive.flatten(), 30, "logits")
    density = loss.density()
    assert torch.equal(seen.counts, density.counts.double()) and seen.counts.sum() == 150
    expected = torch.zeros(5, 2, dtype=torch.float64)
    for g, is_positive in zip(norm.flatten().tolist(), positive.flatten().tolist()):
        region = min(int(g * 5), 4)
        expected[region, int(is_positive)] += g * density.weights[region].item()
    torch.testing.assert_close(seen.percentages(weighted=True), 100 * expected / expected.sum())
    # The batch is all that the loss has seen: the weighted sum of the elements is their number.
    assert (seen.counts * seen.weights).sum().item() == pytest.approx(150, rel=1e-5)


def test_without_a_density_the_batch_is_counted():
    norm = torch.tensor([0.0, 0.09, 0.1, 0.95, 1.0])
    for loss in (None, GHMRLoss(momentum=0.0)):
        seen = _see(loss, norm, torch.ones(5, dtype=torch.bool), 10, "box coordinates")
        assert seen.counts.tolist() == [2, 1, 0, 0, 0, 0, 0, 0, 0, 2] and seen.weights is None
        assert seen.percentages(weighted=True).sum().item() == pytest.approx(100)
        assert torch.equal(seen.percentages(weighted=True), seen.percentages(weighted=False))


def test_an_empty_region_has_no_weight():
    """After 300 calls without it, the average of a region is 1e-37, and its weight would be inf in fp32."""
    loss = GHMCLoss(bins=4, momentum=0.75, exponent=1.0)
    target = torch.zeros(10, 1)
    loss(torch.full((10, 1), 2.0), target)  # norm 0.88: region 3
    for _ in range(300):
        loss(torch.full((10, 1), -2.0), target)  # norm 0.12: region 0
    norm = torch.full((10,), 0.12)
    seen = _see(loss, norm, torch.zeros(10, dtype=torch.bool), 30, "logits")
    assert seen.weights.tolist() == pytest.approx([0.25, 0, 0, 0])
    assert seen.percentages(weighted=True)[:, 0].tolist() == pytest.approx([100, 0, 0, 0])


@pytest.mark.slow
def test_observing_leaves_the_training_as_it_is(tmp_path):
    """Weights, running counts, mode and PyTorch's generator, of which torchvision draws; the figure is drawn."""
    model = harmonize(small_retinanet(10, size=64))
    scenes = DigitScenes(2, split="train")
    items = [scenes[0], scenes[1]]
    batch = [image for image, _ in items], [target for _, target in items]
    model.train()(*batch)
    model.eval()
    state, random = copy.deepcopy(model.state_dict()), torch.get_rng_state()
    seen = observe(model, items)
    assert list(seen) == ["classification", "boxes"] and not model.training
    assert torch.equal(torch.get_rng_state(), random)
    assert all(torch.equal(value, state[name]) for name, value in model.state_dict().items())
    model.train()(*batch)  # what the figure is of: a step with this batch
    counts = model.head.classification_loss.density().counts
    assert torch.equal(seen["classification"].counts, counts.double())
    assert seen["classification"].gradient.sum() > 0 and (seen["boxes"].gradient[:, 0] == 0).all()
    draw_density(tmp_path / "density.png", seen | {"boxes": seen["boxes"]._replace(weights=None)})
    assert (tmp_path / "density.png").read_bytes().startswith(b"\x89PNG")


def shown(axes):
    """The labels of the ticks between the borders."""
    axes.figure.draw_without_rendering()
    low, high = axes.get_ylim()
    ticks = axes.yaxis.get_major_ticks() + axes.yaxis.get_minor_ticks()
    return {tick.label1.get_text() for tick in ticks if low <= tick.get_loc() <= high} - {""}


def test_panels_have_plain_ticks_room_above_and_no_falls_at_the_ends():
    """Ticks used to be 6x10^-1, bars to end at the border, and outlines to drop to the axis."""
    from matplotlib.figure import Figure

    bars = torch.tensor([1000.0, 40, 3, 0])
    weights = torch.tensor([0.7, 1.2, 1.9, 0])
    seen = Seen(torch.linspace(0, 1, 5).double(), bars, weights, torch.stack([bars, bars / 2], dim=1), "logits")
    counts, weight, gradient = Figure().subplots(1, 3)
    draw_counts(counts, seen, "classification")
    draw_weights(weight, seen, "classification")
    draw_gradient(gradient, seen, "classification")
    assert shown(counts) == {"0", "1", "10", "100", "1,000", "10,000"} and shown(weight) == {"0.1", "1", "10"}
    assert counts.get_ylim() == (0, 10_000) and weight.get_ylim() == pytest.approx((0.1, 10))
    (outline,) = weight.patches
    assert outline.get_path().vertices[0].tolist() == pytest.approx([0, 0.7])
    assert gradient.get_ylim()[1] > seen.percentages(weighted=False).sum(dim=1).max()


def test_losses_are_drawn_between_the_evaluations(tmp_path, monkeypatch):
    """A short run has no mean of ten steps, and says what its line is."""
    drawn = []
    rows = [{"epoch": 1, "step": 8, "classification": 2.0}, {"epoch": 2, "step": 16, "classification": 1.0}]
    metrics = [row | dict.fromkeys(("AP", "AP50", "AP75"), 5.0) for row in rows]
    monkeypatch.setattr(curves, "_save", lambda figure, path: drawn.append(figure) or path)
    curves.draw_curves(tmp_path, [{"epoch": 2, "step": 10, "classification": 1.5}], metrics)
    (axes,) = drawn[0].axes
    assert [text.get_text() for text in axes.get_legend().get_texts()] == ["mean between evaluations"]
    (line,) = axes.patches
    assert line.get_data().values.tolist() == [2, 1] and line.get_data().edges.tolist() == [0, 8, 16]
