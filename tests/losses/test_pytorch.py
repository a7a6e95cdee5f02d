"""The losses in PyTorch: gradcheck, incoming gradients, changes in place; random shapes, strides and values."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

import calls
from compare import clear_of_edges, evaluate, logits
from conftest import DEVICE, examples
from oracle import harmonize, norms, one_hot, regions
from tolerances import GRADIENT, LOSS, assert_close


@pytest.mark.parametrize("reduction", ["mean", "sum", "none"])
@pytest.mark.parametrize("variant", ["paper", "mmdet"])
def test_gradcheck(variant, reduction):
    """Numeric derivatives in float64, away from the edges, where the weights are constant."""
    x = torch.tensor([[-2.9, 0.4], [1.3, -0.7], [3.1, -5.2]], dtype=torch.float64, requires_grad=True)
    labels = torch.tensor([1, -1, 0])
    assert torch.equal(  # 1e-3 to each side is the same region
        regions("c", x.detach() - 1e-3, one_hot(labels, 2), 10), regions("c", x.detach() + 1e-3, one_hot(labels, 2), 10)
    )
    options = dict(bins=10, variant=variant, reduction=reduction)
    torch.autograd.gradcheck(lambda x: calls.ghmc_loss(x, labels, **options), x)
    torch.autograd.gradcheck(lambda x: calls.ghmc_loss(x, one_hot(labels, 2) * 0.9, **options), x)
    aim = torch.zeros(3, 2, dtype=torch.float64, requires_grad=True)
    options["mu"] = 0.7
    torch.autograd.gradcheck(lambda x, aim: calls.ghmr_loss(x, aim, **options), (x, aim))


def test_incoming_gradients(backend, device):
    """The incoming gradient is one number or one per element. Loss scaling does not overflow."""
    x, labels = logits(50, 6).to(device).requires_grad_(), torch.randint(-1, 6, (50,), device=device)
    (plain,) = torch.autograd.grad(calls.ghmc_loss(x, labels, backend=backend), x)
    (scaled,) = torch.autograd.grad(calls.ghmc_loss(x, labels, backend=backend) * 65536, x)
    assert_close(scaled.cpu(), plain.double().cpu() * 65536, GRADIENT)
    factors = torch.rand(50, 6, device=device)
    losses = calls.ghmc_loss(x, labels, reduction="none", backend=backend)
    (mixed,) = torch.autograd.grad((losses * factors).sum(), x)
    (ones,) = torch.autograd.grad(calls.ghmc_loss(x, labels, reduction="sum", backend=backend), x)
    assert_close(mixed.cpu(), (ones.double() * factors).cpu(), 2 * GRADIENT)


def test_backward_twice_with_retain_graph(backend, device):
    """Nothing that backward needs is consumed by it."""
    x, labels = logits(20, 3).to(device).requires_grad_(), torch.randint(-1, 3, (20,), device=device)
    loss = calls.ghmc_loss(x, labels, backend=backend)
    first, second = (torch.autograd.grad(loss, x, retain_graph=True)[0] for _ in range(2))
    assert torch.equal(first, second)


def test_changed_input_is_noticed(device):
    """The kernels read the inputs again in backward: a change in place in between is an error, not a wrong gradient."""
    pytest.importorskip("triton")
    x = logits(20, 3).to(device).requires_grad_()
    z = x * 1.0
    loss = calls.ghmc_loss(z, torch.zeros(20, dtype=torch.int64, device=device), backend="triton")
    z.data.add_(0)  # .data does not count
    z.add_(1.0)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        loss.backward()


def test_results_can_be_changed_in_place(backend, device):
    """As of any other loss: `loss *= weight` on a number or on the losses of the elements."""
    x, labels = logits(23, 7).to(device).requires_grad_(), torch.randint(-1, 7, (23,), device=device)
    for reduction in ("mean", "none"):
        loss = calls.ghmc_loss(x, labels, reduction=reduction, backend=backend)
        loss *= 2
        loss.sum().backward()


def test_targets_made_in_inference_mode(backend, device):
    with torch.inference_mode():
        labels = torch.zeros(23, dtype=torch.int64, device=device)
    x = logits(23, 7).to(device).requires_grad_()
    calls.ghmc_loss(x, labels, backend=backend).backward()
    assert x.grad.abs().sum() > 0


def test_targets_outside_0_and_1_fall_into_the_last_region(backend, device):
    """The kernels and mmdetection's formulas do not look for this mistake, but no index may leave its table for it."""
    for target in (1.04, 1.1, 1e30):
        state = torch.zeros(30, device=device)
        x, t = torch.full((4, 4), -20.0, device=device), torch.full((4, 4), target, device=device)
        calls.ghmc_loss(x, t, variant="mmdet", running_counts=state, backend=backend)
        assert state[29] == 16


VALUES = st.sampled_from(
    [0.0, -0.0, 1e-40, -1e-40, 1e4, -1e4, 88.0, -88.0, 1e33, -1e33, 3.4e38, -3.4e38, float("inf"), -float("inf")]
    + [float("nan")]
)


@st.composite
def problems(draw, kind, most):
    """(input, target, dense, weight, transposed, options)."""
    anchors, columns = draw(st.integers(0, most)), draw(st.sampled_from([1, 2, 3, 7, 16, 33]))
    generator = torch.Generator().manual_seed(draw(st.integers(0, 2**20)))
    x = torch.randn(anchors, columns, generator=generator) * draw(st.sampled_from([0.01, 1.0, 4.0, 30.0]))
    x += draw(st.sampled_from([-8.0, 0.0, 3.0]))
    target = torch.randint(-1, columns + 1, (anchors,), generator=generator)
    if kind == "r":
        target = x.mul(0.9) + draw(st.sampled_from([0.0, 1e-3, 1.0])) * torch.randn(x.shape, generator=generator)
    for special in draw(st.lists(VALUES, max_size=3)):
        if x.numel():
            x.view(-1)[torch.randint(x.numel(), (1,), generator=generator)] = special
    weight = draw(st.sampled_from([None, "anchor", "element"]))
    if weight is not None:
        shape = (anchors,) if weight == "anchor" else (anchors, columns)
        weight = torch.rand(shape, generator=generator) - 0.3
    options = dict(
        bins=draw(st.sampled_from([1, 2, 3, 10, 11, 25, 30, 47, 100])),
        variant=draw(st.sampled_from(["paper", "mmdet"])),
        reduction=draw(st.sampled_from(["mean", "sum", "none"])),
    )
    return x, target, draw(st.booleans()), weight, draw(st.booleans()), options


def check(problem, kind, backend, device):
    x, target, dense, weight, transposed, options = problem
    if options["variant"] == "mmdet" and kind == "r" and weight is not None:
        weight = weight.clamp(min=0)  # their sum is a divisor
    full = one_hot(target, x.shape[1]) if kind == "c" else target
    plain = x.isfinite() & (x.abs() < 1e3)
    x = torch.where(plain, clear_of_edges(kind, x, full, options["bins"]), x)
    expanded = None if weight is None else (weight[:, None] if weight.dim() == 1 else weight).expand_as(x)
    expected, gradient, _ = harmonize(kind, x, full, expanded, **options)
    given = x.T.contiguous().T if transposed else x
    function = calls.ghmc_loss if kind == "c" else calls.ghmr_loss
    aim = full.float() if dense else target
    value, grad = evaluate(function, given, aim, weight, backend=backend, device=device, **options)
    _, losses, slope = norms(kind, x, full)
    tiny, overflows = 1e-37, torch.zeros_like(expected, dtype=torch.bool)
    if backend == "triton":
        # Norms below float32's normal range are 0 there; and finite losses are added up before they are scaled.
        tiny += 1.2e-38 * (gradient / slope).nan_to_num(0, 0, 0).max().item() if x.numel() else 0.0
        overflows |= (losses[losses.isfinite()].sum() > 3e38) & (expected <= 3e38) & (expected.dim() == 0)
    assert torch.equal(value.isnan(), expected.isnan()) and torch.equal(grad.isnan(), gradient.isnan())
    assert torch.equal((value.isinf() | (value > 3e38))[~overflows], (expected > 3e38)[~overflows])
    both = value.isfinite() & (expected < 3e38)
    assert_close(value[both], expected[both], LOSS if value.dim() == 0 else GRADIENT, tiny)
    kept = ~gradient.isnan()
    assert_close(grad[kept], gradient[kept], GRADIENT, tiny)


@pytest.mark.slow
@examples(250)
@given(problem=problems("c", 60))
def test_random_logits_eagerly(problem):
    check(problem, "c", "eager", "cpu")


@pytest.mark.slow
@examples(150)
@given(problem=problems("r", 60))
def test_random_deltas_eagerly(problem):
    check(problem, "r", "eager", "cpu")


@pytest.mark.slow
@examples(40)
@given(problem=problems("c", 24))
def test_random_logits_by_the_kernels(problem):
    pytest.importorskip("triton")
    check(problem, "c", "triton", DEVICE)


@pytest.mark.slow
@examples(40)
@given(problem=problems("r", 24))
def test_random_deltas_by_the_kernels(problem):
    pytest.importorskip("triton")
    check(problem, "r", "triton", DEVICE)
