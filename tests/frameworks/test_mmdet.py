"""GHMC and GHMR called as mmdetection's dense heads call them, against what its loop over regions gives."""

import copy

import pytest
import torch

from ghm_triton import GHMCLoss, GHMRLoss
from ghm_triton.mmdet import GHMC, GHMR
from loops import Loop, expand, off_edges
from tolerances import GRADIENT, LOSS, ROUNDING, SMALLEST, assert_close


@pytest.fixture
def draw():
    return torch.Generator().manual_seed(0)


@pytest.fixture(params=["eager", pytest.param("triton", marks=pytest.mark.slow)], autouse=True)
def by_environment(request, monkeypatch):
    """The classes have no argument for the backend."""
    if request.param == "triton":
        pytest.importorskip("triton")
    monkeypatch.setenv("GHM_TRITON_BACKEND", request.param)
    return request.param


def head_outputs(rows, draw, loop, dtype=torch.float32):
    """Scores, labels with background 80, and label weights of one level, as a RetinaNet head has them."""
    labels = torch.randint(0, 80, (rows,), generator=draw)
    labels = torch.where(torch.rand(rows, generator=draw) < 0.7, 80, labels)
    weights = (torch.rand(rows, generator=draw) > 0.2).float()
    scores = (torch.randn(rows, 80, generator=draw) * 2 - 4).to(dtype)
    return off_edges(scores, labels, loop), labels, weights


def compare(module, loop, x, target, weight, device, reduction="mean", **keywords):
    leaf, wide = x.to(device, copy=True).requires_grad_(), x.double().requires_grad_()
    value = module(leaf, target.to(device), weight.to(device), **keywords)
    expected = loop([wide], [target], [weight], reduction=reduction) * module.loss_weight
    assert value.dtype == torch.float32
    if reduction == "none":
        assert_close(value.flatten(), expected, GRADIENT, 1e-38)
    else:
        assert_close(value, expected, LOSS, 0.0)
    factor = 64.0  # as of a loss scaler: float16 gradients stay in range
    (value.sum() * factor).backward()
    (expected.sum() * factor).backward()
    assert leaf.grad.dtype == x.dtype
    assert_close(leaf.grad, wide.grad, GRADIENT + ROUNDING[x.dtype], SMALLEST[x.dtype])
    if module.momentum > 0:
        assert_close(module.acc_sum, torch.tensor(loop.average, dtype=torch.float64), 1e-6, 0.0)


@pytest.mark.parametrize("exponent", [1, 0.5])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16], ids=str)
def test_five_levels_a_step(dtype, exponent, device, draw):
    """The state passes from level to level, in train and in eval; `avg_factor` and others have no effect."""
    loop = Loop("c", 30, momentum=0.75, variant="mmdet", exponent=exponent)
    module = GHMC(bins=30, momentum=0.75, use_sigmoid=True, loss_weight=1.5, exponent=exponent).to(device)
    for step in range(2):
        for rows in (40, 20, 0, 6, 2):
            x, labels, weights = head_outputs(rows, draw, loop, dtype)
            keywords = dict(avg_factor=17) if step else dict(avg_factor=3, ignore_index=-100, label="x")
            compare(module, loop, x, labels, weights, device, **keywords)
        module.eval()


@pytest.mark.parametrize("exponent", [1, 0.5])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_boxes_of_five_levels_a_step(dtype, exponent, device, draw):
    """As above, where N is the sum of the weights; predictions may be 16-bit while targets are not."""
    loop = Loop("r", 10, momentum=0.7, variant="mmdet", exponent=exponent)
    module = GHMR(mu=0.02, bins=10, momentum=0.7, loss_weight=10.0, exponent=exponent).to(device)
    for _ in range(2):
        for rows in (60, 15, 0, 7, 1):
            target = torch.randn(rows, 4, generator=draw)
            x = target + torch.randn(rows, 4, generator=draw) * 10 ** (torch.rand(rows, 1, generator=draw) * 3 - 3)
            weight = torch.randint(0, 3, (rows, 1), generator=draw).expand(rows, 4) * 0.7
            compare(module, loop, off_edges(x.to(dtype), target, loop), target, weight, device, avg_factor=5)
        module.eval()


@pytest.mark.parametrize("kind", ["c", "r"])
@pytest.mark.parametrize("default", ["mean", "sum", "none"])
@pytest.mark.parametrize("override", [None, "mean", "sum", "none"])
def test_reductions(kind, default, override, device, draw):
    """ "sum" is not divided, "none" neither; the override wins over the constructor, positional and keyword."""
    loop = Loop(kind, 10, variant="mmdet")
    target = (torch.rand(30, 4, generator=draw) > 0.7).float() if kind == "c" else torch.randn(30, 4, generator=draw)
    x = off_edges(target + torch.randn(30, 4, generator=draw), target, loop)
    weight = torch.rand(30, 4, generator=draw) - 0.2
    module = (GHMC if kind == "c" else GHMR)(reduction=default)
    compare(module, loop, x, target, weight, device, override or default, reduction_override=override)
    leading = (override,) if kind == "c" else (None, override)  # GHMR has avg_factor before it
    arguments = [t.to(device) for t in (x, target, weight)]
    assert torch.equal(module(*arguments, *leading), module(*arguments, reduction_override=override))


def test_defaults_and_signatures():
    """Configurations that name nothing must train as they did: 10 bins, no momentum."""
    for module in (GHMC(), GHMR()):
        assert (module.bins, module.momentum, module.loss_weight, module.reduction) == (10, 0, 1.0, "mean")
        assert "acc_sum" not in module.state_dict() and module.exponent == 1
    assert GHMC().use_sigmoid is True and GHMR().mu == 0.02
    positional = GHMC(30, 0.75, True, 2.0, "sum")
    assert (positional.bins, positional.momentum, positional.loss_weight, positional.reduction) == (
        30,
        0.75,
        2.0,
        "sum",
    )
    boxes = GHMR(0.1, 12, 0.7, 10.0, "none")
    assert (boxes.mu, boxes.bins, boxes.momentum, boxes.loss_weight, boxes.reduction) == (0.1, 12, 0.7, 10.0, "none")


def test_calls_by_keyword(device, draw):
    """mmdetection's names: pred, target, label_weight. Unknown keywords are for GHMC to ignore, not for GHMR."""
    x, target, weight = (
        torch.randn(5, 4, device=device),
        torch.zeros(5, 4, device=device),
        torch.ones(5, 4, device=device),
    )
    for module in (GHMC(), GHMR()):
        by_name = module(pred=x, target=target, label_weight=weight, avg_factor=7.0)
        assert torch.equal(by_name, module(x, target, weight))
    GHMC()(x, target, weight, anything=1)
    with pytest.raises(TypeError, match="anything"):
        GHMR()(x, target, weight, anything=1)


@pytest.mark.parametrize("shape", [(6, 1), (1, 4), (1, 1)], ids=str)
@pytest.mark.parametrize("kind", ["c", "r"])
def test_weights_that_broadcast(kind, shape, device, draw):
    """mmdetection compares and multiplies by them: [N, 1] and [1, C] beside dense targets mean their expansion."""
    loop = Loop(kind, 10, variant="mmdet")
    target = (torch.rand(6, 4, generator=draw) > 0.5).float() if kind == "c" else torch.randn(6, 4, generator=draw)
    x = off_edges(target + torch.randn(6, 4, generator=draw) * 0.1, target, loop)
    weight = torch.arange(1, max(shape) + 1).view(shape).float() - 1.5
    weight = weight if max(shape) > 1 else weight.abs()
    module = GHMC() if kind == "c" else GHMR()
    leaf, wide = x.to(device, copy=True).requires_grad_(), x.double().requires_grad_()
    value, expected = module(leaf, target.to(device), weight.to(device)), loop([wide], [target], [weight.expand(6, 4)])
    assert_close(value, expected, LOSS)
    value.backward(), expected.backward()
    assert_close(leaf.grad, wide.grad, GRADIENT, 1e-38)


@pytest.mark.parametrize("module", [GHMC, GHMR])
def test_without_weights(module, device, draw):
    """A missing label_weight, and newer heads' weight=None, mean ones; `weight` is another name of it for GHMC."""
    target = torch.randint(0, 2, (6, 4), generator=draw).float().to(device)
    x = torch.randn(6, 4, generator=draw).to(device)
    ones, some = torch.ones(6, 4, device=device), (torch.arange(24, device=device) % 3 > 0).float().view(6, 4)
    expected = module()(x, target, ones)
    assert torch.equal(module()(x, target), expected) and torch.equal(module()(x, target, None), expected)
    if module is GHMC:
        assert torch.equal(module()(x, target, weight=None, avg_factor=3), expected)
        assert torch.equal(module()(x, target, weight=some), module()(x, target, some))
        labels = torch.arange(6, device=device) % 5
        assert torch.equal(module()(x, labels), module()(x, labels, ones[:, 0]))


@pytest.mark.parametrize("dtype", [torch.int64, torch.int32, torch.uint8], ids=str)
def test_integer_box_targets(dtype, device, draw):
    x, target = torch.randn(6, 4, generator=draw), torch.randint(0, 3, (6, 4), generator=draw).to(dtype)
    x, target, weight = x.to(device), target.to(device), torch.ones(6, 4, device=device)
    assert torch.equal(GHMR()(x, target, weight), GHMR()(x, target.float(), weight))
    assert torch.equal(GHMR()(x.double(), target, weight), GHMR()(x.double(), target.double(), weight))


def test_class_indices_and_their_expansion_agree(device, draw):
    """Heads pass labels and one weight per anchor, or both expanded. The calls differ in shape, not in meaning."""
    x, labels, weights = head_outputs(30, draw, Loop("c", 10))
    module = GHMC()
    dense, full = expand(labels, 80), weights.unsqueeze(1).expand(30, 80)
    value = module(x.to(device), labels.to(device), weights.to(device))
    assert_close(value, module(x.to(device), dense.to(device), full.to(device)).cpu(), LOSS, 0.0)


@pytest.mark.parametrize("bins", [10, 11, 12, 19, 20, 25, 50, 100])
def test_regions_by_comparison_with_the_edges(bins, device, by_environment):
    """Counts by mmdetection's comparisons for logits beside every edge, and g = 1 in the last region.

    Exact for the eager path; another sigmoid may move some of the five elements at each edge, and no more.
    """
    edges = torch.arange(bins + 1).float() / bins
    at = torch.logit(edges[1:-1].double()).float()
    beside = [torch.nextafter(at, torch.tensor(side)) for side in (-torch.inf, torch.inf)]
    x = torch.cat([at, *beside, *(torch.nextafter(b, b * 2) for b in beside), torch.tensor([40.0, 0.0, 17.0])])
    g = x.sigmoid()
    expected = torch.stack([((g >= low) & (g < high)).sum() for low, high in zip(edges[:-1], [*edges[1:-1], 2.0])])
    module = GHMC(bins=bins, momentum=0.5).to(device)
    module(x.to(device), torch.zeros_like(x).to(device), torch.ones_like(x).to(device))
    counts = module.acc_sum.cpu() * 2
    assert counts.sum() == len(x)
    moved = (counts.cumsum(0) - expected.cumsum(0)).abs().max()
    assert moved <= (0 if (by_environment, device) == ("eager", "cpu") else 5)
    assert counts[-1] >= 2


def test_weights_beyond_float16(device):
    """More than 65,504 elements in one region, one in another: its weight N / 1 does not fit the predictions' dtype."""
    x = torch.full((70_000, 1), -9.0, dtype=torch.float16)
    x[123] = 1.0
    leaf = x.to(device).requires_grad_()
    value = GHMC(bins=10)(leaf, torch.full((70_000,), 1, device=device), torch.ones(70_000, device=device))
    value.backward()
    expected = (
        torch.nn.functional.softplus(torch.tensor([-9.0, 1.0]).double()) * torch.tensor([69_999 / 69_999, 1.0])
    ).sum() / 2
    assert value.item() == pytest.approx(expected.item(), rel=LOSS)
    assert leaf.grad[123].item() == pytest.approx(torch.tensor(1.0).sigmoid().item() / 2, rel=2**-11)


@pytest.mark.parametrize("convert", ["half", "bfloat16", "double", "float"])
def test_a_cast_module_keeps_its_numbers(convert, device, draw):
    """16-bit edges lose g = 1 and 16-bit counts stop at 65,504: buffers stay float32 whatever the model becomes."""
    x, labels, weights = (t.to(device) for t in head_outputs(8, draw, Loop("c", 30)))
    x[0, 0] = 40.0
    plain, cast = GHMC(30, 0.75).to(device), torch.nn.Sequential(GHMC(30, 0.75)).to(device)
    getattr(cast, convert)()
    cast = cast[0]
    assert cast.edges.dtype == cast.acc_sum.dtype == torch.float32 and torch.equal(cast.edges, plain.edges)
    for _ in range(2):
        assert torch.equal(cast(x, labels, weights), plain(x, labels, weights))
    assert torch.equal(cast.acc_sum, plain.acc_sum)


def test_an_ignored_nan_anchor(device, draw):
    """0 * NaN is NaN: a weight of 0 must select, not multiply."""
    x, labels, weights = head_outputs(20, draw, Loop("c", 10))
    weights[3] = 0
    results = []
    for junk in (0.0, torch.nan, torch.inf):
        x[3] = junk
        leaf = x.to(device, copy=True).requires_grad_()
        value = GHMC()(leaf, labels.to(device), weights.to(device))
        value.backward()
        results.append((value.detach(), leaf.grad))
    assert results[0][0] > 0 and all(torch.equal(a, b) for r in results for a, b in zip(r, results[0]))


@pytest.mark.parametrize("module", [GHMC(30, 0.75), GHMR(0.02, 10, 0.7)], ids=["GHMC", "GHMR"])
def test_checkpoints_of_mmdetection(module, device):
    """Its keys, shapes and last edges, both ways and strictly; a resumed run continues with the same numbers."""
    module = copy.deepcopy(module)
    bins, last = module.bins, 1 + 1e-6 if isinstance(module, GHMC) else 1e3
    edges = torch.arange(bins + 1).float() / bins
    edges[-1] = last
    assert list(module.state_dict()) == ["edges", "acc_sum"]
    assert torch.equal(module.edges, edges)
    checkpoint = {"edges": edges, "acc_sum": torch.arange(bins).float() + 0.5}
    module.load_state_dict(checkpoint, strict=True)
    assert torch.equal(module.acc_sum, checkpoint["acc_sum"])
    x, ones = torch.full((4, 1), 0.0), torch.ones(4, 1)
    module(x, torch.zeros(4, 1), ones)
    region = bins // 2 if isinstance(module, GHMC) else 0
    expected = checkpoint["acc_sum"].clone()
    expected[region] = module.momentum * expected[region] + (1 - module.momentum) * 4
    assert_close(module.acc_sum, expected, 1e-6, 0.0)
    with pytest.raises(RuntimeError, match="acc_sum"):
        module.load_state_dict({"edges": edges}, strict=True)


def test_modules_made_under_another_default_dtype():
    """Models built in bfloat16 set PyTorch's default; counts must not become bfloat16 by that."""
    before = torch.get_default_dtype()
    try:
        torch.set_default_dtype(torch.bfloat16)
        module = GHMC(30, 0.75)
    finally:
        torch.set_default_dtype(before)
    assert module.acc_sum.dtype == module.edges.dtype == torch.float32


def test_epsilon_of_the_mean(device):
    """'mean' divides by tot + the float32 epsilon: visible in float64, and where tot is 1."""
    x, zero, one = (
        torch.tensor([[1.0]], device=device).double(),
        torch.zeros(1, 1, device=device),
        torch.ones(1, 1, device=device),
    )
    ratio = GHMC()(x, zero, one) / torch.nn.functional.softplus(x).item()
    assert ratio.item() == pytest.approx(1 / (1 + torch.finfo(torch.float32).eps), rel=1e-12)
    assert GHMC(reduction="sum")(x, zero, one).item() == pytest.approx(
        torch.nn.functional.softplus(x).item(), rel=1e-12
    )


@pytest.mark.parametrize("reduction", ["mean", "sum", "none"])
def test_the_sum_of_the_weights_is_at_least_one(reduction, device, draw):
    """Weights of 0.01 on two boxes: N is 1 and not 0.08, while their number decides the density."""
    loop = Loop("r", 10, variant="mmdet")
    target = torch.randn(6, 4, generator=draw)
    x = off_edges(target + torch.randn(6, 4, generator=draw) * 0.02, target, loop)
    weight = torch.zeros(6, 4)
    weight[1:3] = 0.01
    compare(GHMR(reduction=reduction), loop, x, target, weight, device, reduction)


def test_modules_of_the_variant_update_in_eval_too(device):
    """mmdetection's classes know no eval mode; the modules, which do, leave their state there."""
    x, target = torch.zeros(5, 1, device=device), torch.zeros(5, 1, device=device)
    for module in (GHMC(momentum=0.75), GHMR(momentum=0.75), GHMCLoss(), GHMRLoss()):
        module.to(device).eval()(x, target)
        state = module.acc_sum if isinstance(module, GHMC | GHMR) else module.running_counts
        assert state.sum() == (5 * 0.25 if isinstance(module, GHMC | GHMR) else 0)


def test_repr_shows_the_settings():
    """As `print(model)` shows them: what differs from the defaults must be visible, internal settings must not."""
    assert repr(GHMC(bins=30, momentum=0.75)) == (
        "GHMC(bins=30, momentum=0.75, loss_weight=1.0, reduction='mean', exponent=1.0)"
    )
    assert repr(GHMR(mu=0.1, reduction="sum")) == (
        "GHMR(mu=0.1, bins=10, momentum=0.0, loss_weight=1.0, reduction='sum', exponent=1.0)"
    )
