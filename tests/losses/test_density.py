"""density() against the elements themselves, and its figure; modules from the meta device."""

import pytest
import torch

from compare import logits
from ghm_triton import GHMCLoss, GHMCrossEntropyLoss, GHMRLoss
from ghm_triton.mmdet import GHMC, GHMR

NEARLY_NOTHING = 1e-6  # a momentum with which the moving average is the last call


def elements(kind, x, target):
    """(gradient norm, loss) of each element, float64."""
    x, target = x.double(), target.double()
    if kind == "c":
        return (x.sigmoid() - target).abs(), torch.nn.functional.binary_cross_entropy_with_logits(
            x, target, reduction="none"
        )
    d, mu = x - target, 0.02
    root = (d * d + mu * mu).sqrt()
    return (d / root).abs(), root - mu


@pytest.mark.parametrize("exponent", [1.0, 0.5, 0.0])
@pytest.mark.parametrize("kind", ["c", "r"])
def test_weights_give_the_loss(kind, exponent, backend, device):
    """The mean of weight times loss over the elements, with weights from density(), is the loss that came."""
    x = logits(300, 8).to(device) * (2.0 if kind == "c" else 0.1)
    target = (torch.rand(300, 8, generator=torch.Generator().manual_seed(1)) > 0.9).float().to(device) * (kind == "c")
    make = GHMCLoss if kind == "c" else GHMRLoss
    loss = make(momentum=NEARLY_NOTHING, exponent=exponent, backend=backend)
    loss = loss.to(device)
    value = loss(x, target)
    edges, counts, weights, shares = loss.density()
    norm, losses = elements(kind, x, target)
    region = (torch.bucketize(norm.float(), edges, right=True) - 1).clamp(max=loss.bins - 1)
    assert torch.equal(edges, torch.arange(loss.bins + 1, device=device) / loss.bins)
    # 1e-5: a share of 1e-6 of an empty state is in the average.
    found = torch.bincount(region.flatten(), minlength=loss.bins)
    torch.testing.assert_close(counts, found.float(), rtol=1e-5, atol=0)
    torch.testing.assert_close((weights[region].double() * losses).mean().float(), value.float(), rtol=1e-5, atol=0)
    of_region = torch.zeros_like(weights, dtype=torch.float64).index_add_(
        0, region.flatten(), weights[region].flatten().double()
    )
    torch.testing.assert_close(shares.double(), of_region / x.numel(), rtol=1e-5, atol=0)


def test_density_is_the_moving_average(device):
    """What the weights of the next evaluation come from: two calls, the second three times as many elements."""
    loss = GHMCLoss(bins=4, momentum=0.5, exponent=1.0).to(device)
    assert not any(tensor.any() for tensor in loss.density()[1:])
    loss(torch.full((10, 1), -2.0, device=device), torch.zeros(10, 1, device=device))  # norm 0.12: region 0
    loss(torch.full((30, 1), 2.0, device=device), torch.zeros(30, 1, device=device))  # norm 0.88: region 3
    counts = loss.density().counts
    # By eq. 12 from 0: 0.25 * 10 and 0.5 * 30, divided by what the constant 1 has come to, 0.75.
    torch.testing.assert_close(counts, torch.tensor([10 / 3, 0.0, 0.0, 20.0], device=device))
    torch.testing.assert_close(loss.density().shares, torch.tensor([0.25, 0.0, 0.0, 0.25], device=device))
    assert loss.running_counts[-1] == 0.75  # reading has not changed it


def test_density_needs_an_average():
    with pytest.raises(RuntimeError, match=r"momentum must be positive for density\(\).*got 0"):
        GHMCLoss(momentum=0.0).density()


def test_plot(device):
    """One figure with three panels, whose bars are the numbers."""
    figures = pytest.importorskip("matplotlib.figure")
    loss = GHMCLoss(bins=5).to(device)
    loss(logits(50, 3).to(device), torch.full((50,), -1, device=device))
    density = loss.density()
    figure = density.plot()
    assert density.plot(figure=figures.Figure()) is not figure
    for axes, values in zip(figure.axes, (density.counts, density.weights, density.shares), strict=True):
        bars = axes.patches
        assert [bar.get_height() for bar in bars] == values.tolist() and axes.get_ylabel()
        assert bars[0].get_x() == pytest.approx(0.01) and bars[-1].get_x() == pytest.approx(0.81)
    assert figure.axes[-1].get_xlabel() == "gradient norm g"


MAKERS = {
    "GHMCLoss": GHMCLoss,
    "GHMRLoss": GHMRLoss,
    "GHMCrossEntropyLoss": GHMCrossEntropyLoss,
    "GHMC": lambda: GHMC(momentum=0.5),
    "GHMR": lambda: GHMR(momentum=0.5),
}


@pytest.mark.parametrize("name", MAKERS)
def test_from_the_meta_device(name):
    """After to_empty() the memory holds anything (here NaN), as torch's own modules; reset_parameters() mends it."""
    with torch.device("meta"):
        module = MAKERS[name]()
    module.to_empty(device="cpu").reset_parameters()
    expected = MAKERS[name]().state_dict()
    assert module.state_dict().keys() == expected.keys()
    for key, value in module.state_dict().items():
        assert torch.equal(value, expected[key])
