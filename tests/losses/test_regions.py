"""Which unit region an element gets, beside the edges: found out one element at a time, and by every kernel alike.

A module in eval mode with S_j = j + 1 gives region j the weight N / ((j + 1) M): regions can be read off the losses.
"""

import pytest
import torch

from calls import ghmc_loss
from ghm_triton import GHMCLoss, GHMRLoss
from oracle import norms

BINS = [2, 10, 11, 12, 19, 25, 30, 50]
SIGMOID = 4 * 2**-24  # sigmoids of different implementations differ by a few units in the last place of 1


def found_regions(kind, x, target, bins, backend):
    """The region of each element as the loss has it, and as the gradient has it."""
    module = (GHMCLoss if kind == "c" else GHMRLoss)(bins=bins, exponent=1.0, reduction="none", backend=backend)
    module = module.to(x.device).eval()
    module.running_counts.copy_(torch.tensor([*range(1, bins + 1), 1.0]))
    leaf = x.clone().requires_grad_()
    loss = module(leaf, target)
    loss.sum().backward()
    _, unweighted, slope = norms(kind, x.cpu(), target.cpu())
    found = []
    for weighted, plain in ((loss, unweighted), (leaf.grad, slope)):
        number = len(x) / bins * plain / weighted.detach().cpu().double() - 1
        assert ((number - number.round()).abs() < 1e-3).all()
        found.append(number.round().long())
    return found


def exact_regions(norm, bins):
    """The last i with g >= i / bins, both float32; as mmdetection's comparisons have it, but g = 1 is in the last."""
    edges = torch.arange(bins).float() / bins
    return (norm.unsqueeze(-1) >= edges).sum(-1) - 1


def around(values, steps):
    """float32 numbers `steps` units in the last place to both sides of each value, and 1e-5 of it away."""
    found, down, up = [values, values * (1 - 1e-5), values * (1 + 1e-5)], values, values
    for _ in range(steps):
        down = torch.nextafter(down, torch.tensor(-torch.inf))
        up = torch.nextafter(up, torch.tensor(torch.inf))
        found += [down, up]
    return torch.cat(found)


def check_regions(loss, grad, norm, exact_norm, bins, *, exact):
    """exact: no element may differ. Otherwise those may that lie within SIGMOID of an edge, by one region."""
    expected = exact_regions(norm, bins)
    assert torch.equal(loss, grad)
    moved = loss != expected
    if exact:
        assert not moved.any()
        return
    edges = torch.arange(1, bins).double() / bins
    distance = (exact_norm.unsqueeze(-1) - edges).abs().amin(-1)
    assert (distance[moved] < SIGMOID).all() and ((loss - expected)[moved].abs() == 1).all()
    assert moved.double().mean() < 0.5  # of elements that were all put beside edges


@pytest.mark.parametrize("bins", BINS)
@pytest.mark.parametrize("positive", [False, True], ids=["negatives", "positives"])
def test_ghmc_at_the_edges(bins, positive, backend, device):
    """Dense targets: floor(g * bins) is one off beside the edges of 11, 12, 19, 20, 25, 50 and 100 bins."""
    x = around(torch.logit(torch.arange(1, bins).double() / bins).float(), 6)
    x = torch.cat([x, torch.tensor([0.0, 200.0, 17.4, -60.0])])
    x = -x if positive else x
    x = x[norms("c", x, torch.full_like(x, positive))[1] > 1e-30]  # a loss of 0 tells nothing
    target = torch.full_like(x, positive)
    loss, grad = found_regions("c", x.to(device), target.to(device), bins, backend)
    exact_norm = norms("c", x, target)[0]
    check_regions(
        loss, grad, (x.sigmoid() - target).abs(), exact_norm, bins, exact=(backend, device) == ("eager", "cpu")
    )
    assert (loss[exact_norm > 1 - 1e-8] == bins - 1).all() and (exact_norm > 1 - 1e-8).any()
    if bins % 2 == 0:
        assert (loss[x == 0] == bins // 2).all()  # sigmoid(0) is 1/2 to the bit, everywhere


@pytest.mark.parametrize("bins", [*BINS, 1, 49])
def test_edges_are_compared_exactly(bins, backend, device):
    """sigmoid(-200) is 0, so that g is the soft target to the bit: no element may differ, on any device."""
    target = around(torch.arange(1, bins).float() / bins, 3) if bins > 1 else torch.rand(5)
    target = torch.cat([target, torch.tensor([1e-6, 1.0])]).clamp(max=1)
    x = torch.full_like(target, -200.0)
    loss, grad = found_regions("c", x.to(device), target.to(device), bins, backend)
    assert torch.equal(loss, exact_regions(target, bins)) and torch.equal(grad, loss)
    state = torch.zeros(bins, device=device)
    ghmc_loss(x.to(device), target.to(device), bins=bins, variant="mmdet", running_counts=state, backend=backend)
    assert torch.equal(state.cpu().long(), torch.bincount(loss, minlength=bins))


@pytest.mark.parametrize("bins", [2, 11, 50])
def test_class_indices_at_the_edges(bins, backend, device):
    """The path of class indices has shortcuts of its own; and counts, losses and gradients must agree on the region."""
    x = around(torch.logit(torch.arange(1, bins).double() / bins).float(), 6)
    x = torch.stack([x, -x], dim=1).to(device)
    labels = torch.ones(len(x), dtype=torch.int64, device=device)
    state, leaf = torch.zeros(bins + 1, device=device), x.clone().requires_grad_()
    ghmc_loss(leaf, labels, bins=bins, running_counts=state, backend=backend).backward()
    dense = torch.tensor([0.0, 1.0]).expand(len(x), 2)
    loss, _ = found_regions("c", x.flatten(), dense.flatten().to(device), bins, backend)
    assert torch.equal(torch.bincount(loss, minlength=bins), state[:bins].cpu().long())
    slope = norms("c", x.cpu(), dense)[2].flatten()
    beta = leaf.grad.cpu().double().flatten() / slope
    expected = 1 / (state[:bins].cpu().double() * bins)[loss]
    assert ((beta - expected).abs() <= 2e-6 * expected).all()


@pytest.mark.parametrize("bins", [1, 2, 3, 30])
def test_easy_tiles_end_before_the_first_edge(bins, backend, device):
    """Whole tiles of easy negatives skip the region: at their limit the gradient must still find it filled.

    An element counted in region 0 but weighted as region 1, which is empty, would lose its gradient.
    """
    limit = torch.logit(torch.tensor(1.0 / max(bins, 2), dtype=torch.float64)).item()
    x = (limit + torch.linspace(-3e-4, 3e-4, 2048)).clamp(max=limit + 1e-5).to(device)
    state = torch.zeros(bins + 1, device=device)
    for chunk in (x, x[x < limit - 1e-5][:1024].clone()):
        leaf = chunk.clone().requires_grad_()
        state.zero_()
        ghmc_loss(leaf, torch.zeros_like(chunk), bins=bins, running_counts=state, backend=backend).backward()
        exact = norms("c", chunk.cpu(), torch.zeros(len(chunk)))[0]
        sure = (exact - 1 / bins).abs() > SIGMOID
        region = (exact * bins).long().clamp(max=bins - 1)
        counts = state[:bins].cpu().double()
        assert counts.sum() == len(chunk)
        assert (counts - torch.bincount(region[sure], minlength=bins)).abs().sum() <= (~sure).sum()
        expected = exact / (counts[region] * bins)
        assert ((leaf.grad.cpu() - expected).abs()[sure] <= 2e-6 * expected[sure]).all()
        assert (leaf.grad > 0).all()


@pytest.mark.parametrize("bins", [2, 11, 30])
def test_ghmr_at_the_edges(bins, backend, device):
    """g = i / M at d = mu * g / sqrt(1 - g^2), from both sides; and g = 1 in float32, which is below 1."""
    g = torch.arange(1, bins).double() / bins
    x = around((0.02 * g / (1 - g * g).sqrt()).float(), 6)
    x = torch.cat([x, -x, torch.tensor([1e-9, 1e3, -1e3])])
    target = torch.zeros_like(x)
    loss, grad = found_regions("r", x.to(device), target.to(device), bins, backend)
    norm = (x / (x * x + 0.02 * 0.02).sqrt()).abs()
    check_regions(loss, grad, norm, norms("r", x, target)[0], bins, exact=(backend, device) == ("eager", "cpu"))
    assert (loss[-3:] == torch.tensor([0, bins - 1, bins - 1])).all()


@pytest.mark.parametrize("bins", [1, 2, 13, 14, 15, 30, 62, 63, 510])
def test_every_number_of_bins(bins, backend, device):
    """Tables are as long as a power of two: one bin more or less than that must not lose a slot."""
    x = torch.logit((torch.arange(bins).double() + 0.5) / bins).float().to(device)  # one element a region
    state = torch.zeros(bins, device=device)
    leaf = x.requires_grad_()
    loss = ghmc_loss(leaf, torch.zeros_like(x), bins=bins, running_counts=state, variant="mmdet", backend=backend)
    loss.backward()
    assert (state == 1).all()
    expected = torch.nn.functional.softplus(x.detach().double()).sum() / bins  # each has the weight 1 / (1 * bins)
    assert loss.item() == pytest.approx(expected.item(), rel=1e-6)
    assert (leaf.grad.double() - x.detach().double().sigmoid() / bins).abs().max() <= 2e-6 / bins
