"""Properties that hold for all inputs: drawn by hypothesis, differentiated numerically, under autocast."""

import math
from itertools import accumulate, pairwise

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from calls import ghmc_loss, ghmr_loss
from conftest import examples
from ghm_triton import GHMCLoss
from loops import Loop, assert_agrees, expand, off_edges
from tolerances import assert_close

pytestmark = pytest.mark.slow
FEW = examples(25)
DTYPES = st.sampled_from([torch.float32, torch.float32, torch.float16, torch.bfloat16, torch.float64])
BINS = st.one_of(st.sampled_from([1, 2, 10, 11, 20, 30]), st.integers(1, 70))


@st.composite
def populations(draw, kind):
    """(inputs, targets, weights or None, soft) of one to three levels with any shape, layout, spread and weights."""
    generator = torch.Generator().manual_seed(draw(st.integers(0, 2**20)))
    dtype, columns = draw(DTYPES), draw(st.sampled_from([1, 2, 3, 7, 80]))
    style = draw(st.sampled_from(["index", "dense", "soft"])) if kind == "c" else "boxes"
    weight_kind = draw(st.sampled_from([None, "anchor", "element", "bool", "int"]))
    leading = [draw(st.lists(st.integers(0, 6), min_size=0, max_size=2)) for _ in range(draw(st.integers(1, 3)))]
    mean, spread, transposed = draw(st.floats(-9, 4)), draw(st.floats(0.01, 4)), draw(st.booleans())
    inputs, targets, weights = [], [], []
    for shape in leading:
        full = [*shape, columns]

        def drawn(size, normal=True):
            return (torch.randn if normal else torch.rand)(size, generator=generator)

        label = torch.randint(-1, columns + 1, shape, generator=generator)
        target = {"index": label, "boxes": drawn(full), "soft": drawn(full, False)}.get(style)
        target = expand(label, columns) if target is None else target
        x = drawn(full) * spread + mean if kind == "c" else target + drawn(full) * 10 ** (drawn(full, False) * 3 - 3)
        weight = {
            "anchor": drawn(shape, False) - 0.3,
            "element": drawn(full) + 0.5,
            "bool": drawn(shape) > 0,
            "int": torch.randint(-1, 3, full, generator=generator),
            None: None,
        }[weight_kind]
        if transposed:
            x, target, weight = (
                t if t is None else t.mT.contiguous().mT if t.dim() > 1 else t for t in (x, target, weight)
            )
        inputs.append(x.to(dtype)), targets.append(target), weights.append(weight)
    return inputs, targets, None if weight_kind is None else weights, style == "soft"


def agrees(population, kind, bins, variant, momentum, reduction, exponent, backend, device):
    inputs, targets, weights, soft = population
    dtype = torch.float64 if inputs[0].dtype == torch.float64 else torch.float32
    loop = Loop(kind, bins, momentum=momentum, variant=variant, exponent=exponent, dtype=dtype)
    inputs = [off_edges(x, t, loop) for x, t in zip(inputs, targets)]
    size = bins + (variant == "paper")
    state = torch.zeros(size, device=device) if momentum else None
    for _ in range(2 if momentum else 1):
        options = dict(backend=backend, device=device, reduction=reduction, state=state, soft=soft)
        assert_agrees(loop, inputs, targets, weights, **options)


OPTIONS = dict(
    bins=BINS,
    variant=st.sampled_from(["paper", "mmdet"]),
    momentum=st.sampled_from([0.0, 0.75, 0.99]),
    reduction=st.sampled_from(["mean", "sum", "none"]),
    exponent=st.sampled_from([1, 0.5, 0.25, 0]),
)


@examples(350)
@given(population=populations("c"), **OPTIONS)
def test_ghmc_eager(population, device, bins, variant, momentum, reduction, exponent):
    """Any combination of shapes, strides, dtypes, weights and options against the loop."""
    agrees(population, "c", bins, variant, momentum, reduction, exponent, "eager", device)


@examples(200)
@given(population=populations("r"), **OPTIONS)
def test_ghmr_eager(population, device, bins, variant, momentum, reduction, exponent):
    """As above."""
    agrees(population, "r", bins, variant, momentum, reduction, exponent, "eager", device)


@examples(30)
@given(population=populations("c"), **OPTIONS)
def test_ghmc_triton(population, device, bins, variant, momentum, reduction, exponent):
    """As above, in the kernels."""
    pytest.importorskip("triton")
    agrees(population, "c", bins, variant, momentum, reduction, exponent, "triton", device)


@examples(30)
@given(population=populations("r"), **OPTIONS)
def test_ghmr_triton(population, device, bins, variant, momentum, reduction, exponent):
    """As above."""
    pytest.importorskip("triton")
    agrees(population, "r", bins, variant, momentum, reduction, exponent, "triton", device)


@FEW
@given(seed=st.integers(0, 1000), bins=BINS, cuts=st.lists(st.integers(0, 5), min_size=1, max_size=4))
def test_levels_are_their_concatenation(seed, bins, cuts, device):
    """However it is cut, one population: to the rounding of the sums."""
    generator = torch.Generator().manual_seed(seed)
    whole = torch.randn(sum(cuts), 6, generator=generator).to(device).double()
    target = torch.randint(-1, 6, (len(whole),), generator=generator).to(device)
    pieces = [slice(*pair) for pair in pairwise(accumulate(cuts, initial=0))]
    leaf, parts = whole.clone().requires_grad_(), [whole[piece].clone().requires_grad_() for piece in pieces]
    value = ghmc_loss(leaf, target, bins=bins)
    value.backward()
    cut = ghmc_loss(parts, [target[piece] for piece in pieces], bins=bins)
    cut.backward()
    assert_close(cut, value.cpu(), 1e-13, 0.0)
    assert_close(torch.cat([part.grad for part in parts]), leaf.grad.cpu(), 1e-13, 0.0)


@FEW
@given(seed=st.integers(0, 1000), bins=BINS)
def test_every_region_weighs_the_same(seed, bins, device):
    """What the loss is for: the weights of a region's elements add up to N / M, however many there are."""
    x = (torch.randn(500, generator=torch.Generator().manual_seed(seed)) * 3 - 2).double()
    x = off_edges(x, torch.zeros_like(x), Loop("c", bins))
    losses = ghmc_loss(x.to(device), torch.zeros_like(x).to(device), bins=bins, reduction="none")
    beta = losses.cpu() / torch.nn.functional.softplus(x)
    region = (x.sigmoid() * bins).long().clamp(max=bins - 1)
    totals = torch.zeros(bins, dtype=torch.float64).index_add(0, region, beta)
    found = torch.bincount(region, minlength=bins) > 0
    assert_close(totals, found.double() * 500 / bins, 1e-9, 0.0)


@pytest.mark.parametrize("reduction", ["mean", "sum", "none"])
@pytest.mark.parametrize("variant", ["paper", "mmdet"])
def test_gradcheck(reduction, variant, device):
    """Numerical derivatives, away from edges where the weight jumps: soft targets, levels, GHM-R's targets."""
    draw = torch.Generator().manual_seed(0)
    for kind, function in (("c", ghmc_loss), ("r", ghmr_loss)):
        loop = Loop(kind, 10, mu=0.5, dtype=torch.float64)
        targets = [torch.rand(n, 3, generator=draw).double() for n in (4, 2)]
        inputs = [torch.randn(n, 3, generator=draw).double() for n in (4, 2)]
        inputs = [off_edges(x, t, loop, margin=1e-4) for x, t in zip(inputs, targets)]
        leaves = [x.to(device).requires_grad_() for x in inputs]
        targets = [t.to(device).requires_grad_(kind == "r") for t in targets]
        weights = [torch.rand(4, 3, generator=draw).to(device) - 0.2, torch.rand(2, 3, generator=draw).to(device)]
        options = dict(bins=10, variant=variant, reduction=reduction) | ({"mu": 0.5} if kind == "r" else {})

        def call(a, b, s, t):
            return function([a, b], [s, t], weights, **options)

        assert torch.autograd.gradcheck(call, (*leaves, *targets), eps=1e-6, atol=1e-7)


def test_differentiating_twice_is_an_error(backend, device):
    """A gradient penalty through this loss would silently be 0."""
    x = torch.randn(3, 2, device=device).requires_grad_()
    (first,) = torch.autograd.grad(
        ghmc_loss(x, torch.zeros(3, 2, device=device), backend=backend), x, create_graph=True
    )
    with pytest.raises(RuntimeError):
        torch.autograd.grad(first.sum(), x)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
def test_autocast(dtype, backend, device):
    """Inside the region logits come as 16-bit, and the loss must be the float32 one that it is outside of it."""
    torch.manual_seed(0)
    layer = torch.nn.Linear(8, 5).to(device)
    features, target = torch.randn(20, 8, device=device), torch.arange(20, device=device) % 6
    module = GHMCLoss(backend=backend).to(device)
    with torch.autocast(device, dtype=dtype):
        logits = layer(features)
        logits.retain_grad()
        loss = module(logits, target)
    assert logits.dtype == dtype and loss.dtype == torch.float32
    loss.backward()
    again = logits.detach().requires_grad_()
    outside = GHMCLoss(backend=backend).to(device)(again, target)
    outside.backward()
    assert torch.equal(loss, outside) and torch.equal(logits.grad, again.grad)
    assert layer.weight.grad.dtype == torch.float32 and layer.weight.grad.abs().max() > 0


def test_scaling_the_loss_scales_the_gradient(backend, device):
    """The factor that backward brings, and loss_weight, each multiply once."""
    x, target = torch.linspace(-4, 3, 40, device=device), torch.zeros(40, device=device)
    grads = []
    for factor, weight in ((1.0, 1.0), (4.0, 1.0), (0.5, 8.0)):
        leaf = x.clone().requires_grad_()
        loss = GHMCLoss(exponent=1, loss_weight=weight, backend=backend).to(device)(leaf, target)
        (loss * factor).backward()
        grads.append(leaf.grad / (factor * weight))
        assert math.isclose(loss.item() / weight, ghmc_loss(x, target, backend=backend).item(), rel_tol=1e-6)
    assert torch.equal(grads[0], grads[1]) and torch.equal(grads[0], grads[2])  # powers of two
