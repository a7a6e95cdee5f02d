"""The kernels through the public functions: tiles, seams, kinds of arguments, dispatch. See also test_values.py."""

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from calls import ghm_cross_entropy, ghmc_loss, ghmr_loss
from ghm_triton import GHMCLoss
from ghm_triton.options import Options
from loops import Loop, assert_agrees, off_edges
from tolerances import GRADIENT, LOSS, ROUNDING, SIGMOID, assert_close

pytest.importorskip("triton")
from ghm_triton.kernels import harmonize


@pytest.fixture
def draw():
    return torch.Generator().manual_seed(0)


def ghmc_case(anchors, columns, target_kind, weight_kind, dtype, draw, loop, mean=-3.0):
    """Logits away from edges, targets and weights of one level; a quarter of the anchors positive, some ignored."""
    x = (torch.randn(anchors, columns, generator=draw) * 2 + mean).to(dtype)
    label = torch.randint(0, columns, (anchors,), generator=draw)
    label = torch.where(torch.rand(anchors, generator=draw) < 0.75, columns, label)
    target = {
        "int64": label,
        "int32": label.int(),
        "dense": (label.unsqueeze(1) == torch.arange(columns)).to(dtype),
        "bool": label.unsqueeze(1) == torch.arange(columns),
        "soft": torch.rand(anchors, columns, generator=draw),
    }[target_kind]
    weight = {
        None: None,
        "anchor": torch.rand(anchors, generator=draw) - 0.2,
        "anchor bool": torch.rand(anchors, generator=draw) > 0.3,
        "anchor half": (torch.rand(anchors, generator=draw) > 0.3).half(),
        "element": torch.rand(anchors, columns, generator=draw) - 0.1,
        "element int": torch.randint(-1, 3, (anchors, columns), generator=draw),
    }[weight_kind]
    return off_edges(x, target, loop), target, weight


# anchors, columns, target, weight, dtype: each case names the seam that it is about
CASES = {
    "one element": (1, 1, "int64", None, torch.float32),
    "forward tile - 1": (255, 1, "int64", "anchor", torch.float32),
    "forward tile": (256, 1, "dense", None, torch.float32),
    "forward tile + 1": (257, 1, "int64", "anchor bool", torch.float32),
    "anchors straddle forward tiles": (4, 81, "int64", "anchor", torch.float32),
    "two full tiles, anchors aligned": (128, 4, "int32", "anchor half", torch.float32),
    "backward tile - 1": (89, 23, "int64", "anchor", torch.float32),
    "backward tile": (512, 4, "dense", "element", torch.float32),
    "backward tile + 1": (683, 3, "int64", "element int", torch.float32),
    "an anchor longer than a forward tile": (3, 300, "int64", "anchor", torch.float32),
    "an anchor longer than a backward tile": (2, 2100, "int32", "anchor bool", torch.float32),
    "typical head, fp16": (30, 80, "int64", "anchor", torch.float16),
    "typical head, bf16": (30, 80, "int64", "anchor", torch.bfloat16),
    "dense of the same half type": (30, 80, "dense", "anchor half", torch.float16),
    "targets as a mask": (40, 20, "bool", "element", torch.float32),
    "soft": (40, 20, "soft", "anchor", torch.float32),
    "soft, half": (40, 20, "soft", None, torch.bfloat16),
}


@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("variant, reduction", [("paper", "mean"), ("mmdet", "none")])
def test_ghmc_grid(case, variant, reduction, device, draw):
    """Masks at the tails, labels and weights by anchor, conversions: each case names what would break it."""
    loop = Loop("c", 30, variant=variant)
    inputs = ghmc_case(*CASES[case], draw, loop)
    soft = "soft" in case
    assert_agrees(loop, *inputs, backend="triton", device=device, reduction=reduction, soft=soft)


@pytest.mark.parametrize("size", [1, 255, 256, 257, 2047, 2048, 2049])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16], ids=str)
def test_ghmr_grid(size, dtype, device, draw):
    """As above for box deltas; some tiles have no counted element at all and are skipped."""
    variant = "paper" if size % 2 else "mmdet"
    loop = Loop("r", 10, variant=variant)
    target = torch.randn(size, generator=draw)
    x = target + torch.randn(size, generator=draw) * 10 ** (torch.rand(size, generator=draw) * 3 - 3)
    x = off_edges(x.to(dtype), target, loop)
    weight = torch.rand(size, generator=draw) * 2 - 0.3
    weight[: size // 2] = 0
    for reduction in ("sum", "none"):
        assert_agrees(loop, x, target, weight, backend="triton", device=device, reduction=reduction)
    by_anchor = weight[: size // 4 * 4 : 4].clone()
    boxes, aims = x[: size // 4 * 4].view(-1, 4), target[: size // 4 * 4].view(-1, 4)
    assert_agrees(loop, boxes, aims, by_anchor, backend="triton", device=device)


@pytest.mark.slow
@pytest.mark.parametrize("variant", ["paper", "mmdet"])
def test_more_rows_than_one_program_adds(variant, device, draw, two_programs):
    """4 rows of 512 slots are added at once, and these levels have 2, 0, 2, 1 and 2 rows.

    Logits as of a trained head, so that most tiles take the shortcut and the others do not. Two steps of momentum.
    """
    loop = Loop("c", 300, momentum=0.9, variant=variant)
    state = torch.zeros(300 + (variant == "paper"), device=device)
    for _ in range(2):
        levels = [
            ghmc_case(anchors, 80, "int64", "anchor", torch.float32, draw, loop, mean=-9.0)
            for anchors in (9, 0, 10, 1, 12)
        ]
        for _, target, weight in levels:
            target[torch.rand(len(target), generator=draw) < 0.95] = 80
            weight[torch.rand(len(target), generator=draw) < 0.9] = 1
        assert_agrees(loop, *map(list, zip(*levels)), backend="triton", device=device, state=state)


@pytest.mark.slow
@pytest.mark.parametrize("rows", [3, 5000])
def test_a_process_group_folds_in_two_stages(rows, monkeypatch, device):
    """No program adds more rows, one after the other, than without a group; and the numbers are the same."""
    folds, fold = [], harmonize._fold
    monkeypatch.setattr(harmonize, "_fold", lambda *args: folds.append((len(args[0]), args[2])) or fold(*args))
    monkeypatch.setattr(harmonize, "all_reduce", lambda numbers, group: numbers)
    table = harmonize.Rows(torch.zeros(1, device=device), [rows], 30)
    table.counts.copy_(torch.arange(table.counts.numel(), device=device).view(table.counts.shape) % 7)
    table.sums.copy_(table.counts / 4)
    results = []
    for group in (None, "all"):
        options = Options(loss="ghmc", bins=30, exponent=1.0, group=group)
        results.append(harmonize.launch_harmonize(table, None, options, sum_weights=False)[:2])
    for alone, shared in zip(*results):
        assert_close(shared, alone.cpu(), LOSS, 0.0)
    limit = harmonize.FOLD_TILE // 32
    assert all(count <= max(limit, -(-rows // limit)) * programs for count, programs in folds)


def test_levels_of_different_columns(backend, device, draw):
    """Levels need not have the same classes; the tables of labels and weights are each level's own."""
    loop = Loop("c", 12, variant="mmdet")
    levels = [ghmc_case(20, columns, "int64", "anchor", torch.float32, draw, loop) for columns in (7, 1, 300)]
    for reduction in ("sum", "none"):
        assert_agrees(loop, *map(list, zip(*levels)), backend=backend, device=device, reduction=reduction)


@pytest.mark.parametrize("constant", [-6.7, 0.7])
def test_equal_terms(constant, device, two_programs):
    """All rounding errors of a sum of equal terms have one sign: 16 tiles in plain fp32, then compensated."""
    x = torch.full((2 * 256 * 16 // 64 + 20, 64), constant)
    assert_agrees(Loop("c", 30), x, torch.full((len(x),), -1), backend="triton", device=device)


@pytest.mark.parametrize("make", ["expanded", "strided", "transposed"])
def test_arguments_that_are_not_contiguous(make, backend, device, draw):
    """Targets, weights and incoming gradients with strides: read as if contiguous, they would be other numbers."""
    change = {
        "expanded": lambda t: t[:1].expand(t.shape),
        "strided": lambda t: t.repeat_interleave(2, 0)[::2],
        "transposed": lambda t: t.T.contiguous().T if t.dim() == 2 else torch.stack([t, t], 1)[:, 0],
    }[make]
    x = torch.randn(40, 9, generator=draw).to(device)
    dense, label = torch.rand(40, 9, generator=draw).to(device), torch.arange(40, device=device) % 10
    weights = torch.rand(40, 9, generator=draw).to(device) - 0.2, torch.rand(40, generator=draw).to(device) - 0.2
    upstream = torch.randn(40, 9, generator=draw).to(device)
    for function, target in ((ghmc_loss, label), (ghmc_loss, dense), (ghmr_loss, dense)):
        for weight in weights:
            results = []
            for finish in (lambda t: t, torch.Tensor.contiguous):
                leaf = change(x).detach()
                leaf = finish(leaf).clone(memory_format=torch.preserve_format).requires_grad_()
                loss = function(leaf, finish(change(target)), finish(change(weight)), reduction="none", backend=backend)
                loss.backward(finish(change(upstream)))
                results.append((loss, leaf.grad))
            # torch.sigmoid rounds in another way where it cannot go along the memory
            for actual, expected in zip(*results):
                assert_close(actual, expected.cpu(), GRADIENT, SIGMOID * float(expected.detach().abs().max()))


def test_float64_state(backend, device, draw):
    """running_counts may be float64, and then keeps more than float32 could: 2^24 + 1 elements' worth of it."""
    x, target = torch.randn(100, 4, generator=draw).to(device), torch.zeros(100, 4, device=device)
    for variant, size in (("paper", 11), ("mmdet", 10)):
        wide = torch.zeros(size, dtype=torch.float64, device=device)
        narrow = torch.zeros(size, device=device)
        for _ in range(3):
            losses = [
                ghmr_loss(x, target, momentum=0.9, running_counts=state, variant=variant, backend=backend)
                for state in (wide, narrow)
            ]
            assert_close(losses[0], losses[1].cpu(), 1e-6, 0.0)
        assert_close(wide, narrow.cpu(), 1e-6, 0.0)


@pytest.mark.parametrize("input_dtype", [torch.float32, torch.float16, torch.bfloat16, torch.float64], ids=str)
@pytest.mark.parametrize("target_dtype", [torch.float32, torch.float16, torch.float64], ids=str)
def test_gradient_of_the_target(input_dtype, target_dtype, backend, device, draw):
    """Each of GHM-R's arguments gets a gradient in its own dtype and precision, whatever the other's is."""
    x, target = torch.randn(30, 4, generator=draw).to(input_dtype), torch.randn(30, 4, generator=draw).to(target_dtype)
    wide = torch.float64 if input_dtype == torch.float64 else torch.float32
    loop = Loop("r", 10, dtype=wide)
    x = off_edges(x, target, loop)
    leaf = x.double().clone().requires_grad_()
    loop([leaf], [target], reduction="sum").backward()
    for needed in ((True, True), (False, True)):
        arguments = [t.to(device, copy=True).requires_grad_(n) for t, n in zip((x, target), needed)]
        ghmr_loss(*arguments, reduction="sum", backend=backend).backward()
        for argument, sign, need in zip(arguments, (1, -1), needed):
            if need:
                assert argument.grad.dtype == argument.dtype
                assert_close(argument.grad, sign * leaf.grad, GRADIENT + ROUNDING[argument.dtype], 2**-25)
            else:
                assert argument.grad is None


def test_only_wanted_gradients(backend, device, draw):
    """Some levels may not require a gradient, and some results may not be used."""
    levels = [torch.randn(n, 3, generator=draw).to(device) for n in (5, 6, 7)]
    levels[1].requires_grad_()
    targets = [torch.zeros(n, 3, device=device) for n in (5, 6, 7)]
    ghmc_loss(levels, targets, backend=backend).backward()
    mean = levels[1].grad.clone()
    losses = ghmc_loss(levels, targets, reduction="none", backend=backend)
    (losses[1].sum() / 54).backward()
    assert_close(levels[1].grad, 2 * mean.cpu(), 2 * GRADIENT, 0.0)
    losses = ghmc_loss(levels, targets, reduction="none", backend=backend)
    assert torch.autograd.grad(losses[0].sum(), levels[1])[0].abs().max() == 0  # beta is a constant


class _Operators(TorchDispatchMode):
    def __init__(self):
        super().__init__()
        self.ours = []

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        if func.namespace == "ghm_triton":
            self.ours.append((func._opname, args))
        return func(*args, **(kwargs or {}))


def operators_of(*args, **options):
    with _Operators() as mode:
        ghmc_loss(*args, **options).sum().backward()
    return [name for name, _ in mode.ours], [args for _, args in mode.ours]


def test_backend_by_name_by_environment_and_by_default(device, monkeypatch):
    """What was asked for runs, and nothing else: no fallback, on no path."""
    x, target = torch.randn(5, 3, device=device).requires_grad_(), torch.zeros(5, dtype=torch.int64, device=device)
    kernels, eager = ["triton_loss", "triton_gradient"], ["eager_loss"]
    monkeypatch.delenv("GHM_TRITON_BACKEND", raising=False)
    assert operators_of(x, target, backend="triton")[0] == kernels
    assert operators_of(x, target, backend="eager")[0] == eager
    assert operators_of(x, target)[0] == (eager if device == "cpu" else kernels)
    monkeypatch.setenv("GHM_TRITON_BACKEND", "triton")
    assert operators_of(x, target)[0] == kernels
    assert operators_of(x, target, backend="eager")[0] == eager
    monkeypatch.setenv("GHM_TRITON_BACKEND", "eager")
    assert operators_of(x, target)[0] == eager
    assert operators_of(x, target, backend="triton", reduction="none")[0] == kernels


def test_kernels_get_indices_and_anchor_weights_as_they_are(device):
    """Expanded to one-hot, or to one weight per element, they would be as large as the logits."""
    x = torch.randn(50, 40, device=device).requires_grad_()
    _, calls = operators_of(
        x, torch.zeros(50, dtype=torch.int64, device=device), torch.ones(50, device=device), backend="triton"
    )
    for arguments in calls:
        shapes = [tuple(t.shape) for argument in arguments if isinstance(argument, list) for t in argument]
        coefficients = (32,)  # what the gradient needs from the loss
        assert sorted(s for s in shapes if s and s != coefficients) == [(50,), (50,), (50, 40)]


def test_the_same_bits_twice(backend, device, draw):
    """Atomic sums of floats, uninitialized memory or races would show; with levels, a state and every reduction."""
    loop = Loop("c", 30)
    levels = list(zip(*(ghmc_case(n, 80, "int64", "anchor", torch.float32, draw, loop) for n in (13, 7))))
    for reduction in ("mean", "sum", "none"):
        results = []
        for _ in range(2):
            state = torch.zeros(31, device=device)
            inputs, targets, weights = ([t.detach().to(device) for t in tensors] for tensors in levels)
            inputs = [x.requires_grad_() for x in inputs]
            loss = ghmc_loss(
                inputs, targets, weights, momentum=0.9, running_counts=state, reduction=reduction, backend=backend
            )
            total = loss if isinstance(loss, torch.Tensor) else sum(part.sum() for part in loss)
            results.append([total.detach(), state, *torch.autograd.grad(total, inputs)])
        assert all(torch.equal(*pair) for pair in zip(*results))
    x = torch.randn(60, 4, generator=draw).to(device)
    first, second = (ghmr_loss(x, x * 0.99, reduction="none", backend=backend) for _ in range(2))
    assert torch.equal(first, second)


@pytest.mark.parametrize("kind", ["class indices", "dense targets", "deltas", "rows"])
def test_ignored_elements_change_no_bit(kind, device):
    """Of a tile with so many regions that their losses are added at once: another order would change the last bits."""
    for seed in range(6):
        draw = torch.Generator().manual_seed(seed)
        x = torch.randn(64, 4, generator=draw) * (0.05 if kind == "deltas" else 2.5)
        label = torch.randint(0, 4, (64,), generator=draw)
        counted = torch.rand(64, generator=draw) < 0.9
        function, *arguments = {
            "class indices": (ghmc_loss, label, counted),
            "dense targets": (ghmc_loss, torch.rand(64, 4, generator=draw), counted),
            "deltas": (ghmr_loss, torch.zeros(64, 4), counted),
            "rows": (ghm_cross_entropy, torch.where(counted, label, -100)),
        }[kind]
        arguments = [argument.to(device) for argument in arguments]
        losses = []
        for ignored in (torch.zeros(4), torch.tensor([torch.nan, torch.inf, -torch.inf, 0.0])):
            spoiled = torch.where(counted.unsqueeze(1), x, ignored).to(device)
            losses.append(function(spoiled, *arguments, reduction="sum", backend="triton"))
        assert losses[0] > 0 and torch.equal(*losses), seed


@pytest.mark.skipif(not torch.cuda.is_available(), reason="2^31 elements need a GPU")
def test_more_than_2_to_31_elements(draw):
    """Offsets past 2^31 in 32 bits are negative: the last anchors would be read and written elsewhere."""
    if torch.cuda.get_device_properties(0).total_memory < 20 * 2**30:
        pytest.skip("needs 20 GB of GPU memory")
    anchors = 2**31 // 64 + 1000
    x = torch.full((anchors, 64), -9.0, dtype=torch.float16, device="cuda")
    target = torch.full((anchors,), -1, device="cuda")
    x[-1, -1], target[-1] = 1.5, 63
    module = GHMCLoss(bins=10, momentum=0.5, reduction="sum", backend="triton").cuda()
    x.requires_grad_()
    module(x, target).backward()
    p = torch.tensor(-1.5).sigmoid().item()
    assert module.running_counts[int(p * 10)].item() == 0.5
    assert module.running_counts[0].item() == pytest.approx((x.numel() - 1) / 2, rel=1e-7)
    beta = x.numel() / 10
    assert x.grad[-1, -1].item() == pytest.approx(max(-p * beta, -65504 if p * beta < 65520 else -torch.inf), rel=1e-3)
    assert (x.grad[-1000:-1] - torch.tensor(-9.0).sigmoid().item() / 10).abs().max() < 1e-7
