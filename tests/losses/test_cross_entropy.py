"""GHM cross entropy: against PyTorch's own, GHM-C of two classes, and a loop over regions in float64."""

import copy
import os

import pytest
import torch
from torch.nn import functional
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.checkpoint import checkpoint

from calls import ghm_cross_entropy, ghmc_loss
from compare import logits
from ghm_triton import GHMCrossEntropyLoss
from ghm_triton.eager import compute_loss
from ghm_triton.eager.cross_entropy import CrossEntropyLevel
from ghm_triton.options import Options
from ghm_triton.regions import region_edges
from ghm_triton.row_layout import lay_out_rows
from tolerances import GRADIENT, LOSS, ROUNDING, SMALLEST, assert_close

# Softmax in float32: |z - max| up to 30 rounds p by 30 * 2^-24, and 1 - p has an absolute error of 2^-23.
VALUE, ABSOLUTE = 4e-6, 3e-7


def distributions(x, target, smoothing=0.0):
    """y of each example, float64, classes last. x: [N, C, ...], target: class indices (ignored ones give 0) or y."""
    classes = x.shape[1]
    if target.is_floating_point():
        y = target.double().movedim(1, -1)
    else:
        y = (target.unsqueeze(-1) == torch.arange(classes)).double()
    return y * (1 - smoothing) + smoothing / classes


def reference(x, target, *, bins=30, smoothing=0.0, exponent=1.0, reduction="mean", ignore_index=-100):
    """(loss, gradient, counts) in float64, one region after another."""
    z, y = x.double().movedim(1, -1), distributions(x, target, smoothing)
    counted = torch.ones(z.shape[:-1], dtype=torch.bool) if target.is_floating_point() else target != ignore_index
    log_p = z.log_softmax(-1)
    norm = 0.5 * (log_p.exp() * y.sum(-1, keepdim=True) - y).abs().sum(-1)
    edges = region_edges(bins).double()
    beta, counts = torch.zeros_like(norm), torch.zeros(bins)
    for j in range(bins):
        inside = counted & (norm >= edges[j]) & ((norm < edges[j + 1]) | (j == bins - 1))
        counts[j] = inside.sum()
        beta[inside] = counts[j].double() ** -exponent
    shares = torch.where(counts > 0, counts.double() ** (1 - exponent), 1.0 if exponent == 1 else 0.0).sum()
    number = counted.sum().clamp(min=1)
    beta *= number / shares / (number if reduction == "mean" else 1)
    losses = beta * -(y * log_p).sum(-1)
    gradient = beta.unsqueeze(-1) * (log_p.exp() * y.sum(-1, keepdim=True) - y)
    return losses if reduction == "none" else losses.sum(), gradient.movedim(-1, 1), counts


def clear_of_edges(x, target, bins, smoothing=0.0):
    """x scaled until no norm is within 1e-5 of an edge: float32 and float64 then agree on the regions."""
    for _ in range(100):
        z, y = x.double().movedim(1, -1), distributions(x, target, smoothing)
        norm = 0.5 * (z.softmax(-1) * y.sum(-1, keepdim=True) - y).abs().sum(-1)
        edge = (norm * bins).round()
        near = ((norm - edge / bins).abs() < 1e-5) & (edge > 0) & (edge < bins) & (y.sum(-1) > 0)
        if not near.any():
            return x
        x = torch.where(near.unsqueeze(1), x * 0.999, x)
    raise AssertionError("no logits clear of the edges found")


def problem(shape, kind="index", dtype=torch.float32, seed=0):
    """(input, target): class indices with ignored ones, or probabilities."""
    generator = torch.Generator().manual_seed(seed)
    x = logits(*shape, seed=seed).to(dtype)
    target = torch.randint(shape[1], (shape[0], *shape[2:]), generator=generator)
    if kind == "probabilities":
        return x, torch.rand(shape, generator=generator).softmax(1)
    target.view(-1)[::5] = -100
    return x, target


def run(loss, x, target, device, **options):
    leaf = x.detach().to(device).requires_grad_()
    value = loss(leaf, target.to(device), **options)
    (grad,) = torch.autograd.grad(value.sum(), leaf)
    return value.detach().cpu(), grad.cpu()


SHAPES = [
    (7, 2),  # the fewest classes; many rows per program
    (70, 10),  # rows that are no power of two, two tiles
    (3, 1000),  # one block with a masked end
    (3, 2500),  # several blocks
    (2, 5, 3, 7),  # channels second, fewer elements than a tile
    (1, 19, 300),  # several tiles, a masked end
]


@pytest.mark.parametrize("reduction", ["mean", "none"])
@pytest.mark.parametrize("kind", ["index", "smoothed", "probabilities"])
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_values(shape, kind, reduction, backend, device, two_programs):
    """Loss and gradient in each layout of the kernels: a wrong offset, mask, region or coefficient."""
    x, target = problem(shape, kind)
    smoothing = 0.1 if kind == "smoothed" else 0.0
    x = clear_of_edges(x, target, 10, smoothing)
    expected, gradient, _ = reference(x, target, bins=10, smoothing=smoothing, exponent=0.5, reduction=reduction)
    options = dict(bins=10, exponent=0.5, label_smoothing=smoothing, reduction=reduction, backend=backend)
    value, grad = run(ghm_cross_entropy, x, target, device, **options)
    largest = gradient.abs().max().item()
    assert_close(value, expected, VALUE, ABSOLUTE * expected.abs().max().item())
    assert_close(grad, gradient, VALUE, ABSOLUTE * largest)


@pytest.mark.parametrize("kind", ["index", "probabilities"])
@pytest.mark.parametrize("shape", [(9, 5), (2, 1000), (3, 5, 2, 7)], ids=str)
def test_chunks(shape, kind, device, monkeypatch):
    """Eager chunks of 12 logits: whole rows, several rows, one row that is longer, parts of the positions."""
    x, target = problem(shape, kind)
    for reduction in ("mean", "none"):
        options = dict(exponent=0.5, reduction=reduction, backend="eager")
        expected = run(ghm_cross_entropy, x, target, device, **options)
        with monkeypatch.context() as patch:
            patch.setattr(CrossEntropyLevel, "chunk", 12)
            got = run(ghm_cross_entropy, x, target, device, **options)
        assert_close(got[0], expected[0], LOSS)
        assert_close(got[1], expected[1], GRADIENT, ABSOLUTE * expected[1].abs().max().item())


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64], ids=str)
@pytest.mark.parametrize("shape", [(40, 10), (2, 5, 33)], ids=str)
def test_dtypes(shape, dtype, backend, device):
    """16-bit logits are taken to float32, gradients are rounded once; float64 keeps its digits."""
    x, target = problem(shape)
    x = clear_of_edges(x.to(dtype).float(), target, 10).to(dtype)
    expected, gradient, _ = reference(x, target, bins=10)
    value, grad = run(ghm_cross_entropy, x, target, device, bins=10, backend=backend)
    assert value.dtype == (torch.float64 if dtype == torch.float64 else torch.float32) and grad.dtype == dtype
    if dtype == torch.float64:
        assert_close(value, expected, 1e-12)
        return assert_close(grad, gradient, 1e-11, 1e-14)
    moved = clear_of_edges(x.float(), target, 10)
    if torch.equal(moved, x.float()):  # rounding may have brought a norm beside an edge
        assert_close(value, expected, VALUE, ABSOLUTE)
        absolute = SMALLEST[dtype] + ABSOLUTE * gradient.abs().max().item()
        assert_close(grad, gradient, ROUNDING[dtype] + VALUE, absolute)


def samples():
    pytest.importorskip("expecttest", reason="torch.testing._internal needs expecttest")
    with pytest.MonkeyPatch.context() as patch:  # the import freezes flags that Ultralytics sets in the same process
        patch.setattr(torch.backends, "disable_global_flags", lambda: None)
        from torch.testing._internal.common_methods_invocations import op_db

    (info,) = [info for info in op_db if info.name == "nn.functional.cross_entropy"]
    found = info.sample_inputs("cpu", torch.float32, requires_grad=True)
    return [each for each in found if "weight" not in each.kwargs]


@pytest.mark.slow
def test_one_region_is_pytorchs_cross_entropy(backend, device):
    """PyTorch's own samples, with probabilities that do not sum to 1 among them: every shape, reduction and option."""
    count = 0
    for sample in samples():
        for smoothing in (0.0, 0.3):
            for harmless in (dict(bins=1), dict(exponent=0.0)):
                target, options = sample.args[0].detach(), dict(sample.kwargs, label_smoothing=smoothing)
                expected = run(functional.cross_entropy, sample.input, target, device, **options)
                got = run(ghm_cross_entropy, sample.input, target, device, **options, **harmless, backend=backend)
                for one, other in zip(got, expected):
                    torch.testing.assert_close(one, other, rtol=VALUE, atol=1e-6)
                count += 1
    assert count >= 60


@pytest.mark.parametrize("shape", [(40, 1), (2, 1, 5)], ids=str)
def test_one_class(shape, backend, device):
    """Nothing to learn: p = y = 1, up to the rounding of the smoothing."""
    for smoothing in (0.0, 0.1):
        target = torch.zeros(shape[0], *shape[2:], dtype=torch.int64)
        value, grad = run(ghm_cross_entropy, logits(*shape), target, device, label_smoothing=smoothing, backend=backend)
        assert value.abs() <= ABSOLUTE and grad.shape == shape and grad.abs().max() <= ABSOLUTE


def test_without_batch_dimension(backend, device):
    """[C] with [] or [C]."""
    x, label = logits(9), torch.tensor(4)
    for target in (label, torch.rand(9)):
        got = run(ghm_cross_entropy, x, target, device, bins=1, backend=backend)
        for one, other in zip(got, run(functional.cross_entropy, x, target, device)):
            assert_close(one, other, VALUE, 1e-6)
    assert ghm_cross_entropy(x.to(device), label.to(device), reduction="none", backend=backend).shape == ()


@pytest.mark.parametrize("exponent", [0.5, 1.0])
def test_two_classes_are_ghmc_of_the_difference(exponent, backend, device):
    """The definition: p_1 is the sigmoid of z_1 - z_0, and so is everything that follows, the state included."""
    x, target = problem((60, 2), seed=3)
    x, target = clear_of_edges(x, target.clamp(min=0), 10), target.clamp(min=0)
    states = torch.zeros(2, 11, device=device)
    options = dict(bins=10, momentum=0.5, exponent=exponent, backend=backend)
    value, grad = run(ghm_cross_entropy, x, target, device, running_counts=states[0], **options)
    difference = (x[:, 1].double() - x[:, 0].double()).float()
    expected, slope = run(
        ghmc_loss, difference, target.float(), device, running_counts=states[1], **dict(options, backend="eager")
    )
    assert torch.equal(states[0], states[1])
    assert_close(value, expected, VALUE)
    assert_close(grad, torch.stack([-slope, slope], 1), 2 * VALUE, ABSOLUTE * slope.abs().max().item())


def test_labels_of_any_integer_type(backend, device):
    """At any alignment; an index that the type can hold but that is no class is ignored by the kernels."""
    x, target = problem((40, 5), seed=1)
    target = target.clamp(min=0)
    expected = run(ghm_cross_entropy, x, target, device, backend=backend)
    for dtype in (torch.int32, torch.int16, torch.int8, torch.uint8):
        shifted = torch.cat([torch.zeros(1, dtype=dtype), target.to(dtype)])[1:]
        got = run(ghm_cross_entropy, x, shifted, device, backend=backend)
        assert all(torch.equal(*pair) for pair in zip(got, expected))


def test_wrong_class_index(device):
    """Eager PyTorch raises, as F.cross_entropy does, and leaves the state. The kernels, which cannot, ignore it."""
    x, target = problem((20, 5))
    for wrong in (5, -1):
        bad = target.clone()
        bad[1] = wrong
        state = torch.zeros(31, device=device)
        options = dict(momentum=0.5, running_counts=state)
        with pytest.raises(IndexError, match=f"target must hold class indices from 0 to 4 or .*, got {wrong}"):
            ghm_cross_entropy(x.to(device), bad.to(device), backend="eager", **options)
        assert not state.any()
        pytest.importorskip("triton")
        ignored = target.clone()
        ignored[1] = -100
        got = run(ghm_cross_entropy, x, bad, device, backend="triton")
        expected = run(ghm_cross_entropy, x, ignored, device, backend="triton")
        assert all(torch.equal(*pair) for pair in zip(got, expected))


@pytest.mark.parametrize("shape", [(12, 6), (2, 6, 8)], ids=str)
def test_ignored_examples(shape, backend, device):
    """They may hold anything, count nowhere, and have gradient 0. If all are ignored, the state does not change."""
    x, target = problem(shape)
    state = torch.zeros(31, device=device)
    options = dict(momentum=0.5, running_counts=state, backend=backend)
    value, grad = run(ghm_cross_entropy, x, target, device, **options)
    assert state[:30].sum() == 0.5 * (target >= 0).sum()
    ignored = (target < 0).unsqueeze(1).expand_as(x)
    spoiled = torch.where(ignored, torch.nan, x)
    again, spoiled_grad = run(ghm_cross_entropy, spoiled, target, device, backend=backend)
    assert torch.equal(again, value) and torch.equal(spoiled_grad, grad) and not grad[ignored].any()
    before = state.clone()
    value, grad = run(ghm_cross_entropy, x, torch.full_like(target, 7), device, ignore_index=7, **options)
    assert value == 0 and not grad.any() and torch.equal(state, before)


def test_masked_and_special_logits(backend, device):
    """-inf masks a class, in a whole block of them too; a NaN spoils its own row; large offsets cost no digits."""
    x, target = problem((4, 2500))
    target = torch.tensor([3, 2400, 3, 3])
    x[:, 5:1500] = -torch.inf
    x[1, :1500] = -torch.inf
    x[3] = x[2] + 1024
    x[0, 7] = torch.nan
    value, grad = run(ghm_cross_entropy, x, target, device, bins=1, reduction="none", backend=backend)
    expected, gradient = run(functional.cross_entropy, x, target, "cpu", reduction="none")
    assert value[0].isnan() and grad[0].isnan().all() and not grad[1:].isnan().any()
    assert_close(value[1:], expected[1:], VALUE)
    assert_close(grad[1:], gradient[1:], VALUE, ABSOLUTE)


@pytest.mark.parametrize("options", [dict(bins=1), dict(exponent=0.0)], ids=str)
@pytest.mark.parametrize("reduction", ["mean", "sum", "none"])
def test_a_nan_leaves_its_neighbors(reduction, options, backend, device):
    """Without weights the other rows have the gradient of PyTorch: a NaN is one of N in both."""
    x, target = problem((4, 5))
    target = target.clamp(min=0)
    x[2, 1] = torch.nan
    _, grad = run(ghm_cross_entropy, x, target, device, reduction=reduction, backend=backend, **options)
    _, expected = run(functional.cross_entropy, x, target, "cpu", reduction=reduction)
    others = [0, 1, 3]
    assert grad[2].isnan().all()
    assert_close(grad[others], expected[others], VALUE, ABSOLUTE)


@pytest.mark.slow
def test_nothing_is_ignored(backend, device):
    """ignore_index=None, as segmentation libraries have it: every row counts, whatever the shape."""
    for shape in ((6, 9), (1, 40, 2, 3)):
        x, target = problem(shape)
        target = target.clamp(min=0)
        for options in (dict(exponent=0.5, momentum=0.0), dict(exponent=0.0, momentum=0.0)):
            with_default = GHMCrossEntropyLoss(backend=backend, **options)
            without = GHMCrossEntropyLoss(ignore_index=None, backend=backend, **options)
            expected, got = run(with_default, x, target, device), run(without, x, target, device)
            assert torch.equal(expected[0], got[0]) and torch.equal(expected[1], got[1])
            compiled = torch.compile(without, fullgraph=True, backend="aot_eager")
            assert torch.equal(run(compiled, x, target, device)[1], got[1])
        plain = functional.cross_entropy(x, target)  # `options` ends with the exponent 0
        assert_close(got[0], plain, VALUE)
    assert_close(
        ghm_cross_entropy(x, x.softmax(1), ignore_index=None, bins=1), functional.cross_entropy(x, x.softmax(1)), VALUE
    )
    if backend == "eager":
        with pytest.raises(IndexError, match="target must hold class indices from 0 to 39, got -100"):
            ghm_cross_entropy(x, target - 100, ignore_index=None, backend=backend)


def test_distributions_without_mass_on_masked_classes(backend, device):
    """0 * inf would be NaN; probabilities of 0 and 1 are the class indices."""
    x, target = problem((6, 9))
    target, x[:, 7:] = target.clamp(0, 6), -torch.inf
    expected = run(ghm_cross_entropy, x, target, device, exponent=0.5, backend=backend)
    got = run(ghm_cross_entropy, x, distributions(x, target).float(), device, exponent=0.5, backend=backend)
    assert_close(got[0], expected[0], VALUE)
    assert_close(got[1], expected[1], VALUE, ABSOLUTE)


def test_layouts_are_read_in_place(backend, device):
    """Channels last, tokens as transposed [N, L, C], and strided views give the same values; nothing is written to."""
    x, target = problem((2, 6, 4, 5))
    expected = run(ghm_cross_entropy, x, target, device, backend=backend)
    wide = torch.zeros(2, 6, 4, 9)[..., ::2].copy_(x)
    for other in (x.contiguous(memory_format=torch.channels_last), x.movedim(1, -1).contiguous().movedim(-1, 1), wide):
        before = other.clone()
        value, grad = run(ghm_cross_entropy, other, target, device, backend=backend)
        assert_close(value, expected[0], LOSS)
        assert_close(grad, expected[1], VALUE, ABSOLUTE)
        assert torch.equal(other, before)


OPTIONS = Options(loss="cross_entropy", bins=30, exponent=1.0, ignore_index=-100)


def test_no_copy_of_the_logits(device):
    """Contiguous, channels-last and token layouts reach the operators as views."""
    x = torch.randn(2, 6, 4, 5)
    for given in (x, x.contiguous(memory_format=torch.channels_last), x.movedim(1, -1).contiguous().movedim(-1, 1)):
        population, shape = lay_out_rows(given, torch.zeros(2, 4, 5, dtype=torch.int64), OPTIONS)
        assert population.inputs[0].data_ptr() == given.data_ptr() and population.inputs[0].is_contiguous()
        assert shape == (2, 4, 5)


def test_eager_copies_no_logits():
    """Also of layouts that are neither: part of a batch with gaps, class-major rows."""

    class NoCopy(TorchDispatchMode):
        def __torch_dispatch__(self, func, types, args=(), kwargs=None):
            assert func is not torch.ops.aten.clone.default or args[0].numel() < 60
            return func(*args, **(kwargs or {}))

    for x in (torch.randn(4, 5, 6)[::2], torch.randn(5, 12).t()):
        target = torch.zeros(x.shape[:1] + x.shape[2:], dtype=torch.int64)
        with NoCopy():
            population, _ = lay_out_rows(x, target, OPTIONS)
            compute_loss(population, None, OPTIONS._replace(grad=True))


def test_state_and_evaluation(backend, device):
    """Training updates the average and evaluation uses it; state_dict, density() and deepcopy know it."""
    x, target = problem((50, 4))
    module = GHMCrossEntropyLoss(momentum=0.5, exponent=0.5, backend=backend).to(device)
    for _ in range(3):
        module(x.to(device), target.to(device))
    state = module.running_counts.clone()
    assert state[30] == 1 - 0.5**3
    assert module.density().counts.sum().item() == pytest.approx((target >= 0).sum().item(), rel=1e-6)
    module.eval()
    first = module(x.to(device), target.to(device))
    assert torch.equal(module.running_counts, state)
    restored = GHMCrossEntropyLoss(momentum=0.5, exponent=0.5, backend=backend).to(device)
    restored.load_state_dict(module.state_dict())
    for other in (restored.eval(), copy.deepcopy(module)):
        assert torch.equal(other(x.to(device), target.to(device)), first)
    twice = GHMCrossEntropyLoss(momentum=0, exponent=0.5, loss_weight=2.0, backend=backend)
    once = ghm_cross_entropy(x.to(device), target.to(device), exponent=0.5, backend=backend)
    assert_close(twice(x.to(device), target.to(device)).cpu(), 2 * once.cpu(), LOSS)


def test_repeats_to_the_bit(backend, device):
    """Two runs agree in loss, gradient and state."""
    x, target = problem((2, 19, 150))
    results = []
    for _ in range(2):
        state = torch.zeros(31, device=device)
        options = dict(momentum=0.5, running_counts=state, backend=backend)
        results.append([*run(ghm_cross_entropy, x, target, device, **options), state.cpu()])
    assert all(torch.equal(*pair) for pair in zip(*results))


@pytest.mark.parametrize("of_ignored", [torch.inf, torch.nan])
def test_incoming_gradients(of_ignored, backend, device):
    """One factor per example; that of an ignored example may be infinite or NaN."""
    x, target = problem((3, 6, 5))
    leaf = x.to(device).requires_grad_()
    losses = ghm_cross_entropy(leaf, target.to(device), reduction="none", backend=backend)
    assert losses.shape == target.shape
    factors = torch.where(target < 0, of_ignored, torch.arange(15.0).view(3, 5)).to(device)
    (grad,) = torch.autograd.grad(losses, leaf, factors)
    (plain,) = torch.autograd.grad(ghm_cross_entropy(leaf, target.to(device), reduction="sum", backend=backend), leaf)
    expected = plain * torch.where(target < 0, 0.0, torch.arange(15.0).view(3, 5)).to(device).unsqueeze(1)
    assert_close(grad.cpu(), expected.cpu(), 2 * GRADIENT, 1e-9)


@pytest.mark.slow
@pytest.mark.parametrize("dynamic", [False, True])
def test_compiled(dynamic, backend, device):
    """One graph with the numbers of the plain call, state included."""
    torch._dynamo.reset()
    plain, other = (GHMCrossEntropyLoss(backend=backend, label_smoothing=0.1).to(device) for _ in range(2))
    compiled = torch.compile(other, fullgraph=True, dynamic=dynamic, backend="aot_eager")
    for shape in ((8, 5), (9, 5), (2, 5, 6)):
        x, target = problem(shape)
        expected, got = (run(loss, x, target, device) for loss in (plain, compiled))
        assert all(torch.equal(*pair) for pair in zip(expected, got))
    assert torch.equal(plain.running_counts, other.running_counts)


@pytest.mark.slow
def test_exported(backend, device):
    """A model with the loss in it, for any batch."""
    model = torch.nn.Sequential(torch.nn.Linear(4, 3))
    loss = GHMCrossEntropyLoss(backend=backend)

    class Both(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.model, self.loss = model, loss

        def forward(self, x, target):
            return self.loss(self.model(x), target)

    both = Both().to(device)
    x, target = logits(9, 4).to(device), (torch.arange(9) % 3).to(device)
    batch = torch.export.Dim("batch", min=2)
    program = torch.export.export(both, (x[:5], target[:5]), dynamic_shapes=({0: batch}, {0: batch}))
    exported = program.module()
    assert torch.equal(exported(x, target), both(x, target))


def test_func(backend, device):
    """grad, and vmap over an ensemble, of which each has a density of its own."""
    x, target = (each.to(device) for each in problem((12, 4)))

    def loss(x, target):
        return ghm_cross_entropy(x, target, bins=10, backend=backend)

    stacked = torch.stack([x, 2 * x, x.flip(1)])
    grads = torch.func.vmap(torch.func.grad(loss), (0, None))(stacked, target)
    for member, grad in zip(stacked, grads):
        leaf = member.clone().requires_grad_()
        assert torch.equal(torch.autograd.grad(loss(leaf, target), leaf)[0], grad)


@pytest.mark.parametrize("use_reentrant", [False, True])
def test_checkpoint(use_reentrant, backend, device):
    """The gradient and the state are those of the plain call: the repeated forward does not count twice."""
    x, target = problem((12, 4))
    plain, module = (GHMCrossEntropyLoss(backend=backend).to(device) for _ in range(2))

    def checkpointed(x, target):
        return checkpoint(lambda x: module(2 * x, target), x, use_reentrant=use_reentrant)

    expected = run(lambda x, target: plain(2 * x, target), x, target, device)
    leaf = x.to(device).requires_grad_()
    value = checkpointed(leaf, target.to(device))
    value.backward()
    assert torch.equal(value.detach().cpu(), expected[0]) and torch.equal(leaf.grad.cpu(), expected[1])
    assert torch.equal(module.running_counts, plain.running_counts)


def test_gradcheck(device):
    """Numeric derivatives in float64, away from the edges."""
    x = torch.tensor([[-2.9, 0.4, 1.0], [1.3, -0.7, 0.2], [3.1, -5.2, 0.3]], dtype=torch.float64, requires_grad=True)
    for target in (torch.tensor([1, -100, 0]), torch.full((3, 3), 1 / 3, dtype=torch.float64)):
        for smoothing in (0.0, 0.2):
            torch.autograd.gradcheck(
                lambda x, target=target, smoothing=smoothing: ghm_cross_entropy(
                    x, target, bins=4, label_smoothing=smoothing, reduction="none"
                ),
                x,
            )


X = torch.zeros(3, 4)
LABELS = torch.zeros(3, dtype=torch.int64)
PROBABILITIES = (
    "target must have the shape of input, .3, 4., for probabilities, "
    "or hold integer class indices, got .3,. with torch.float32"
)


@pytest.mark.parametrize(
    ("arguments", "options", "error", "message"),
    [
        ((torch.zeros(()), LABELS[0]), {}, ValueError, "input must have shape"),
        ((torch.zeros(3, 0), LABELS), {}, ValueError, "input must have shape .* with C > 0, got .3, 0."),
        ((X.long(), LABELS), {}, TypeError, "input must be float32"),
        (([X], LABELS), {}, TypeError, "input must be a tensor, got list"),
        ((X, LABELS[:2]), {}, ValueError, "target must have shape .3,. for class indices, got .2,."),
        ((X, LABELS.bool()), {}, TypeError, "target must hold class indices of an integer type"),
        ((X, torch.zeros(3)), {}, ValueError, PROBABILITIES),
        ((X, X), dict(ignore_index=1), ValueError, "ignore_index must be negative .* got 1"),
        ((X, LABELS), dict(ignore_index=1.0), TypeError, "ignore_index must be an int, got 1.0"),
        ((X, LABELS), dict(ignore_index=2**63), ValueError, "ignore_index must fit in int64, got 9223372036854775808"),
        ((X, LABELS), dict(label_smoothing=1.5), ValueError, "label_smoothing must be in .0, 1., got 1.5"),
        ((X, LABELS), dict(momentum=0.5), ValueError, "running_counts must be a tensor of 31 zeros"),
    ],
)
def test_bad_input(arguments, options, error, message, backend):
    with pytest.raises(error, match=message):
        ghm_cross_entropy(*arguments, **options, backend=backend)


def test_empty_batch(backend, device):
    """No examples: 0, where PyTorch has NaN, and an empty gradient."""
    for shape in ((0, 4), (0, 4, 3), (2, 4, 0)):
        target = torch.zeros(shape[0], *shape[2:], dtype=torch.int64)
        value, grad = run(ghm_cross_entropy, torch.zeros(shape), target, device, backend=backend)
        assert value == 0 and grad.shape == shape


@pytest.mark.skipif(os.environ.get("TRITON_INTERPRET") != "1", reason="counts launches in the interpreter")
@pytest.mark.parametrize("shape", [(300, 3), (5, 5000), (2, 7, 400)], ids=str)
def test_at_most_four_launches(shape, monkeypatch):
    """Forward and backward: accumulate, fold, harmonize, gradient."""
    interpreter = pytest.importorskip("triton.runtime.interpreter")
    names, launch = [], interpreter.GridExecutor.__call__

    def counted(self, *args, **kwargs):
        names.append(self.fn.__name__)
        return launch(self, *args, **kwargs)

    monkeypatch.setattr(interpreter.GridExecutor, "__call__", counted)
    run(ghm_cross_entropy, *problem(shape), "cpu", backend="triton")
    assert len(names) <= 4 and names[0].endswith("accumulate_kernel") and names[-1].endswith("gradient_kernel")
