"""Values and gradients against the oracle, on both backends: eager, and the kernels (interpreted without a GPU)."""

import pytest
import torch
import torch.nn.functional as F

import calls
from compare import check_ghmc, check_ghmr, clear_of_edges, evaluate, logits
from oracle import harmonize, norms, one_hot, regions
from tolerances import GRADIENT, LOSS, assert_close

VARIANTS, REDUCTIONS = ["paper", "mmdet"], ["mean", "sum", "none"]


def labels(anchors, classes, seed=1):
    """A third background as -1 and C, the rest classes."""
    generator = torch.Generator().manual_seed(seed)
    found = torch.randint(0, max(1, classes), (anchors,), generator=generator)
    background = torch.tensor([-1, classes])[torch.randint(0, 2, (anchors,), generator=generator)]
    return torch.where(torch.rand(anchors, generator=generator) < 0.34, background, found)


# Kernel tiles hold 256 (accumulate) and 2,048 elements (gradient): sizes around both, and programs that walk several
# tiles. Columns: 1, one that divides no tile, one that does, the usual ones around 80, and more than a tile.
SHAPES = [(1, 1), (85, 3), (256, 1), (257, 1), (51, 5), (64, 4), (25, 80), (26, 80), (13, 81), (7, 300), (1, 2049)]


@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize("kind", ["index", "dense", "soft"])
def test_ghmc_shapes_and_targets(shape, kind, backend, device, two_programs):
    """Tails of tiles, labels at tile borders, and targets that are read in other ways than class indices."""
    x, target = logits(*shape), labels(*shape)
    if kind != "index":
        target = one_hot(target, shape[1]).float()
    if kind == "soft":
        target = (target * 0.8 + torch.rand(shape, generator=torch.Generator().manual_seed(2)) * 0.2).clamp(0, 1)
    x = clear_of_edges("c", x, one_hot(target, shape[1]) if kind == "index" else target, 30)
    if kind != "soft":
        check_ghmc(x, target, backend=backend, device=device)
        return
    # p - t cancels for soft targets: its error is that of p, a few units of 2^-24 of p and t, not of the difference
    value, grad = evaluate(calls.ghmc_loss, x, target, backend=backend, device=device)
    loss, gradient, _ = harmonize("c", x, target, bins=30)
    _, _, slope = norms("c", x, target)
    beta = torch.where(slope == 0, 0.0, gradient / slope).abs()
    assert_close(value, loss, LOSS)
    assert ((grad - gradient).abs() <= GRADIENT * gradient.abs() + 4 * 2**-24 * beta).all()


@pytest.mark.parametrize("variant", VARIANTS)
@pytest.mark.parametrize("reduction", REDUCTIONS)
@pytest.mark.parametrize("weight", [None, "anchor", "element", "bool", "int"])
def test_ghmc_options(variant, reduction, weight, backend, device):
    """Every kind of weight and reduction; negative and fractional weights only decide what counts."""
    x, target = logits(40, 12), labels(40, 12)
    x = clear_of_edges("c", x, one_hot(target, 12), 30)
    given = {
        None: None,
        "anchor": torch.linspace(-1, 1, 40),
        "element": logits(40, 12, seed=5, mean=0.3),
        "bool": torch.arange(40) % 3 > 0,
        "int": torch.arange(40) % 3 - 1,
    }[weight]
    check_ghmc(x, target, given, backend=backend, device=device, variant=variant, reduction=reduction)


@pytest.mark.parametrize("variant", VARIANTS)
@pytest.mark.parametrize("reduction", REDUCTIONS)
@pytest.mark.parametrize("weight", [None, "anchor", "element", "none counted"])
def test_ghmr_options(variant, reduction, weight, backend, device):
    """ "mmdet" divides by the sum of the weights, of whatever shape they are."""
    target = logits(150, 4, seed=3)
    x = clear_of_edges("r", target + logits(150, 4, mean=0, std=0.03), target, 10)
    given = {
        None: None,
        "anchor": torch.linspace(-0.2, 2, 150),
        "element": logits(150, 4, seed=5, mean=0.3).clamp(min=0),
        "none counted": torch.zeros(150, 4),
    }[weight]
    check_ghmr(x, target, given, backend=backend, device=device, variant=variant, reduction=reduction)


@pytest.mark.parametrize("bins", [1, 2, 3, 10, 11, 12, 19, 20, 25, 30, 50, 100])
def test_regions_match_the_edges(bins, backend, device):
    """floor(g * bins) is one off beside the edges i / bins of some bins; logits are put on both sides of every edge.

    Counts come out of running_counts. torch's and the kernels' sigmoid differ by up to 2.5e-7: of the five elements
    around an edge the inner three may move to the neighboring region, the outer two, 3.6e-7 away, may not.
    """
    edges = torch.arange(1, bins, dtype=torch.float64) / bins
    steps = torch.tensor([-2.0, -1.0, 0.0, 1.0, 2.0], dtype=torch.float64) * 1.8e-7
    beside = torch.logit(edges[:, None]) + steps / (edges * (1 - edges))[:, None]
    x = torch.cat([beside.flatten().float(), torch.tensor([0.0, 200.0, -200.0])])
    for positive in (False, True):
        x_signed, target = (-x, torch.ones_like(x)) if positive else (x, torch.zeros_like(x))
        state = torch.zeros(bins + 1)
        evaluate(calls.ghmc_loss, x_signed, target, bins=bins, running_counts=state, backend=backend, device=device)
        expected = torch.bincount(regions("c", x_signed, target, bins), minlength=bins)
        moved = (state[:bins].cumsum(0) - expected.cumsum(0)).abs()
        assert state[:bins].sum() == len(x)
        if backend == "eager":
            assert moved.max() == 0
        else:
            assert moved.max() <= 3


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64], ids=str)
def test_dtypes(dtype, backend, device):
    """16-bit inputs are computed in float32, and only the gradient is rounded; float64 keeps its accuracy."""
    x, target = logits(60, 20).to(dtype), labels(60, 20)
    check_ghmc(x, target, backend=backend, device=device)
    check_ghmc(x, target, backend=backend, device=device, reduction="none")
    aim = logits(80, 4, seed=3, std=0.1)
    deltas = (aim + logits(80, 4, mean=0, std=0.05)).to(dtype)
    check_ghmr(deltas, aim if dtype != torch.float64 else aim.double(), backend=backend, device=device)


def test_float64_is_exact_to_float64(device):
    """The float64 path computes in float64 throughout."""
    x, target = logits(60, 20).double(), labels(60, 20)
    value, grad = evaluate(calls.ghmc_loss, x, target, device=device)
    loss, gradient, _ = harmonize("c", x, one_hot(target, 20), bins=30)
    assert_close(value, loss, 1e-13)
    assert_close(grad, gradient, 1e-12)


def test_levels_are_one_population(backend, device, two_programs):
    """A pyramid has one density: value and gradients are those of the concatenation; with enough rows to fold them."""
    sizes, bins = [60, 0, 230, 1, 200], 300  # 1, 0, 2, 1 and 2 programs: more rows of 512 slots than harmonize takes
    parts = [logits(n, 3, seed=n, mean=-6, std=1) for n in sizes]
    aims = [labels(len(part), 3, seed=i) for i, part in enumerate(parts)]
    weights = [torch.arange(len(part)) % 4 > 0 for part in parts]
    whole, aim, weight = torch.cat(parts), torch.cat(aims), torch.cat(weights)
    for reduction in ("mean", "none"):
        options = dict(reduction=reduction, bins=bins, backend=backend, device=device)
        value, grads = evaluate(calls.ghmc_loss, parts, aims, weights, **options)
        expected, gradient = evaluate(calls.ghmc_loss, whole, aim, weight, **options)
        value = torch.cat(value) if reduction == "none" else value
        assert_close(value, expected, LOSS)
        assert_close(torch.cat(grads), gradient, GRADIENT)
    whole = clear_of_edges("c", whole, one_hot(aim, 3), bins)
    check_ghmc(whole, aim, weight, bins=bins, backend=backend, device=device)


def test_levels_of_ghmr(backend, device):
    """As for GHM-C, a tuple with gradients for its targets."""
    aims = [logits(n, 4, seed=n) for n in (70, 0, 3)]
    parts = [aim + logits(len(aim), 4, seed=1, mean=0, std=0.03) for aim in aims]
    value, grads = evaluate(calls.ghmr_loss, tuple(parts), tuple(aims), backend=backend, device=device)
    expected, gradient = evaluate(calls.ghmr_loss, torch.cat(parts), torch.cat(aims), backend=backend, device=device)
    assert_close(value, expected, LOSS)
    assert_close(torch.cat(grads), gradient, GRADIENT)


def test_many_tiles_per_program(backend, device, two_programs):
    """More than 16 tiles per program: the outer loop of accumulate runs."""
    x, target = logits(220, 40, mean=-7, std=1), labels(220, 40)
    target[torch.arange(220) % 20 > 0] = -1
    x = clear_of_edges("c", x, one_hot(target, 40), 30)
    check_ghmc(x, target, backend=backend, device=device)


def test_target_of_ghmr_gets_the_opposite_gradient(backend, device):
    x, target = logits(50, 4).to(device).requires_grad_(), logits(50, 4, seed=1).to(device).requires_grad_()
    calls.ghmr_loss(x, target, backend=backend).backward()
    assert x.grad.abs().sum() > 0
    assert torch.equal(x.grad, -target.grad)


@pytest.mark.parametrize("make", ["transposed", "strided", "expanded", "offset"])
def test_strides(make, backend, device):
    """Inputs that are not contiguous, or not aligned to 16 bytes, give the numbers of their contiguous copies."""
    base = logits(24, 64)
    x = {
        "transposed": lambda: base.T,
        "strided": lambda: base[::2, 1::3],
        "expanded": lambda: base[:1].expand(9, 64),
        "offset": lambda: base.flatten()[3:-2],
    }[make]()
    target = one_hot(labels(x.numel(), 1), 1).view(x.shape).float()
    value, grad = evaluate(calls.ghmc_loss, x, target, backend=backend, device=device)
    expected, gradient = evaluate(calls.ghmc_loss, x.contiguous(), target, backend=backend, device=device)
    assert torch.equal(value, expected) and torch.equal(grad, gradient)


@pytest.mark.parametrize("shape", [(), (3,), (2, 3, 4, 5)], ids=str)
def test_any_number_of_dimensions(shape, backend, device):
    x = logits(*shape)
    check_ghmc(x, (x > 0).float(), backend=backend, device=device)
    if shape:
        check_ghmc(x, torch.zeros(shape[:-1], dtype=torch.int32), backend=backend, device=device)


@pytest.mark.parametrize("dtype", [torch.uint8, torch.int16, torch.int32, torch.int64], ids=str)
def test_index_types(dtype, backend, device):
    """Unsigned labels have no -1: their background is any number from C on."""
    x, target = logits(30, 5), labels(30, 5) % 6
    check_ghmc(x, target.to(dtype), backend=backend, device=device)


def test_one_region_is_binary_cross_entropy(backend, device):
    """bins=1 gives every element the same weight: plain binary cross entropy, to the same accuracy."""
    x = logits(300, 7, std=4)
    target = one_hot(labels(300, 7), 7)
    value, grad = evaluate(calls.ghmc_loss, x, target.float(), bins=1, backend=backend, device=device)
    wide = x.double().requires_grad_()
    F.binary_cross_entropy_with_logits(wide, target).backward()
    assert_close(value, F.binary_cross_entropy_with_logits(x.double(), target), LOSS)
    assert_close(grad, wide.grad, GRADIENT)


@pytest.mark.parametrize("reduction", ["mean", "none"])
@pytest.mark.parametrize("variant", ["paper", "mmdet"])
def test_exponent(variant, reduction, backend, device):
    """Tempered densities, of one call and averaged, with regions that are empty in a call and not in the average."""
    options = dict(backend=backend, device=device, variant=variant, reduction=reduction)
    x, target = logits(50, 5), labels(50, 5)
    x = clear_of_edges("c", x, one_hot(target, 5), 30)
    for exponent in (0, 0.25, 0.5, 0.9, 1):
        check_ghmc(x, target, exponent=exponent, **options)
        check_ghmr(x, torch.zeros(50, 5), exponent=exponent, **options)
    state = torch.zeros(30 + (variant == "paper"))
    for shift in (4.0, 0.0, -2.0):
        check_ghmc(x + shift, target, exponent=0.5, momentum=0.5, running_counts=state, **options)


def test_exponent_1_is_the_paper_to_the_bit(backend, device):
    """The weights are N / (R_j M), rounded once: one region has the weight 1 and gives the unweighted losses."""
    target = labels(60, 5)
    x = clear_of_edges("c", logits(60, 5), one_hot(target, 5), 30)
    options = dict(reduction="none", backend=backend, device=device)
    region = regions("c", x, one_hot(target, 5), 30)
    beta = (x.numel() / (region.flatten().bincount(minlength=30).double() * 30))[region].float()
    plain, _ = evaluate(calls.ghmc_loss, x, target, bins=1, exponent=1, **options)
    value, _ = evaluate(calls.ghmc_loss, x, target, bins=30, exponent=1, **options)
    if device == "cpu":
        assert torch.equal(value, beta * plain)
    else:  # a GPU's division may be two units in the last place off
        assert_close(value, beta * plain, 2.0**-22)


def test_exponent_0_is_cross_entropy_and_asl1(backend, device):
    """Whatever the density: with empty regions, and with an average that differs from the call."""
    x, target, mu = logits(60, 5), torch.rand(60, 5, generator=torch.Generator().manual_seed(2)).round(), 0.02
    state = torch.rand(31, generator=torch.Generator().manual_seed(3)) * 100
    options = dict(exponent=0, backend=backend, device=device)
    value, grad = evaluate(calls.ghmc_loss, x, target, **options)
    wide = x.double().requires_grad_()
    expected = F.binary_cross_entropy_with_logits(wide, target.double())
    expected.backward()
    assert_close(value, expected.detach(), LOSS)
    assert_close(grad, wide.grad, GRADIENT)
    each, _ = evaluate(calls.ghmc_loss, x, target, momentum=0.5, running_counts=state, reduction="none", **options)
    ratio = each.double().cpu() / F.binary_cross_entropy_with_logits(x.double(), target.double(), reduction="none")
    assert_close(ratio, ratio[0, 0].expand_as(ratio), GRADIENT)  # one factor, N over what the average adds up to

    value, grad = evaluate(calls.ghmr_loss, x, torch.zeros(60, 5), mu=mu, **options)
    wide = x.double().requires_grad_()
    expected = ((wide * wide + mu * mu).sqrt() - mu).mean()
    expected.backward()
    assert_close(value, expected.detach(), LOSS)
    assert_close(grad, wide.grad, GRADIENT)


def test_exponent_by_hand(backend, device):
    """100 elements beside 1, exponent 1/2: the shares are 10 to 1, so that beta is 101/11 * (1/10, 1)."""
    x = torch.tensor([-3.0] * 100 + [3.0])
    each = F.softplus(x)
    options = dict(bins=2, exponent=0.5, reduction="none", backend=backend, device=device)
    value, _ = evaluate(calls.ghmc_loss, x, torch.zeros(101), **options)
    assert_close(value, torch.cat([101 / 110 * each[:100], 101 / 11 * each[100:]]), 1e-6)


@pytest.mark.parametrize("exponent", [0.5, 0.0])
def test_scale_free(exponent, backend, device):
    """All counts four times as large: the same weights; their mean is 1 without an average."""
    x, target = logits(60, 5), torch.rand(60, 5, generator=torch.Generator().manual_seed(2)).round()
    options = dict(exponent=exponent, backend=backend, device=device)
    once, _ = evaluate(calls.ghmc_loss, x, target, **options)
    more, _ = evaluate(calls.ghmc_loss, x.repeat(4, 1), target.repeat(4, 1), **options)
    assert_close(more, once, LOSS)


@pytest.mark.parametrize("x", [-11.5, -20.0, -60.0, 11.5, 60.0, -0.0], ids=str)
def test_constant_input(x, backend, device, two_programs):
    """Rounding errors of equal terms add up, where those of others cancel: sums must be better than naive ones."""
    full = torch.full((3000,), x)  # 6 tiles per program
    check_ghmc(full, torch.zeros(3000), backend=backend, device=device)
    check_ghmc(full, torch.ones(3000), backend=backend, device=device)
    check_ghmr(full, torch.zeros(3000), backend=backend, device=device)


def test_easy_negatives(backend, device):
    """99.9% of the losses are near 1e-5, and must keep their relative accuracy beside the others."""
    x = logits(40, 80, mean=-11.5, std=0.3)
    target = torch.full((40,), -1)
    target[::10] = 3
    x[7, 7], x[30, 4] = 2.0, -1.0
    check_ghmc(x, target, backend=backend, device=device)
    check_ghmc(x, target, backend=backend, device=device, bins=1)


@pytest.mark.slow
def test_sixteen_million(device):
    """Counts and sums stay exact enough at the size of a RetinaNet image: 200,000 anchors of 80 classes."""
    x = logits(200_000, 80, mean=-7, std=1.2)
    target = torch.full((200_000,), 80)
    target[::200] = 5
    value, grad = evaluate(calls.ghmc_loss, x, target, device=device)
    total, region_counts = 0.0, torch.zeros(30)
    wide = torch.sigmoid(x)
    wide[::200, 5] = 1 - wide[::200, 5]
    region = (wide * 30).long().clamp_(max=29)  # 30 is one of the numbers for which floor is exact
    region_counts = torch.bincount(region.view(-1), minlength=30).double()
    beta = torch.where(region_counts > 0, 1 / (region_counts * 30), 0.0)
    x[::200, 5] *= -1
    for first in range(0, len(x), 20_000):
        part = slice(first, first + 20_000)
        total += (beta[region[part]] * F.softplus(x[part].double(), threshold=1e9)).sum().item()
        gradient = beta[region[part]] * torch.sigmoid(x[part].double())
        assert_close(grad[part].abs(), gradient, GRADIENT, 1e-38)
    assert (grad[::200, 5] < 0).all()
    assert abs(value.item() - total) <= LOSS * total


@pytest.mark.slow
def test_counts_are_exact_past_2_to_24(device):
    """float32 cannot count past 2^24 one by one; the state holds the nearest float32 of an exact count."""
    x = torch.full((2**24 + 4, 1), -9.0, device=device)
    state = torch.zeros(11, device=device)
    calls.ghmc_loss(x, torch.full((len(x),), -1, device=device), bins=10, running_counts=state, class_dim=-1)
    assert state[0].item() == 2**24 + 4


def test_value_does_not_depend_on_gradients(backend, device):
    """The loss is the same number under no_grad, and for inputs that need no gradient."""
    x, target = logits(100, 8).to(device), labels(100, 8).to(device)
    with torch.no_grad():
        value = calls.ghmc_loss(x, target, backend=backend)
    assert torch.equal(value, calls.ghmc_loss(x.clone().requires_grad_(), target, backend=backend).detach())


def test_inputs_are_not_written_to(backend, device):
    x, target, weight = logits(100, 8).to(device), labels(100, 8).to(device), torch.ones(100, device=device)
    copies = x.clone(), target.clone(), weight.clone()
    calls.ghmc_loss(x.requires_grad_(), target, weight, backend=backend).backward()
    assert all(torch.equal(a, b) for a, b in zip((x.detach(), target, weight), copies))


def test_a_sum_of_weights_that_is_nan(backend, device):
    """inf - inf: "mmdet" divides by the sum, and a plausible loss would be wrong."""
    x = logits(8, 4).to(device)
    weight = torch.ones(8, device=device)
    weight[2], weight[5] = float("inf"), float("-inf")
    assert calls.ghmr_loss(x, torch.zeros_like(x), weight, variant="mmdet", backend=backend).isnan()
