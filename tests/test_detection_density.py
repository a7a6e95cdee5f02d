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
from ghm_triton.detection.training.density import _see, draw_density, observe


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
    torch.testing.assert_close(seen.shares(weighted=True), 100 * expected / expected.sum())
    # The batch is all that the loss has seen: the weighted sum of the elements is their number.
    assert (seen.counts * seen.weights).sum().item() == pytest.approx(150, rel=1e-5)


def test_without_a_density_the_batch_is_counted():
    norm = torch.tensor([0.0, 0.09, 0.1, 0.95, 1.0])
    for loss in (None, GHMRLoss(momentum=0.0)):
        seen = _see(loss, norm, torch.ones(5, dtype=torch.bool), 10, "box coordinates")
        assert seen.counts.tolist() == [2, 1, 0, 0, 0, 0, 0, 0, 0, 2] and seen.weights is None
        assert seen.shares(weighted=True).sum().item() == pytest.approx(100)
        assert torch.equal(seen.shares(weighted=True), seen.shares(weighted=False))


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
    assert seen.shares(weighted=True)[:, 0].tolist() == pytest.approx([100, 0, 0, 0])


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
