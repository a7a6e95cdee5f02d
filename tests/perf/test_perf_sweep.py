"""The sweep's own tests: a timing report is worth what its checks are."""

import math
import os
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import pytest
import torch

pytest.importorskip("pandas")
pytest.importorskip("tqdm")
ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT))  # perf is no part of the installed package

import pandas as pd

from ghm_triton.check.columns import COLUMNS, KEY
from perf.resumable_csv import ResumableCsv
from perf.sweep import cases, gate, meters, timed_calls
from perf.sweep.cases import RETINANET_NAME, Case, plan_cases, softmax_case
from perf.sweep.data import make_data
from perf.sweep.gate import Gate
from perf.sweep.implementations import ALL, Implementation, find_implementations
from perf.sweep.meters import COPY_BYTES, CpuMeter
from perf.sweep.runner import Effort, plan_groups, sweep
from perf.sweep.timed_calls import MODES, LossCall, Outcome

CPU = torch.device("cpu")
EFFORT = Effort("quick", 0.01, (3, 10))
CASES = [
    Case("ghmc", 40, 80),
    Case("ghmr", 50, 4, bins=10, target="dense"),
    Case("cross_entropy", 60, 10),
]
OURS = {one.name: one for one in find_implementations(CPU)}


@pytest.fixture(scope="module")
def meter():
    """With one thread, as several would wait for each other where the machine is busy, and with a small copy."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(COPY_BYTES, "cpu", 1 << 20)
        yield CpuMeter()
    torch.set_num_threads(threads)


@pytest.fixture
def path(tmp_path):
    return tmp_path / "sweep.csv"


def run(path, meter, cases=CASES, implementations=None) -> pd.DataFrame:
    sweep(cases, implementations or list(OURS.values()), ResumableCsv(path, COLUMNS, KEY), meter, EFFORT)
    return pd.read_csv(path)


def planted(name: str, call, reference: str = "bce", **fields) -> Implementation:
    """An implementation that must compute what that of the name `reference` computes in float64."""
    return Implementation(name, ALL, call, OURS[reference].reference, takes_one_hot=True, **fields)


def bce(case, data):
    return OURS["bce"].call(case, data)


@pytest.mark.slow
def test_schema(path, meter):
    """Every row has its columns, and every right implementation its time, in every mode."""
    rows = run(path, meter)
    assert list(rows.columns) == COLUMNS
    assert not rows.duplicated(KEY).any()
    assert (rows["status"] == "ok").all(), rows[["implementation", "mode", "detail"]]
    assert set(rows["mode"]) == set(MODES) and (rows["timer"] == "wall").all()
    assert "triton" not in set(rows["implementation"])  # on the CPU its kernels do not run
    assert {"eager", "region_loop", "bce", "smooth_l1", "softmax_region_loop"} <= set(rows["implementation"])
    assert (rows["p20_ms"] > 0).all() and (rows["p20_ms"] <= rows["p50_ms"]).all()
    assert (rows["p50_ms"] <= rows["p80_ms"]).all() and (rows["repetitions"] >= 3).all()
    assert rows["ratio"].notna().all()
    for loss, baseline in {"ghmc": "bce", "ghmr": "smooth_l1", "cross_entropy": "cross_entropy"}.items():
        assert (rows.loc[(rows["loss"] == loss) & (rows["implementation"] == baseline), "ratio"] == 1).all()
    assert rows["gb_per_s"].to_numpy() == pytest.approx((rows["min_bytes"] / rows["p50_ms"] / 1e6).to_numpy(), rel=1e-4)
    assert rows["copy_percent"].to_numpy() == pytest.approx(
        (100 * rows["gb_per_s"] / rows["copy_gb_per_s"]).to_numpy(), rel=1e-4
    )
    gradients = rows["mode"].isin(["backward", "forward_backward"])
    assert (rows["gradient_error"].notna() == gradients).all()
    assert (rows["loss_error"].notna() == (rows["mode"] != "backward")).all()
    assert rows[["device", "torch", "ghm_triton", "measured_at"]].notna().all().all()


def test_least_bytes():
    """3,200 fp32 logits and 40 int64 labels in, 3,200 fp32 gradients out; the one-hot has 3,200 more numbers."""
    case = CASES[0]
    assert OURS["eager"].least_bytes(case, "forward") == 12800 + 320
    assert OURS["eager"].least_bytes(case, "forward_backward") == 2 * (12800 + 320) + 12800
    assert OURS["bce"].least_bytes(case, "backward") == 3 * 12800


@pytest.mark.slow
def test_interrupted_sweep_goes_on(path, meter):
    """Ctrl-C keeps what is there, a torn row is made again, and nothing is measured or written twice."""
    calls = []

    def count(case, data, stop=None):
        calls.append(stop)
        if len(calls) == stop:
            raise KeyboardInterrupt
        return bce(case, data)

    def interrupted(case, data):
        return count(case, data, stop=20)

    cases = [Case("ghmc", 10, 80), Case("ghmc", 20, 80)]
    with pytest.raises(KeyboardInterrupt):
        run(path, meter, cases, [OURS["bce"], planted("planted", interrupted)])
    first = path.read_bytes()
    kept = first.count(b"\n") - 1
    assert 0 < kept < 16
    path.write_bytes(first + b"ghmc,planted,forw")
    resumed = [OURS["bce"], planted("planted", count)]
    rows = run(path, meter, cases, resumed)
    assert path.read_bytes().startswith(first)
    assert len(rows) == 2 * len(MODES) * 2 and not rows.duplicated(KEY).any()
    calls.clear()
    assert len(run(path, meter, cases, resumed)) == len(rows) and not calls


KILLED = """
import os, signal, sys, pandas, torch
from perf.resumable_csv import ResumableCsv
from perf.sweep import meters
sys.path.append("tests/perf")
import test_perf_sweep as tests

torch.set_num_threads(1)
meters.COPY_BYTES["cpu"] = 1 << 20
whole = pandas.DataFrame.to_csv

def torn(frame, *args, **options):
    text = whole(frame, *args, **options)
    if sweep.done and len(sweep.done) == 5:
        with sweep.path.open("a") as file:
            file.write(text[: len(text) // 2])
        os.kill(os.getpid(), signal.SIGKILL)
    return text

pandas.DataFrame.to_csv = torn
sweep = ResumableCsv(sys.argv[1], tests.COLUMNS, tests.KEY)
tests.sweep(tests.CASES[:1], [tests.OURS["bce"], tests.OURS["eager"]], sweep, meters.CpuMeter(), tests.EFFORT)
"""


@pytest.mark.slow
def test_killed_sweep_goes_on(path, meter):
    """A process killed in the middle of its sixth row leaves five, and a torn one that is made again."""
    killed = subprocess.run([sys.executable, "-c", KILLED, path], cwd=ROOT, capture_output=True, text=True)
    assert killed.returncode == -signal.SIGKILL, killed.stderr
    left = path.read_bytes()
    assert left.count(b"\n") == 1 + 5 and not left.endswith(b"\n")
    rows = run(path, meter, CASES[:1], [OURS["bce"], OURS["eager"]])
    assert path.read_bytes().startswith(left[: left.rfind(b"\n") + 1])
    assert len(rows) == 2 * len(MODES) and not rows.duplicated(KEY).any() and (rows["status"] == "ok").all()


def test_foreign_file_is_left_alone(path):
    path.write_text("a,b\n1,2\n")
    with pytest.raises(ValueError, match="columns"):
        ResumableCsv(path, COLUMNS, KEY)
    assert path.read_text() == "a,b\n1,2\n"


class _WrongGradient(torch.autograd.Function):
    @staticmethod
    def forward(ctx, loss):
        return loss.clone()

    @staticmethod
    def backward(ctx, gradient):
        return gradient * 1.01


@pytest.mark.slow
def test_wrong_implementation_gets_no_time(path, meter):
    """Each planted mistake is reported in the modes that it shows in, and only there."""
    mistakes = {
        "loss": (lambda case, data: bce(case, data) * 1.01, "bce", set(MODES)),
        "nan_loss": (lambda case, data: bce(case, data) + torch.nan, "bce", set(MODES) - {"backward"}),
        "gradient": (lambda case, data: _WrongGradient.apply(bce(case, data)), "bce", {"backward", "forward_backward"}),
        "no_grad": (lambda case, data: bce(case, data) * torch.is_grad_enabled(), "bce", {"forward_no_grad"}),
        "no_weights": (bce, "eager", set(MODES)),
        "other_bins": (lambda case, data: OURS["eager"].call(replace(case, bins=29), data), "eager", set(MODES)),
    }
    rows = run(path, meter, CASES[:1], [OURS["bce"]] + [planted(name, *of[:2]) for name, of in mistakes.items()])
    for row in rows.itertuples():
        wrong = row.implementation in mistakes and row.mode in mistakes[row.implementation][2]
        assert row.status == ("wrong" if wrong else "ok"), (row.implementation, row.mode)
        assert pd.isna(row.p50_ms) == pd.isna(row.ratio) == pd.isna(row.gb_per_s) == wrong


def check(gate: Gate, name: str, gradient=None, loss=None) -> bool:
    """Whether the gate takes the gradient or the loss for that of the implementation `name`."""
    return gate.accepts(gate.errors(OURS[name], Outcome(loss, gradient)))


def test_wrong_easy_gradients_are_seen():
    """Easy elements' gradients are tiny beside those of the few hard ones; an error in them alone must count."""
    case = Case("ghmc", 400, 80)
    data = make_data(case, CPU)
    gate = Gate(case, data)
    assert gate.counts[0] > 0.9 * case.elements
    OURS["eager"].call(case, data).backward()
    gradient = data.input.grad
    assert gate.errors(OURS["eager"], Outcome(None, gradient))["gradient_error"] < 1e-6
    easy = (data.input.detach() < -4) & (data.one_hot == 0)
    wrong = torch.where(easy, gradient * 1.01, gradient)
    error = gate.errors(OURS["eager"], Outcome(None, wrong))["gradient_error"]
    assert 0.001 < error < 0.01 and not check(gate, "eager", wrong)


@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
def test_half_gradients_are_checked(dtype):
    """fp16 gradients of a mean come out as 0 unless scaled, and 0 is close to anything."""
    case = Case("ghmc", 400, 80, dtype=dtype, distribution="uniform")
    data = make_data(case, CPU)
    gate = Gate(case, data)
    gradient = LossCall(OURS["eager"], case, data, "backward").check().gradient
    assert check(gate, "eager", gradient) and not check(gate, "eager", gradient * 1.05)


@pytest.mark.parametrize("loss", ["ghmc", "ghmr", "cross_entropy"])
def test_norms_of_the_gate(loss):
    """|p - t|, |d| / sqrt(d^2 + mu^2) and 1 - p_y, in regions of the width 1 / bins."""
    case = next(case for case in CASES if case.loss == loss)
    data = make_data(case, CPU)
    x, t = data.input.detach().double(), data.target
    if loss == "ghmc":
        expected = (x.sigmoid() - data.one_hot).abs().flatten()
    elif loss == "ghmr":
        expected = ((x - t).abs() / ((x - t) ** 2 + 0.02**2).sqrt()).flatten()
    else:
        expected = 1 - x.softmax(1).gather(1, t.unsqueeze(1)).squeeze(1)
    gate = Gate(case, data)
    torch.testing.assert_close(gate.norm, expected, rtol=0, atol=1e-12)  # float64 in both
    assert gate.counts.tolist() == torch.histc(expected, case.bins, 0, 1).tolist()


@pytest.mark.parametrize("distribution", ["trained", "start", "uniform"])
@pytest.mark.parametrize("shape", [(500, 10), (2, 7, 15, 20)], ids=str)
def test_gate_of_a_softmax(shape, distribution, monkeypatch):
    """Both layouts in several chunks: what is right passes, and no other formula, factor or dropped row does."""
    monkeypatch.setitem(cases.SOFTMAX, "here", shape)
    monkeypatch.setattr(gate, "CHUNK", 1000)
    case = softmax_case("here", distribution=distribution)
    assert case.elements == math.prod(shape)
    data = make_data(case, CPU)
    of_case = Gate(case, data)
    assert of_case.counts.sum() == case.rows and data.input.shape == shape
    for name in ("eager", "softmax_region_loop", "cross_entropy"):
        loss, gradient = LossCall(OURS[name], case, data, "forward_backward").check()
        loss = loss.detach()
        assert check(of_case, name, gradient, loss)
        assert not check(of_case, name, loss=loss * 1.01) and not check(of_case, name, gradient * 1.01)
        missing = gradient.clone()
        missing[-1] = 0
        assert not check(of_case, name, missing)
    weighted = OURS["softmax_region_loop"].call(case, data)
    assert weighted > 0 and not check(of_case, "cross_entropy", loss=weighted)


def test_softmax_data():
    """Most examples of a trained classifier are easy; with a uniform norm all regions are alike."""
    for distribution, easy in (("trained", 0.5), ("uniform", 0.02), ("start", 0.0)):
        data = make_data(Case("cross_entropy", 4000, 100, distribution=distribution), CPU)
        norm = 1 - data.input.detach().softmax(1).gather(1, data.target.unsqueeze(1)).squeeze(1)
        share = (norm < 1 / 30).float().mean().item()
        assert (easy < share < easy + 0.3) if easy else share == 0


class WorkClock:
    """A clock that the work moves, so that the load of the machine cannot: a second per forward, and per backward."""

    def __init__(self):
        self.seconds = 0.0

    def perf_counter(self):
        self.work(1e-9)  # no interval is 0
        return self.seconds

    def work(self, seconds=1.0):
        self.seconds += seconds

    def bce(self, case, data):
        self.work()
        loss = bce(case, data)
        if loss.requires_grad:
            loss.register_hook(lambda gradient: self.work())
        return loss


@pytest.mark.slow
def test_slow_implementation_shows_in_the_ratio(path, meter, monkeypatch):
    """Twenty extra forwards; the backward, timed alone, is as fast as ever."""
    clock = WorkClock()
    for module in (meters, timed_calls):
        monkeypatch.setattr(module, "time", clock)

    def slow(case, data):
        with torch.no_grad():
            for _ in range(20):
                clock.bce(case, data)
        return clock.bce(case, data)

    rows = run(path, meter, CASES[:1], [planted("bce", clock.bce), planted("planted", slow)])
    ratio = rows[rows["implementation"] == "planted"].set_index("mode")["ratio"]
    expected = {"forward": 21, "forward_no_grad": 21, "forward_backward": 11, "backward": 1}
    assert ratio.to_dict() == pytest.approx(expected, rel=1e-6)


@pytest.mark.slow
@pytest.mark.parametrize(
    "error, status",
    [(torch.OutOfMemoryError("no memory"), "out of memory"), (RuntimeError("broken\nkernel"), "error")],
    ids=["memory", "other"],
)
def test_failure_stays_in_its_row(path, meter, error, status):
    def failing(case, data):
        raise error

    rows = run(path, meter, CASES[:1], [planted("planted", failing), OURS["bce"]]).set_index("implementation")
    assert (rows.loc["planted", "status"] == status).all() and rows.loc["planted", "p50_ms"].isna().all()
    assert rows.loc["planted", "detail"].str.startswith(type(error).__name__).all()
    assert (rows.loc["bce", "status"] == "ok").all()


def test_case_too_large_is_not_tried(path, meter):
    rows = run(path, meter, [Case("ghmc", 10**12, 80)], [OURS["bce"]])
    assert (rows["status"] == "out of memory").all() and len(rows) == len(MODES)


def test_peak_memory(meter):
    """A planted allocation of 10 MB, given back before the end, is in the peak."""

    def hungry(case, data):
        torch.ones(2_500_000).sum()
        return bce(case, data)

    case = CASES[0]
    data = make_data(case, CPU)
    plain, more = (meter.peak_bytes(LossCall(planted("x", call), case, data, "forward")) for call in (bce, hungry))
    assert plain < 100_000 and 10_000_000 <= more < 10_100_000


def test_plan():
    """The named size is in the full plan; --quick on a CPU stays small."""
    full, quick = (plan_cases(quick=quick, device=CPU) for quick in (False, True))
    assert {case.loss for case in full if case.size == RETINANET_NAME} == {"ghmc", "ghmr"}
    assert max(case.elements for case in full if case.loss != "cross_entropy") == 2 * 201_600 * 80
    host = [case for case in full if case.size == "host time"]
    assert {(case.loss, case.shape) for case in host} == {
        ("ghmc", (128, 10)),
        ("ghmr", (128, 4)),
        ("cross_entropy", (128, 10)),
    }
    shapes = {case.shape for case in full if case.loss == "cross_entropy" and case not in host}
    assert shapes == {(8192, 1000), (2048, 32768), (8, 19, 256, 256)}
    assert max(case.elements for case in quick) <= 10**6
    large = {case.distribution for case in full if (case.rows, case.columns) == (100_000, 80)}
    assert large == {"trained", "start", "uniform"}
    assert len(set(full)) == len(full)


def test_compiled_plan():
    """torch.compile is timed in a few cases, and the baseline through it beside the loss through it."""
    cases = plan_cases(quick=False, device=CPU)
    both = [planted("eager_compiled", bce, compiles=True), planted("bce_compiled", bce, compiles=True), OURS["eager"]]
    groups = plan_groups(cases, both, ("wall",))
    compiled = [(case, mode, able) for case, mode, _, able in groups if both[0] in able or both[1] in able]
    assert {mode for _, mode, _ in compiled} == {"forward_backward"} and all(able == both for *_, able in compiled)
    softmax = [case for case, *_ in compiled if case.loss == "cross_entropy"]
    assert [case.shape for case in softmax] == [(8192, 1000), (2048, 32768), (8, 19, 256, 256)]
    compiled = [each for each in compiled if each[0] not in softmax]
    sizes = {(case.loss, case.elements) for case, *_ in compiled}
    assert sizes == {("ghmc", 10**6), ("ghmc", 8 * 10**6), ("ghmr", 10**6)}
    assert len(compiled) == 3 + 3 + 3  # distributions


@pytest.mark.slow
def test_compiling_is_not_timed(path, meter, monkeypatch):
    """A first call that takes as long as a compiler changes neither the time nor the number of repetitions."""
    monkeypatch.setattr(Case, "compiled", True)
    versions = set()

    def compiles(case, data):
        if not versions:
            time.sleep(1.5)
        versions.add(case)
        return bce(case, data)

    rows = run(path, meter, CASES[:1], [OURS["bce"], planted("planted", compiles, compiles=True)])
    row = rows[rows["implementation"] == "planted"].squeeze()
    assert row["mode"] == "forward_backward" and row["p80_ms"] < 500 and row["repetitions"] > 3


def test_graph_plan():
    """A CUDA graph holds neither what waits for the host nor a backward without its forward."""
    groups = plan_groups(CASES[:1], tuple(OURS.values()), ("events", "graph"))
    graphs = {mode: {one.name for one in able} for _, mode, timer, able in groups if timer == "graph"}
    assert set(graphs) == set(MODES) - {"backward"}
    assert all("bce" in names and not names & {"eager", "region_loop"} for names in graphs.values())
    assert sum(timer == "events" for _, _, timer, _ in groups) == len(MODES)


HOST = """
import sys
sys.path.append("tests/perf")
import test_perf_sweep as tests
from perf.sweep.cases import plan_cases

cases = [case for case in plan_cases(quick=True, device=tests.CPU) if case.size == "host time"]
timed = [tests.OURS[name] for name in ("triton", "eager", "bce", "smooth_l1", "cross_entropy")]
tests.run(sys.argv[1], tests.CpuMeter(), cases, timed)
"""


@pytest.mark.slow
def test_time_of_the_host(path):
    """The path to the kernels is timed on a CPU, up to their launches, which are counted: three per call.

    In a process of its own: in this one the kernels are made for the interpreter.
    """
    pytest.importorskip("triton")
    environment = {name: value for name, value in os.environ.items() if name != "TRITON_INTERPRET"}
    done = subprocess.run([sys.executable, "-c", HOST, path], cwd=ROOT, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    rows = pd.read_csv(path)
    assert (rows["status"] == "ok").all(), rows[["implementation", "detail"]]
    assert set(zip(rows["timer"], rows["mode"])) == {("host", "forward_backward")}
    launches = {(row.loss, row.implementation): row.launches for row in rows.itertuples()}
    baselines = {
        ("ghmc", "bce"): 0,
        ("ghmr", "bce"): 0,
        ("ghmr", "smooth_l1"): 0,
        ("cross_entropy", "cross_entropy"): 0,
    }
    ours = {
        (loss, name): 3 * (name == "triton")
        for loss in ("ghmc", "ghmr", "cross_entropy")
        for name in ("triton", "eager")
    }
    assert launches == baselines | ours
    assert (rows["p50_ms"] > 0).all() and rows["ratio"].notna().all() and rows["loss_error"].isna().all()
