"""The moving average: values over several steps, what is kept, and what leaves it as it is."""

import copy

import pytest
import torch

import calls
import ghm_triton
from compare import check_ghmc, check_ghmr, evaluate, logits
from ghm_triton import mmdet
from oracle import harmonize, one_hot

INF, NAN = float("inf"), float("nan")


def batch(seed, anchors=40, classes=6):
    """Logits whose regions differ from step to step, and labels."""
    x = logits(anchors, classes, seed=seed, mean=-4 + seed, std=1.0)
    return x, torch.randint(-1, classes, (anchors,), generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("variant", ["paper", "mmdet"])
@pytest.mark.parametrize("momentum", [0.5, 0.9, 0.99])
def test_several_steps(variant, momentum, backend, device):
    """Each step's loss and gradient, and the state after it, are those of the equations."""
    state = torch.zeros(31 if variant == "paper" else 30)
    expected_state = state.double()
    for step in range(4):
        x, target = batch(step)
        _, _, expected_state = harmonize(
            "c", x, one_hot(target, 6), bins=30, momentum=momentum, variant=variant, state=expected_state
        )
        check_ghmc(x, target, backend=backend, device=device, momentum=momentum, variant=variant, running_counts=state)
        assert torch.allclose(state.double(), expected_state, rtol=1e-6, atol=1e-12)  # state is float32, some steps old


def test_several_steps_of_ghmr(backend, device):
    state = torch.zeros(11)
    for step in range(3):
        aim = logits(60, 4, seed=step)
        x = aim + logits(60, 4, seed=9, mean=0, std=0.01 * 4**step)
        check_ghmr(x, aim, backend=backend, device=device, momentum=0.7, running_counts=state)
    assert state[10] == pytest.approx(1 - 0.7**3)


@pytest.mark.parametrize("momentum", [0.75, 0.9, 0.99])
def test_first_step_is_that_of_no_momentum(momentum, backend, device):
    """An average that starts from 0 uncorrected would make the first loss 1 / (1 - momentum) times too large."""
    x, target = batch(2)
    plain, _ = evaluate(calls.ghmc_loss, x, target, backend=backend, device=device)
    first, _ = evaluate(
        calls.ghmc_loss,
        x,
        target,
        backend=backend,
        device=device,
        momentum=momentum,
        running_counts=torch.zeros(31),
    )
    assert first.item() == pytest.approx(plain.item(), rel=1e-6)


def test_resuming_continues_to_the_bit():
    """state_dict holds all that the average needs."""
    whole, first = ghm_triton.GHMCLoss(momentum=0.9), ghm_triton.GHMCLoss(momentum=0.9)
    for step in range(3):
        whole(*batch(step)), first(*batch(step))
    second = ghm_triton.GHMCLoss(momentum=0.9)
    second.load_state_dict(first.state_dict(), strict=True)
    for step in range(3, 5):
        assert torch.equal(whole(*batch(step)), second(*batch(step)))
    assert torch.equal(whole.running_counts, second.running_counts)


def test_eval_uses_the_state_and_leaves_it(backend):
    """In eval() a "paper" module takes the density from the state, and the call's counts where it has none."""
    loss = ghm_triton.GHMCLoss(class_dim=-1, bins=4, exponent=1.0, momentum=0.5, backend=backend)
    x = torch.tensor([[-3.0], [-2.5], [-0.3], [3.0]])  # regions 0, 0, 1, 3
    target = torch.full((4,), -1)
    loss.eval()
    fresh = loss(x, target)
    assert fresh.item() == pytest.approx(calls.ghmc_loss(x, target, class_dim=-1, bins=4).item(), rel=1e-6)
    assert loss.running_counts.eq(0).all()
    loss.train()
    loss(x[:2], target[:2])
    loss(x[:3], target[:3])
    state = loss.running_counts.clone()
    assert torch.allclose(state, torch.tensor([1.5, 0.5, 0, 0, 0.75]))
    loss.eval()
    density = torch.tensor([1.5 / 0.75, 1.5 / 0.75, 0.5 / 0.75, 1.0], dtype=torch.float64)
    expected = (torch.nn.functional.softplus(x.double().flatten()) / density).sum() / 4
    assert loss(x, target).item() == pytest.approx(expected.item(), rel=1e-6)
    assert torch.equal(loss.running_counts, state)


@pytest.mark.parametrize("cast", ["half", "bfloat16", "double", "float"])
def test_state_stays_float32(cast):
    """Counts of millions do not fit 16 bits; deepcopy and casts keep them."""
    for module in (
        ghm_triton.GHMCLoss(),
        ghm_triton.GHMRLoss(),
        mmdet.GHMC(momentum=0.5),
        mmdet.GHMR(momentum=0.5),
    ):
        for buffer in module.buffers():
            buffer.fill_(16_777_217.0 - 1)
        module = getattr(copy.deepcopy(module), cast)()
        assert all(b.dtype == torch.float32 and (b == 16_777_216).all() for b in module.buffers())


def test_buffers_follow_the_device():
    assert ghm_triton.GHMCLoss().to("meta").running_counts.device.type == "meta"


@pytest.mark.parametrize("momentum", [0.0, 0.9])
def test_nothing_counted(momentum, backend, device):
    """All ignored, or empty: loss 0, gradients 0, and the average does not decay."""
    state = torch.linspace(1, 2, 31)
    for x, weight in ((logits(5, 3), torch.zeros(5)), (logits(0, 3), torch.zeros(0))):
        target = torch.zeros(len(x), dtype=torch.int64)
        for reduction in ("mean", "sum", "none"):
            value, grad = evaluate(
                calls.ghmc_loss,
                x,
                target,
                weight,
                momentum=momentum,
                running_counts=state,
                reduction=reduction,
                backend=backend,
                device=device,
            )
            assert (value == 0).all() and (grad == 0).all()
        value, grad = evaluate(
            calls.ghmr_loss,
            x,
            torch.zeros_like(x),
            weight,
            bins=30,
            momentum=momentum,
            running_counts=state,
            backend=backend,
            device=device,
        )
        assert value == 0 and (grad == 0).all()
    assert torch.equal(state, torch.linspace(1, 2, 31))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16, torch.float64], ids=str)
@pytest.mark.parametrize("kind", ["index", "dense"])
def test_nan(kind, dtype, backend, device):
    """A NaN makes the loss and its own gradient NaN, and nothing else; an ignored one does nothing at all."""
    x, target = logits(30, 4).to(dtype), torch.randint(-1, 4, (30,), generator=torch.Generator().manual_seed(2))
    if kind == "dense":
        target = one_hot(target, 4).float()
    x[3, 2] = NAN
    state = torch.zeros(31)
    options = dict(momentum=0.5, running_counts=state, backend=backend, device=device)
    value, grad = evaluate(calls.ghmc_loss, x, target, **options)
    assert value.isnan() and state.isfinite().all()
    assert grad.isnan().nonzero().tolist() == [[3, 2]]
    weight = torch.ones(30)
    weight[3] = 0
    value, grad = evaluate(calls.ghmc_loss, x, target, weight, **options)
    clean, clean_grad = evaluate(calls.ghmc_loss, x.nan_to_num(0.0), target, weight, backend=backend, device=device)
    assert value.isfinite() and grad.isfinite().all() and (grad[3] == 0).all()
    value, grad = evaluate(calls.ghmc_loss, x, target, weight, backend=backend, device=device)
    assert torch.equal(value, clean) and torch.equal(grad, clean_grad)


@pytest.mark.parametrize("kind", ["index", "dense"])
def test_infinite_logits(kind, backend, device):
    """g is 0 or 1: no loss on the right side, an infinite one on the wrong side, gradients finite."""
    x = torch.tensor([[INF, -INF, 1e30, -1e30]] * 2 + [[0.5, -2.0, 3.0, -4.0]])
    target = torch.tensor([0, 1, 2])
    if kind == "dense":
        target = one_hot(target, 4).float()
    state = torch.zeros(31)
    losses, grad = evaluate(
        calls.ghmc_loss, x, target, reduction="none", running_counts=state, backend=backend, device=device
    )
    assert losses.isinf().tolist() == [[False] * 4, [True, True, False, False], [False] * 4]
    assert losses[0, 0] == 0 and losses[0, 1] == 0 and losses[0, 3] == 0
    assert grad.isfinite().all() and (grad[0, [0, 1, 3]] == 0).all() and grad[1, 1] < 0 < grad[1, 0]
    assert state.isfinite().all() and state[:30].sum() == 12


def test_infinite_deltas(backend, device):
    x = torch.tensor([[INF, -INF, 1e30, 0.0]])
    losses, grad = evaluate(calls.ghmr_loss, x, torch.zeros(1, 4), reduction="none", backend=backend, device=device)
    assert losses.isinf().tolist() == [[True, True, False, False]] and losses[0, 3] == 0
    assert grad.isfinite().all() and grad[0, 0] > 0 > grad[0, 1] and grad[0, 3] == 0


@pytest.mark.parametrize("exponent", [1.0, 0.5])
@pytest.mark.parametrize("average", [1e-7, 1e-30, 1e-38, 1e-45])
def test_eval_forgets_a_decayed_average(average, exponent, backend, device):
    """A region that was last seen long ago: its weight would grow without bound, up to inf and NaN."""
    x, target = torch.tensor([-3.0, -3.0, 3.0, 0.1], device=device), torch.zeros(4, device=device)
    options = dict(bins=3, exponent=exponent, backend=backend)
    decayed, fresh = (ghm_triton.GHMCLoss(**options).to(device).eval() for _ in range(2))
    decayed.running_counts.copy_(torch.tensor([2.0, 1.0, average, 1.0]))
    fresh.running_counts.copy_(torch.tensor([2.0, 1.0, 0.0, 1.0]))
    assert torch.equal(decayed(x, target), fresh(x, target))


def test_a_decayed_average_keeps_its_share(backend, device):
    """In a call without elements of its region, which is not forgotten: so checkpointing sees what the forward saw."""
    loss = ghm_triton.GHMCLoss(bins=2, exponent=0.5, backend=backend).to(device).eval()
    loss.running_counts.copy_(torch.tensor([1.0, 1e-8, 1.0]))
    x, target = torch.full((4,), -3.0, device=device), torch.zeros(4, device=device)
    # One region has elements; beta is N / (1^0.5 * (1^0.5 + 1e-8^0.5)) and N is 4.
    expected = 4 / (1 + 1e-4) * torch.nn.functional.softplus(x[0].double())
    torch.testing.assert_close(loss(x, target).double(), expected, rtol=1e-6, atol=0)


@pytest.mark.parametrize("exponent", [1.0, 0.5, 0.0])
@pytest.mark.parametrize("variant", ["paper", "mmdet"])
def test_a_nan_in_the_state_shows(variant, exponent, backend, device):
    """A state that was damaged must not give a plausible loss on one backend only."""
    state = torch.tensor([float("nan"), 0, 0] + [0] * (variant == "paper"), device=device)
    options = dict(bins=3, variant=variant, momentum=0.75, running_counts=state, exponent=exponent, backend=backend)
    value = calls.ghmc_loss(torch.tensor([-3.0, 3.0, 0.1], device=device), torch.zeros(3, device=device), **options)
    assert value.isnan()
