"""NaN, infinity, huge and missing numbers: what they may reach, and what not."""

import math

import pytest
import torch

from calls import ghmc_loss, ghmr_loss
from compare import check_ghmc, clear_of_edges, evaluate
from ghm_triton import GHMCLoss, GHMRLoss
from ghm_triton.eager.harmonize import _average
from ghm_triton.options import Options
from tolerances import GRADIENT, LOSS, assert_close

VARIANTS, REDUCTIONS = ["paper", "mmdet"], ["mean", "sum", "none"]


def sample(loss, *shape, seed=0, device="cpu"):
    """Inputs and targets with elements in many regions."""
    draw = torch.Generator().manual_seed(seed)
    x = torch.randn(*shape, generator=draw)
    if loss is ghmc_loss:
        return (x * 3).to(device), torch.randint(-1, shape[-1], shape[:-1], generator=draw).to(device)
    return (x * 0.03).to(device), torch.zeros(shape, device=device)


def state_of(loss, variant, device="cpu"):
    return torch.zeros((30 if loss is ghmc_loss else 10) + (variant == "paper"), device=device)


@pytest.mark.parametrize("loss", [ghmc_loss, ghmr_loss])
@pytest.mark.parametrize("variant", VARIANTS)
@pytest.mark.parametrize("reduction", REDUCTIONS)
def test_nan_reaches_the_loss_and_its_own_gradient_only(loss, variant, reduction, backend, device):
    """One broken anchor must be seen, and must not poison the moving average or the others' gradients."""
    x, target = sample(loss, 60, 7, device=device)
    broken = torch.zeros(60, 7, dtype=torch.bool, device=device)
    broken[0, 0] = broken[31, 4] = broken[59, 6] = True
    x[broken] = torch.nan
    state, x = state_of(loss, variant, device), x.requires_grad_()
    value = loss(x, target, momentum=0.5, running_counts=state, variant=variant, reduction=reduction, backend=backend)
    value.sum().backward()
    assert torch.equal(value.isnan(), broken) if reduction == "none" else value.isnan()
    assert torch.equal(x.grad.isnan(), broken)
    assert x.grad[~broken].abs().max() > 0
    assert state.isfinite().all() and state.sum() > 0
    bins = len(state) - (variant == "paper")
    assert state[:bins].sum() == (x.numel() - 3) * 0.5  # NaN is in no region


@pytest.mark.parametrize("loss", [ghmc_loss, ghmr_loss])
def test_nan_alone(loss, backend, device):
    """A population of nothing but NaN has no region at all: the loss must still be NaN, not 0."""
    x, target = sample(loss, 3, 4, device=device)
    x = torch.full_like(x, torch.nan).requires_grad_()
    value = loss(x, target, backend=backend)
    value.backward()
    assert value.isnan() and x.grad.isnan().all()


@pytest.mark.parametrize("loss", [ghmc_loss, ghmr_loss])
def test_nan_targets(loss, backend, device):
    """As NaN logits."""
    x, _ = sample(loss, 10, 4, device=device)
    target = torch.zeros(10, 4, device=device)
    target[2, 2] = torch.nan
    x = x.requires_grad_()
    value = loss(x, target, backend=backend)
    value.backward()
    assert value.isnan() and torch.equal(x.grad.isnan(), target.isnan())


@pytest.mark.parametrize("variant", VARIANTS)
def test_infinite_logits(variant, backend, device):
    """g is 0 or 1: right infinities cost nothing, wrong ones infinitely much, and every gradient is finite."""
    x = torch.tensor([torch.inf, -torch.inf, torch.inf, -torch.inf, 0.3, -0.2], device=device)
    target = torch.tensor([1.0, 0.0, 0.0, 1.0, 0.0, 1.0], device=device)
    for count, chosen in ((4, [0, 1, 4, 5]), (6, list(range(6)))):
        state, leaf = torch.zeros(11 if variant == "paper" else 10, device=device), x[chosen].requires_grad_()
        value = ghmc_loss(leaf, target[chosen], bins=10, variant=variant, running_counts=state, backend=backend)
        value.backward()
        assert value == torch.inf if count == 6 else value.isfinite() and value > 0
        assert leaf.grad.isfinite().all()
        assert state[0] == 2 and state[9] == count - 4 and state[:10].sum() == count
    assert (leaf.grad[:2] == 0).all() and leaf.grad[2] > 0 and leaf.grad[3] < 0
    scale = 10 if variant == "paper" else (state[:10] > 0).sum().item()
    assert leaf.grad[2].item() == pytest.approx(1 / (2 * scale), rel=2e-6)


@pytest.mark.parametrize("loss, size", [(ghmc_loss, 9), (ghmc_loss, 520 * 256), (ghmr_loss, 9), (ghmr_loss, 40 * 256)])
def test_an_infinite_loss_is_not_nan(loss, size, backend, device):
    """A compensated sum that meets infinity turns inf - inf into NaN in the next addition.

    The interpreter's 32 programs add their tiles of 256 up after 16 (GHM-C) or 1 of them: the sizes go beyond that.
    """
    x = torch.full((size,), -9.0 if loss is ghmc_loss else 0.0, device=device)
    x[3] = torch.inf
    leaf = x.requires_grad_()
    value = loss(leaf, torch.zeros_like(x), backend=backend)
    value.backward()
    assert value == torch.inf
    assert leaf.grad.isfinite().all() and leaf.grad[3] > 0


@pytest.mark.parametrize("dtype, huge", [(torch.float32, 1e30), (torch.float32, 1e38), (torch.float16, 6e4)])
@pytest.mark.parametrize("loss", [ghmc_loss, ghmr_loss])
def test_huge_inputs(loss, dtype, huge, backend, device):
    """exp and squares overflow long before the loss does: it is |x| times its weight, the gradient that weight."""
    x = torch.tensor([huge, -huge, 1e-3, -1e-3], device=device).to(dtype).requires_grad_()
    target = torch.tensor([0.0, 1.0, 0.0, 0.0], device=device) if loss is ghmc_loss else torch.zeros(4, device=device)
    value = loss(x, target, bins=10, backend=backend)
    value.backward()
    # 1e-3 and -1e-3 lie on the two sides of g = 1/2, or both near g = 0, where their losses are too small to matter
    others = 2 * math.log(2) if loss is ghmc_loss else 0.0
    assert value.item() == pytest.approx((x[0].item() + others) / 10, rel=1e-6)  # two share the last region
    bound = 2**-11 if dtype == torch.float16 else 2e-6
    assert x.grad[:2].tolist() == pytest.approx([0.05, -0.05], rel=bound)
    assert x.grad.isfinite().all()


@pytest.mark.parametrize("reduction", REDUCTIONS)
@pytest.mark.parametrize("loss", [ghmc_loss, ghmr_loss])
@pytest.mark.parametrize("variant", VARIANTS)
@pytest.mark.parametrize("case", ["no rows", "no columns", "ignored", "negative weights", "empty levels"])
def test_nothing_counts(loss, variant, reduction, case, backend, device):
    """N = 0: loss 0 and gradients 0 instead of 0 / 0, also after other steps; the state does not decay."""
    shape = {"no rows": (0, 5), "no columns": (5, 0)}.get(case, (5, 6))
    x = torch.randn(shape, device=device).requires_grad_()
    target = torch.zeros(shape, device=device)
    weight = {"ignored": torch.zeros(5, 6), "negative weights": torch.full((5,), -2.0)}.get(case)
    weight = None if weight is None else weight.to(device)
    state = state_of(loss, variant, device)
    options = dict(momentum=0.75, running_counts=state, variant=variant, backend=backend)
    loss(*sample(loss, 20, 4, device=device), **options)
    before = state.clone()
    if case == "empty levels":
        x = torch.randn(0, 4, device=device).requires_grad_()
        value = loss([x, x], [x.detach(), x.detach()], reduction=reduction, **options)
        value = torch.cat(value) if reduction == "none" else value
    else:
        value = loss(x, target, weight, reduction=reduction, **options)
    assert value.shape == (x.shape if reduction == "none" else ()) and (value == 0).all()
    value.sum().backward()
    assert x.grad.shape == x.shape and (x.grad == 0).all()
    assert torch.equal(state, before) and state.sum() > 0


def test_class_indices_without_anchors_or_classes(backend, device):
    """Images without anchors, heads without classes: int targets of shapes that hold nothing."""
    for shape in ((0, 80), (5, 0), (0, 0), (2, 0, 3)):
        x = torch.zeros(shape, device=device).requires_grad_()
        target = torch.zeros(shape[:-1], dtype=torch.int64, device=device)
        for weight in (None, torch.ones(shape[:-1], device=device), torch.ones(shape, device=device)):
            value = ghmc_loss(x, target, weight, backend=backend)
            value.backward()
            assert value == 0 and x.grad.shape == shape


@pytest.mark.parametrize("dtype, tiny", [(torch.float64, 1e-300), (torch.float32, 1e-45), (torch.float16, 6e-8)])
@pytest.mark.parametrize("shape", [(5,), (5, 70)], ids=["anchor", "element"])
def test_a_tiny_weight_counts(dtype, tiny, shape, backend, device):
    """weight > 0 is asked of the weight as it is: narrowed to float32 first, 1e-300 would be 0."""
    for loss in (ghmc_loss, ghmr_loss):
        x, target = sample(loss, 5, 70, device=device)
        weight = torch.full(shape, tiny, dtype=dtype, device=device)
        assert loss(x, target, weight, backend=backend) == loss(x, target, backend=backend)


@pytest.mark.parametrize("bad", [torch.nan, -torch.inf])
def test_weights_that_are_no_numbers_do_not_count(bad, backend, device):
    """NaN > 0 is false; as an ignored element it has no part in the loss of the paper's variant."""
    for loss in (ghmc_loss, ghmr_loss):
        x, target = sample(loss, 30, 7, device=device)
        weight = torch.ones(30, 7, device=device)
        weight[4] = 0
        expected = loss(x, target, weight, backend=backend)
        weight[4] = bad
        assert loss(x, target, weight, backend=backend) == expected


@pytest.mark.parametrize("module", [GHMCLoss(bins=10), GHMRLoss(bins=10)], ids=["ghmc", "ghmr"])
def test_regions_that_vanish_for_long(module, backend, device):
    """A region absent for 2,000 steps decays to zero: its return must not divide by it."""
    module = type(module)(bins=10, backend=backend).to(device)
    target = torch.zeros(4, device=device)
    far, near = torch.full((4,), 9.0, device=device), torch.full((4,), -9.0, device=device)
    if isinstance(module, GHMRLoss):
        near = target
    module(far, target)
    first = module.running_counts.clone()
    module.running_counts[:10] *= 0.75**400  # what 400 steps without it leave in float32
    module(near, target)
    assert module.running_counts[9] < first[9] * 1e-30
    x = far.clone().requires_grad_()
    value = module(x, target)
    value.backward()
    assert value.isfinite() and x.grad.isfinite().all()


@pytest.mark.parametrize("bad", [torch.nan, -1.0])
def test_weights_that_do_not_count_in_a_sum_of_weights(bad, backend, device):
    """GHM-R of "mmdet" divides by the sum of the weights: NaN adds nothing to it, on both backends."""
    x, target = sample(ghmr_loss, 30, 7, device=device)
    weight = torch.full((30, 7), 0.5, device=device)
    weight[4] = bad
    counted = torch.full((30, 7), 0.5, dtype=torch.float64)
    counted[4] = 0 if math.isnan(bad) else bad
    each = ghmr_loss(x, target, weight, variant="mmdet", reduction="none", backend=backend)
    mean = ghmr_loss(x, target, weight, variant="mmdet", backend=backend)
    assert mean.item() == pytest.approx(each.double().sum().item() / counted.sum().item(), rel=1e-6)


@pytest.mark.parametrize("mu", [1e12, 1e-15])
def test_mu_at_its_limits(mu, backend, device):
    """d * d and mu * mu must be float32 numbers; beyond 1e15, |d| stands for sqrt(d * d + mu * mu)."""
    x = torch.tensor([0.01, 1.0, 30.0, 999.0, 1001.0, 1e6]) * mu
    value, grad = evaluate(
        ghmr_loss, x, torch.zeros(6), bins=1, mu=mu, reduction="none", backend=backend, device=device
    )
    wide, square = x.double(), float(mu) ** 2
    root = (wide * wide + square).sqrt()
    assert_close(value, wide * wide / (root + mu), LOSS)
    assert_close(grad, wide / root, GRADIENT)


@pytest.mark.parametrize("sign", [1, -1])
def test_float64_losses_near_20(sign, device):
    """PyTorch's softplus gives x from 20 on, which is 1e-10 off."""
    x = torch.linspace(-45, 45, 181, dtype=torch.float64)[:, None]
    target = torch.full((181,), 0 if sign < 0 else -1)  # loss softplus(-x) of a positive, softplus(x) of a negative
    value, _ = evaluate(ghmc_loss, x, target, class_dim=-1, bins=1, reduction="none", device=device)
    expected = (sign * x).clamp(min=0) + torch.log1p(torch.exp(-x.abs()))
    assert_close(value, expected, 1e-14)


def test_most_bins(backend, device):
    """Regions of 2e-3, which float32 norms resolve, and a row of 512 slots in the kernels."""
    x, target = torch.linspace(-6, 4, 500)[:, None], torch.zeros(500, 1)
    x = clear_of_edges("c", x, target, 510)
    check_ghmc(x, target, bins=510, backend=backend, device=device)


def test_a_long_average():
    """At the largest momentum, 0.999, float32 rounds each step in one direction: by 3e-5 in all, not without bound."""
    options = Options(loss="ghmc", bins=2, exponent=1.0, momentum=0.999)
    counts, state = [1234567.0, 17.0], torch.zeros(3)
    for _ in range(4000):
        density, state = _average(counts, sum(counts), state, options)
    assert_close(torch.tensor(density), torch.tensor(counts), 1e-4)
