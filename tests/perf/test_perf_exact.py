"""The exact gradient density by sorting, against the paper's equations as they are written, in O(N^2)."""

import pytest
import torch
import torch.nn.functional as F

import ghm_triton

pd = pytest.importorskip("pandas")

from perf.exact_density import ExactGHMCLoss, exact_ghmc_loss, exact_weights
from perf.sweep.cases import Case
from perf.sweep.data import make_data
from perf.sweep.density_error import density_error, main
from perf.sweep.gate import Gate
from perf.sweep.implementations import find_implementations
from perf.sweep.timed_calls import Outcome

CPU = torch.device("cpu")


def paper(norm: torch.Tensor, bins: int) -> torch.Tensor:
    """Equations 4 to 6, one pair of examples at a time."""
    norms, weights = norm.tolist(), []
    half = 1 / bins / 2
    for g in norms:
        inside = sum(1 for g_k in norms if g - half <= g_k < g + half)
        length = min(g + half, 1.0) - max(g - half, 0.0)
        weights.append(len(norms) / (inside / length))
    return torch.tensor(weights, dtype=torch.float64)


@pytest.mark.parametrize("bins", [1, 2, 7, 30])
def test_weights_are_those_of_the_paper(bins):
    """Also where norms are equal, at both ends of [0, 1], and exactly at the ends of other windows."""
    generator = torch.Generator().manual_seed(bins)
    grid = torch.arange(2 * bins + 1, dtype=torch.float64) / (2 * bins)
    norm = torch.cat([torch.rand(100, dtype=torch.float64, generator=generator) ** 3, grid, grid[::3]])
    # The same sums and comparisons in float64; the quotients may round differently, by 2^-53 each.
    torch.testing.assert_close(exact_weights(norm, bins=bins), paper(norm, bins), rtol=1e-15, atol=0)


def test_windows_are_half_open():
    """g_k = g - eps/2 counts and g_k = g + eps/2 does not: the windows of 0.25 and 0.75 meet in 0.5."""
    norm = torch.tensor([0.25, 0.5, 0.75])
    assert exact_weights(norm, bins=2).tolist() == [3 * 0.5 / 1, 3 * 0.5 / 2, 3 * 0.5 / 2]


def test_ignored_elements_count_nowhere():
    norm = torch.rand(4, 50, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    counted = torch.arange(50) % 3 > 0
    weights = exact_weights(norm, counted.expand(4, 50), bins=10)
    torch.testing.assert_close(weights[:, counted].flatten(), paper(norm[:, counted].flatten(), 10), rtol=1e-15, atol=0)
    assert (weights[:, ~counted] == 0).all()


def test_loss_and_gradient():
    """(1/N) sum beta CE, with beta a constant of the step; a NaN in an ignored element changes nothing."""
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(60, dtype=torch.float64, generator=generator, requires_grad=True)
    t = (torch.rand(60, generator=generator) < 0.3).double()
    beta = paper((x.detach().sigmoid() - t).abs(), 10)
    expected = (beta * F.binary_cross_entropy_with_logits(x, t, reduction="none")).sum() / 60
    (gradient,) = torch.autograd.grad(expected, x)
    loss = exact_ghmc_loss(x, t, bins=10)
    (found,) = torch.autograd.grad(loss, x)
    torch.testing.assert_close(loss, expected, rtol=1e-14, atol=0)
    torch.testing.assert_close(found, gradient, rtol=1e-14, atol=0)
    more = torch.cat([x.detach(), torch.full((1,), torch.nan, dtype=torch.float64)])
    counted = torch.arange(61) < 60
    with_ignored = exact_ghmc_loss(more, torch.cat([t, t[:1]]), counted, bins=10)
    torch.testing.assert_close(with_ignored, expected, rtol=1e-14, atol=0)
    assert exact_ghmc_loss(more, torch.cat([t, t[:1]]), torch.zeros(61, dtype=torch.bool)).item() == 0


def test_loss_of_a_head():
    """Labels of anchors are one-hot targets of their classes; -1 is background."""
    generator = torch.Generator().manual_seed(0)
    logits = torch.randn(2, 30, 4, generator=generator)
    labels = torch.randint(-1, 4, (2, 30), generator=generator)
    counted = torch.rand(2, 30, generator=generator) < 0.8
    target = F.one_hot(labels + 1, 5)[..., 1:].double()
    chosen = counted[..., None].expand(logits.shape)
    beta = paper((logits.double().sigmoid() - target).abs()[chosen], 10)
    losses = F.binary_cross_entropy_with_logits(logits.double(), target, reduction="none")[chosen]
    expected = (beta * losses).sum() / chosen.sum()
    # fp32 norms are off by 1e-7; with 192 elements that could move one across the end of a window, but none is here.
    torch.testing.assert_close(ExactGHMCLoss(10)(logits, labels, counted).double(), expected, rtol=1e-5, atol=0)


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("distribution", ["trained", "uniform"])
def test_sweep_accepts_the_exact_density_only(distribution, dtype):
    """The gate passes the sorted density and rejects unit regions, which approximate it."""
    case = Case("ghmc", 100, 80, bins=10, distribution=distribution, dtype=dtype)
    data = make_data(case, CPU)
    gate = Gate(case, data)
    ours = {one.name: one for one in find_implementations(CPU)}
    errors = {}
    for name in ("exact", "eager"):
        data.input.grad = None
        loss = ours[name].call(case, data)
        loss.backward()
        errors[name] = gate.errors(ours["exact"], Outcome(loss, data.input.grad))
    assert gate.accepts(errors["exact"])
    assert not gate.accepts(errors["eager"]) and errors["eager"]["gradient_error"] > 0.05


def test_unit_regions_are_an_approximation():
    """Where the density is constant inside of every window, both agree: the same norms in the middle of each region."""
    bins = 10
    norm = (torch.arange(bins, dtype=torch.float64) + 0.5) / bins
    logits = torch.logit(norm).repeat(7)
    beta = exact_weights(norm.repeat(7), bins=bins)
    regions = ghm_triton.ghmc_loss(logits, torch.zeros_like(logits), bins=bins, exponent=1.0, reduction="none")
    torch.testing.assert_close(beta * F.softplus(logits), regions, rtol=1e-12, atol=0)


def test_error_of_unit_regions(tmp_path, capsys):
    """The row of one case, against the paper's sums and counts of regions."""
    case = Case("ghmc", 5, 80, bins=10, distribution="uniform")
    data = make_data(case, CPU)
    logits, target = data.input.detach().double().flatten(), data.one_hot.double().flatten()
    norm = (logits.sigmoid() - target).abs()
    exact = paper(norm, 10)
    regions = 400 / 10 / torch.histc(norm, 10, 0, 1)[(norm * 10).long()]
    error = (regions / exact - 1).abs()
    losses = F.binary_cross_entropy_with_logits(logits, target, reduction="none")
    row = density_error(case)
    expected = {"mean_error": error.mean(), "hard_mean_error": error[norm >= 0.5].mean()}
    expected |= {"p95_error": error.sort().values[379]}  # 95% of 400 elements are at most this
    expected |= {"loss_ratio": (regions * losses).sum() / (exact * losses).sum()}
    assert {name: row[name] for name in expected} == pytest.approx({k: v.item() for k, v in expected.items()}, rel=1e-9)
    assert row["elements"] == 400 and row["hard_elements"] == (norm >= 0.5).sum()
    out = tmp_path / "error.csv"
    assert main(["--anchors", "5", "--bins", "10", "20", "--out", str(out)]) == 0
    rows = pd.read_csv(out)
    assert (
        list(rows["bins"]) == [10, 20] * 3 and f"| uniform | 10 | {row['mean_error']:.1%} |" in capsys.readouterr().out
    )
    assert rows.iloc[4]["mean_error"] == pytest.approx(row["mean_error"], rel=1e-5)
