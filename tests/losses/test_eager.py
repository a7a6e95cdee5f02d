"""The shortcuts of the eager path: chunks, blocks of easy elements, losses from the gradient norm."""

import pytest
import torch
import torch.nn.functional as F
from torch.utils._python_dispatch import TorchDispatchMode

from calls import ghm_cross_entropy, ghmc_loss, ghmr_loss
from ghm_triton.eager import levels
from loops import Loop, assert_agrees, expand, off_edges
from tolerances import GRADIENT, LOSS, assert_close

VARIANTS = ["paper", "mmdet"]
BINS = [1, 2, 10, 11, 12, 19, 20, 25, 30, 50, 100]


@pytest.fixture
def draw():
    return torch.Generator().manual_seed(0)


@pytest.fixture(params=["whole", "blocks"])
def small(request, monkeypatch):
    """Whether small levels are looked at as a whole, as they are, or by blocks like large ones."""
    if request.param == "blocks":
        monkeypatch.setattr(levels.ElementLevel, "small", 0)


def labels_of(anchors, columns, draw, variant="paper"):
    """Half background, as -1 or C, in mmdetection as anything that is no class; half classes."""
    label = torch.randint(0, columns, anchors, generator=draw)
    nothing = torch.tensor([-1, columns] if variant == "paper" else [-1, columns, columns + 3, -(2**40)])
    nothing = nothing[torch.randint(0, len(nothing), anchors, generator=draw)]
    return torch.where(torch.rand(anchors, generator=draw) < 0.5, nothing, label)


@pytest.mark.parametrize("bins", BINS)
@pytest.mark.parametrize("variant", VARIANTS)
def test_ghmc_is_the_loop_over_regions(bins, variant, draw, small):
    """The value and the gradient of what users have today; every region in use, state over three steps."""
    loop = Loop("c", bins, momentum=0.75, variant=variant)
    state = torch.zeros(bins + (variant == "paper"))
    for _ in range(3):
        target = labels_of((70,), 9, draw, variant)
        x = off_edges(torch.randn(70, 9, generator=draw) * 3, target, loop)
        weight = torch.rand(70, generator=draw) - 0.3
        assert_agrees(loop, x, target, weight, backend="eager", state=state)


@pytest.mark.parametrize("bins", BINS)
@pytest.mark.parametrize("variant", VARIANTS)
def test_ghmr_is_the_loop_over_regions(bins, variant, draw):
    """As above, with |d| from far below to far above mu, and weights that are no counts."""
    loop = Loop("r", bins, momentum=0.7, variant=variant)
    state = torch.zeros(bins + (variant == "paper"))
    for _ in range(3):
        target = torch.randn(90, 4, generator=draw)
        d = torch.randn(90, 4, generator=draw) * 10 ** (torch.rand(90, 4, generator=draw) * 4 - 4)
        weight = torch.rand(90, 4, generator=draw) * 3 - 0.5
        assert_agrees(loop, off_edges(target + d, target, loop), target, weight, backend="eager", state=state)


@pytest.mark.parametrize("columns", [1, 3, 31, 32, 33, 64, 80, 300])
@pytest.mark.parametrize("weight_kind", [None, "anchor", "element"])
@pytest.mark.parametrize("dense", [False, True], ids=["index", "dense"])
def test_chunks_and_blocks(columns, weight_kind, dense, draw, small, monkeypatch):
    """Chunks of a few rows: labels, ignored anchors, padding and hard blocks lie at every seam.

    Trained logits, so that nearly all blocks of 32 are easy and the gathered ones are few.
    """
    monkeypatch.setattr(levels.ElementLevel, "chunk", 128)
    for reduction in ("mean", "none"):
        loop = Loop("c", 30, variant="mmdet")
        rows = [700 // columns + 3, 0, 1]
        target = [
            labels_of((n,), columns, draw, loop.variant).where(torch.rand(n, generator=draw) < 0.2, -1) for n in rows
        ]
        x = [torch.randn(n, columns, generator=draw) * 1.5 - 6 for n in rows]
        if dense:
            target = [expand(t, columns) for t in target]
        x = [off_edges(a, t, loop) for a, t in zip(x, target)]
        weight = {
            None: None,
            "anchor": [torch.randint(0, 3, (n,), generator=draw) for n in rows],
            "element": [torch.rand(n, columns, generator=draw) > 0.1 for n in rows],
        }[weight_kind]
        assert_agrees(loop, x, target, weight, backend="eager", reduction=reduction)


def test_class_indices_give_what_their_one_hot_gives(draw, small):
    """The two implementations give the same numbers for the same logits, also for NaN, inf and edges."""
    target = labels_of((200,), 20, draw)
    x = torch.randn(200, 20, generator=draw) * 3
    x[::7] = 0.0  # g = 1/2, an edge of 30 bins
    x[3, 5], x[50, 1], x[60, 2] = torch.inf, -torch.inf, 95.0
    weight = torch.rand(200, 20, generator=draw) - 0.1
    dense = torch.stack([torch.arange(20) == label for label in target]).float()
    results = []
    for given in (target, dense):
        state, leaf = torch.zeros(31), x.clone().requires_grad_()
        loss = ghmc_loss(leaf, given, weight, reduction="none", running_counts=state, backend="eager")
        loss.nan_to_num(posinf=7.0).sum().backward()
        results.append((loss.detach(), leaf.grad, state))
    assert torch.equal(results[0][2], results[1][2])
    finite = results[1][0].isfinite()
    assert torch.equal(results[0][0].isfinite(), finite) and (~finite).sum() <= 2
    assert_close(results[0][0][finite], results[1][0][finite], GRADIENT, 1e-38)
    assert_close(results[0][1], results[1][1], GRADIENT, 1e-38)


@pytest.mark.parametrize(
    "x", [3.8501, 3.8478, 3.7745, 3.519, 3.891, 3.892, 2.5, 4.2, 9.0, 16.0, 16.7, 17.5, 30.0, -3.3, -3.37, -3.5, -87.0]
)
def test_losses_from_the_norm_are_accurate(x, draw, small):
    """-log(1 - g) of a rounded g loses digits as g nears 1: a constant input turns that into an error of the sum.

    The values lie where g is 1 - 2^-24 and 1, and on both sides of g = 1 / 30, up to which blocks are easy.
    """
    logits = torch.full((40, 25), x)
    for target in (torch.full((40,), -1), torch.arange(40) % 25):
        for bins in (1, 30):
            assert_agrees(Loop("c", bins), logits, target, backend="eager")


def test_one_bin_is_binary_cross_entropy(draw, small):
    """bins=1, momentum=0 weights each element by 1: a constant factor in beta would show against PyTorch's own loss."""
    x = torch.randn(300, 11, generator=draw) * 6
    for target in (torch.randint(0, 2, x.shape, generator=draw).float(), torch.rand(x.shape, generator=draw)):
        leaf, wide = x.clone().requires_grad_(), x.double().requires_grad_()
        loss = ghmc_loss(leaf, target, bins=1, backend="eager")
        expected = F.binary_cross_entropy_with_logits(wide, target.double())
        loss.backward()
        expected.backward()
        assert_close(loss, expected, LOSS, 0.0)
        assert_close(leaf.grad, wide.grad, GRADIENT, 4 * 2**-24 / x.numel())  # where p - t cancels


@pytest.mark.parametrize(
    "dtype, columns",
    [(torch.int8, 127), (torch.int8, 128), (torch.int8, 300), (torch.uint8, 255), (torch.uint8, 256)]
    + [(torch.uint8, 300), (torch.int32, 300)],
    ids=str,
)
def test_labels_of_narrow_types(dtype, columns, backend, device, draw):
    """The number of classes need not fit the type of the labels: compared in it, 300 is 44."""
    highest = min(torch.iinfo(dtype).max, columns - 1)
    label = torch.randint(0, highest + 1, (6,), generator=draw)
    label[-1] = highest
    label[0] = min(torch.iinfo(dtype).max, columns)  # background if the type can say so
    x = torch.randn(6, columns, generator=draw).to(device)
    narrow = ghmc_loss(x, label.to(device, dtype), backend=backend)
    assert torch.equal(narrow, ghmc_loss(x, label.to(device), backend=backend))


@pytest.fixture
def threads():
    """Set the number of threads of PyTorch."""
    before = torch.get_num_threads()
    yield torch.set_num_threads
    torch.set_num_threads(before)


@pytest.mark.parametrize("function", [ghmc_loss, ghmr_loss, ghm_cross_entropy])
@pytest.mark.parametrize("offset", [0, 6], ids=["hard", "easy"])
def test_the_bits_do_not_depend_on_the_number_of_threads(function, offset, draw, threads):
    """PyTorch splits the sum of a long tensor between threads: another order, other last bits.

    The sizes and numbers of threads are powers of two, because PyTorch's elementwise functions may differ in the last
    bit where a thread ends within a vector.
    """
    columns = 1 if function is ghm_cross_entropy else 64
    x = torch.randn(2**17 // columns, max(2, columns), generator=draw) - offset
    target = {ghmc_loss: torch.full((len(x),), -1), ghmr_loss: torch.zeros_like(x)}.get(function)
    target = torch.zeros(len(x), dtype=torch.int64) if target is None else target
    results = []
    for number in (1, 2, 4):
        threads(number)
        leaf = x.clone().requires_grad_()
        loss = function(leaf, target, bins=10, exponent=0.5, backend="eager")
        loss.backward()
        results.append((loss.detach(), leaf.grad))
    for loss, grad in results[1:]:
        assert torch.equal(loss, results[0][0]) and torch.equal(grad, results[0][1])


class _Shapes(TorchDispatchMode):
    """Records the number of elements of each int64 or float result of an operator, by the name of the operator."""

    def __init__(self):
        super().__init__()
        self.found = []

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        result = func(*args, **(kwargs or {}))
        for value in result if isinstance(result, (tuple, list)) else [result]:
            if isinstance(value, torch.Tensor):
                self.found.append((str(func), value.untyped_storage().nbytes()))
        return result


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_class_indices_are_not_expanded(dtype, draw):
    """No operator on trained logits makes a tensor larger than the logits in float32: no one-hot, no int64 region."""
    x = (torch.randn(4000, 64, generator=draw) - 6).to(dtype).requires_grad_()
    target = torch.full((4000,), -1)
    target[::100] = 5
    with _Shapes() as shapes:
        ghmc_loss(x, target, torch.ones(4000), backend="eager").backward()
    large = [name for name, size in shapes.found if size > x.numel() * 4 + 4096]
    assert not large
    whole = [name for name, size in shapes.found if size >= x.numel() * dtype.itemsize and "empty" in name]
    assert len(whole) <= 2  # the gradient (first the norm), and the losses before they are summed


def test_ignored_elements_may_hold_anything(backend, device, draw):
    """Heads mark ignored elements with targets of -1 or 255, and their logits can be NaN. None of it may count."""
    weight = (torch.rand(50, 6, generator=draw) > 0.4).float().to(device)
    for function in (ghmc_loss, ghmr_loss):
        x, target = torch.randn(50, 6, generator=draw).to(device), torch.rand(50, 6, generator=draw).to(device)
        results = []
        for junk_x, junk_t in ((0.0, 0.0), (torch.nan, -1.0), (torch.inf, 255.0), (-1e30, torch.nan), (1.0, 1e38)):
            leaf = torch.where(weight > 0, x, junk_x).requires_grad_()
            loss = function(leaf, torch.where(weight > 0, target, junk_t), weight, backend=backend)
            loss.backward()
            assert (leaf.grad[weight == 0] == 0).all()
            results.append((loss.detach(), leaf.grad))
        assert results[0][0] > 0
        for loss, grad in results[1:]:
            assert torch.equal(loss, results[0][0]) and torch.equal(grad, results[0][1])


@pytest.mark.slow
@pytest.mark.parametrize("kind, rows", [("class index", 200_000), ("dense", 50_000)])
def test_sixteen_million_logits(kind, rows, draw):
    """A sum of 16 million float32 numbers, 99.9% of them near 1e-5: plain summation would lose 3 digits."""
    columns, positives = 80, rows // 1000
    x = torch.empty(rows, columns).normal_(-11.5, 0.2, generator=draw)
    x[::1000, 3] = torch.linspace(-4, 4, positives) + 0.0123
    target = torch.full((rows,), 80)
    target[::1000] = 3
    if kind == "dense":
        target = torch.zeros(rows, columns)
        target[::1000, 3] = 1.0
    hard = x[::1000, 3].double()
    norm = torch.sigmoid(-hard)
    region = (norm * 30).long()
    assert ((norm * 30) - (norm * 30).round()).abs().min() > 1e-4  # no element beside an edge
    counts = torch.bincount(region, minlength=30).double()
    counts[0] += rows * columns - positives
    beta = torch.where(counts > 0, 1 / (counts * 30), 0.0)
    easy = sum(F.softplus(part.double()).sum() for part in x.split(20_000)) - F.softplus(hard).sum()
    expected = beta[0] * easy + (beta[region] * F.softplus(-hard)).sum()
    x.requires_grad_()
    loss = ghmc_loss(x, target, backend="eager")
    loss.backward()
    assert_close(loss, expected, LOSS, 0.0)
    assert_close(x.grad[::1000, 3], -beta[region] * norm, GRADIENT, 0.0)
    assert_close(x.grad[1::1000], beta[0] * torch.sigmoid(x.detach()[1::1000].double()), GRADIENT, 0.0)
