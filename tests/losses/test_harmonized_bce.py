"""HarmonizedBCELoss: values, gradients, and state, against the float64 reference and autograd."""

import pytest
import torch
from torch.nn import functional
from torch.utils.checkpoint import checkpoint

import oracle
from bce_reference import OPTIONS, RELATIVE, reference
from ghm_triton import HarmonizedBCELoss
from processes import part, run


def problem(seed, shape=(3, 40, 5)):
    """Logits, and targets in [0, 1] of which one in twenty is positive."""
    generator = torch.Generator().manual_seed(seed)
    logits = torch.randn(shape, generator=generator) * 3 - 4
    target = torch.rand(shape, generator=generator) * (torch.rand(shape, generator=generator) < 0.05)
    return logits, target


def focal(logits, target):
    """Focal loss with gamma 2 and alpha 0.25, element by element."""
    p = logits.sigmoid()
    wrong = p * (1 - target) + (1 - p) * target
    alpha = 0.25 * target + 0.75 * (1 - target)
    return alpha * wrong**2 * functional.binary_cross_entropy_with_logits(logits, target, reduction="none")


@pytest.mark.parametrize("value", [None, focal], ids=["bce", "focal"])
@pytest.mark.parametrize("preserve", ["value", "gradient"])
@pytest.mark.parametrize("exponent, momentum", [(0.0, 0.75), (0.5, 0.0), (0.5, 0.75), (1.0, 0.75)])
def test_values(preserve, value, exponent, momentum, backend, device):
    """Three steps: values, gradients, and state. The total, or the L1 norm of the gradient, is that of the other."""
    options = dict(bins=30, momentum=momentum, exponent=exponent)
    loss = HarmonizedBCELoss(preserve=preserve, backend=backend, **options).to(device)
    state = torch.zeros(31) if momentum else None
    for seed in range(3):
        logits, target = problem(seed)
        leaf = logits.to(device, copy=True).requires_grad_()
        there = target.to(device)
        values = loss(leaf, there, None if value is None else value(leaf, there))
        values.sum().backward()
        expected, gradient, state = reference(logits, target, state, preserve=preserve, value=value, **options)
        torch.testing.assert_close(values.cpu().double(), expected, rtol=RELATIVE, atol=0)
        torch.testing.assert_close(leaf.grad.cpu().double(), gradient, rtol=RELATIVE, atol=0)
        other = problem(seed)[0].requires_grad_()
        kept = (value or (lambda x, t: functional.binary_cross_entropy_with_logits(x, t, reduction="none")))(
            other, target
        ).sum()
        kept.backward()
        if preserve == "value":
            torch.testing.assert_close(values.sum().cpu(), kept, rtol=RELATIVE, atol=0)
        else:
            torch.testing.assert_close(leaf.grad.cpu().abs().sum(), other.grad.abs().sum(), rtol=RELATIVE, atol=0)
    if momentum:
        torch.testing.assert_close(loss.running_counts.cpu().double(), state, rtol=1e-6, atol=0)


@pytest.mark.parametrize("preserve", ["value", "gradient"])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float64], ids=str)
def test_dtypes(dtype, preserve):
    """16-bit logits, as under AMP: fp32 values, 16-bit gradients. float64: both float64, and far more accurate."""
    logits, target = (tensor.to(dtype) for tensor in problem(0))
    values = HarmonizedBCELoss(preserve=preserve, **OPTIONS)(logits.requires_grad_(), target)
    values.sum().backward()
    assert values.dtype == (torch.float64 if dtype == torch.float64 else torch.float32)
    expected, gradient, _ = reference(logits.detach(), target, torch.zeros(31), preserve=preserve)
    relative = 1e-6 if dtype == torch.float64 else RELATIVE  # the running counts are float32
    torch.testing.assert_close(values.double(), expected, rtol=relative, atol=0)
    rounding = 0 if dtype == torch.float64 else 2**-8
    torch.testing.assert_close(logits.grad.double(), gradient, rtol=relative + rounding, atol=0)


@pytest.mark.parametrize("preserve", ["value", "gradient"])
@pytest.mark.parametrize("value", [None, focal], ids=["bce", "focal"])
def test_without_gradients(preserve, value):
    """Validation: the other loss element by element, and the state stays, in training mode too."""
    loss = HarmonizedBCELoss(preserve=preserve, **OPTIONS)
    logits, target = problem(0)
    loss(logits.requires_grad_(), target)
    before = loss.running_counts.clone()
    logits, target = problem(1)
    expected = functional.binary_cross_entropy_with_logits(logits, target, reduction="none")
    expected = expected if value is None else value(logits, target)
    for context in (torch.no_grad(), torch.inference_mode()):
        with context:
            assert torch.equal(loss(logits, target, None if value is None else expected), expected)
    assert torch.equal(loss.running_counts, before)


@pytest.mark.parametrize("preserve", ["value", "gradient"])
def test_eval(preserve):
    """In `eval()` with gradients, the weights are those of the state, which stays."""
    loss = HarmonizedBCELoss(preserve=preserve, **OPTIONS)
    logits, target = problem(0)
    loss(logits.requires_grad_(), target)
    before = loss.running_counts.clone()
    values = loss.eval()(logits, target)
    assert torch.equal(loss.running_counts, before)
    assert torch.equal(values, HarmonizedBCELoss(preserve=preserve, **OPTIONS)(logits, target))  # after one step


@pytest.mark.parametrize("preserve", ["value", "gradient"])
@pytest.mark.parametrize("value", [None, focal], ids=["bce", "focal"])
def test_reentrant_checkpointing(preserve, value):
    """The first forward runs without gradients and the second with them: one update, the same gradient."""

    def total(loss, logits, target):
        return loss(logits, target, None if value is None else value(logits, target)).sum()

    results = []
    for reentrant in (False, True):
        loss = HarmonizedBCELoss(preserve=preserve, **OPTIONS)
        logits, target = problem(0)
        logits.requires_grad_()
        if reentrant:
            checkpoint(total, loss, logits, target, use_reentrant=True).backward()
        else:
            total(loss, logits, target).backward()
        results.append((logits.grad, loss.running_counts.clone()))
    assert all(torch.equal(one, other) for one, other in zip(*results))


@pytest.mark.parametrize("preserve", ["value", "gradient"])
def test_nothing_to_harmonize(preserve):
    """No elements, and elements without a loss, give zeros and no NaN. Logits without a gradient give values."""
    loss = HarmonizedBCELoss(preserve=preserve, **OPTIONS)
    empty = torch.zeros(0, 5, requires_grad=True)
    values = loss(empty, torch.zeros(0, 5))
    values.sum().backward()
    assert values.shape == empty.grad.shape == (0, 5)
    sure = torch.full((4, 5), -200.0, requires_grad=True)  # exp(-200) is 0 in float32
    values = loss(sure, torch.zeros(4, 5))
    values.sum().backward()
    assert not values.any() and not sure.grad.any()
    logits, target = problem(0)
    values = HarmonizedBCELoss(preserve=preserve, **OPTIONS)(logits, target)
    expected, _, _ = reference(logits, target, torch.zeros(31), preserve=preserve)
    assert not values.requires_grad
    torch.testing.assert_close(values.double(), expected, rtol=RELATIVE, atol=0)


@pytest.mark.parametrize("preserve", ["value", "gradient"])
def test_total(preserve):
    """A scalar stands for the sum of the elements, which frameworks return."""
    results = []
    for reduce in (torch.clone, torch.sum):
        loss = HarmonizedBCELoss(preserve=preserve, **OPTIONS)
        logits, target = problem(0)
        logits.requires_grad_()
        values = loss(logits, target, reduce(focal(logits, target)))
        values.sum().backward()
        results.append((values.detach(), logits.grad))
        with torch.no_grad():
            plain = loss(logits, target, reduce(focal(logits, target)))
    for one, other in zip(*results):
        torch.testing.assert_close(one, other, rtol=RELATIVE, atol=0)
    cross_entropy = functional.binary_cross_entropy_with_logits(logits.detach(), target, reduction="none")
    expected = cross_entropy * focal(logits.detach(), target).sum() / cross_entropy.sum()
    torch.testing.assert_close(plain, expected, rtol=RELATIVE, atol=0)


@pytest.mark.slow
def test_compile():
    """One graph, without and with gradients, for the preserved value."""
    torch._dynamo.reset()
    loss, plain = HarmonizedBCELoss(**OPTIONS), HarmonizedBCELoss(**OPTIONS)
    compiled = torch.compile(loss, fullgraph=True, backend="aot_eager")
    for seed in range(2):
        results = []
        for call in (compiled, plain):
            logits, target = problem(seed)
            values = call(logits.requires_grad_(), target)
            values.sum().backward()
            with torch.no_grad():
                results.append((values.detach(), logits.grad, call(logits, target)))
        for one, other in zip(*results):
            torch.testing.assert_close(one, other, rtol=RELATIVE, atol=0)
    assert torch.equal(loss.running_counts, plain.running_counts)


def test_checkpoint():
    """The state is that of GHMCLoss, and a loaded module goes on with the same numbers."""
    loss, other = HarmonizedBCELoss(**OPTIONS), HarmonizedBCELoss(**OPTIONS)
    loss(*problem(0))
    assert list(loss.state_dict()) == ["running_counts"]
    other.load_state_dict(loss.state_dict())
    assert torch.equal(loss(*problem(1)), other(*problem(1)))
    assert loss.density().counts.sum() > 0 and "preserve='value', bins=30" in repr(loss)


@pytest.mark.parametrize(
    "options, error, message",
    [
        (dict(preserve="norm"), ValueError, "preserve must be one of 'value', 'gradient', got 'norm'"),
        (dict(exponent=2), ValueError, "exponent must be in"),
        (dict(bins=1.5), TypeError, "bins must be an int, got 1.5"),
    ],
)
def test_bad_options(options, error, message):
    with pytest.raises(error, match=message):
        HarmonizedBCELoss(**options)


@pytest.mark.parametrize("preserve", ["value", "gradient"])
def test_bad_calls(preserve):
    """The error names the argument, also without gradients. The state stays."""
    loss = HarmonizedBCELoss(preserve=preserve, **OPTIONS)
    logits, target = problem(0)
    logits.requires_grad_()
    labels = torch.zeros(3, 40, dtype=torch.int64)
    wrong = target.clone()
    wrong[0, 0, 0] = 2
    for enabled in (True, False):
        with torch.set_grad_enabled(enabled):
            with pytest.raises(ValueError, match=r"target must have the shape of input, \(3, 40, 5\), got \(3, 40\)"):
                loss(logits, labels)
            with pytest.raises(
                ValueError, match=r"value must have the shape of input, \(3, 40, 5\), or be a scalar, got \(3, 40\)"
            ):
                loss(logits, target, target.sum(-1))
            with pytest.raises(TypeError, match="input must be float32"):
                loss(labels, labels)
            for value in (None, focal(logits, target)):
                with pytest.raises(ValueError, match=r"target must hold values in \[0, 1\].*, got 2"):
                    loss(logits, wrong, value)
            for value in (-focal(logits, target), -focal(logits, target).sum()):
                with pytest.raises(ValueError, match="value must hold losses, with a total of at least 0, got .* -"):
                    loss(logits, target, value)
    if preserve == "gradient":
        for value in (focal(logits, target).detach(), (target * torch.ones((), requires_grad=True))):
            with pytest.raises(ValueError, match="value must be computed from input, which requires grad"):
                loss(logits, target, value)
    assert not loss.running_counts.any()


def check_two_processes(rank, size):
    """The density is that of both processes, the total that of each; validation waits for nobody."""
    bce = HarmonizedBCELoss(**OPTIONS, process_group=torch.distributed.group.WORLD)
    state = torch.zeros(31)
    for seed in range(2):
        whole = problem(seed, (17, 40, 5))
        logits, target = (part(tensor, rank, size) for tensor in whole)
        bce(logits.requires_grad_(), target).sum().backward()
        values, gradient, state = oracle.harmonize("c", *whole, **OPTIONS, state=state, reduction="none")
        values = part(values, rank, size)
        total = oracle.norms("c", logits.detach(), target)[1].sum()
        expected = part(gradient, rank, size) * total / values.sum()
        torch.testing.assert_close(logits.grad.double(), expected, rtol=RELATIVE, atol=0)
    torch.testing.assert_close(bce.running_counts.double(), state, rtol=1e-6, atol=0)
    if rank == 0:
        with torch.no_grad():
            bce(*problem(2))


@pytest.mark.slow
def test_two_processes(tmp_path):
    run(2, tmp_path, check_two_processes)
