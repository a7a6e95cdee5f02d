"""`python -m ghm_triton.check`: it passes for what is right, and each way of being wrong shows."""

import csv
import os
import subprocess
import sys

import pytest
import torch

from ghm_triton.check import __main__ as command
from ghm_triton.check import behavior, machine, report, times, values
from ghm_triton.check.cases import LARGE, Case, Place, plan_cases
from ghm_triton.check.columns import KEY
from ghm_triton.check.data import NEAR, _move_from_edges, make_data, norms
from ghm_triton.check.values import check_values

CPU = torch.device("cpu")
GPU = torch.device("cuda", 0)
GHMC, GHMR = Case("ghmc", (16, 20)), Case("ghmr", (90, 4), bins=10, target="dense")
SOFTMAX = Case("cross_entropy", (40, 10))
RIGHT = values.Errors(0.1, 0.2, 0.0, 1e-8)


@pytest.fixture
def kernels():
    """The place where the kernels run here, and their table of launches."""
    pytest.importorskip("triton")
    from ghm_triton.kernels import launch

    return Place(GPU if torch.cuda.is_available() else CPU, "triton"), launch


@pytest.mark.parametrize("case", plan_cases(Place(CPU, "eager"), 0), ids=str)
def test_eager_values(case):
    """All cases of the plan are within the tolerance, and none has an error of exactly 0 by comparing with itself."""
    errors = check_values(case, "eager", CPU)
    assert errors.worst <= 1 and errors.gradient > 0


VARIED = [
    GHMC._replace(dtype="bfloat16", mask="rows"),
    GHMC._replace(target="soft", momentum=0.75, levels=2),
    GHMR._replace(dtype="float16", mask="elements"),
    GHMR._replace(reduction="none", levels=2, distribution="uniform"),
    SOFTMAX._replace(target="soft"),
    SOFTMAX._replace(mask="index", smoothing=0.12, momentum=0.75),
]


@pytest.mark.slow
@pytest.mark.parametrize("case", VARIED, ids=str)
def test_kernel_values(case, kernels):
    """The same for the kernels, by small inputs."""
    assert check_values(case, "triton", kernels[0].device).worst <= 1


@pytest.mark.parametrize("case", VARIED, ids=str)
def test_data(case):
    """No norm lies beside an edge; a tenth does not count; targets are what the case names; seeds repeat."""
    data, again, other = (make_data(case._replace(seed=seed), CPU) for seed in (0, 0, 1))
    x = torch.cat(data.inputs)
    scaled = norms(case, x, data.dense) * case.bins
    inner = (scaled.round() > 0) & (scaled.round() < case.bins)
    assert not ((scaled - scaled.round()).abs()[inner] < NEAR[case.loss] * case.bins).any()
    assert x.shape == case.shape and len(data.inputs) == case.levels and all(len(one) for one in data.inputs)
    assert data.counted.all() == (not case.mask)
    assert torch.equal(x, torch.cat(again.inputs)) and not torch.equal(x, torch.cat(other.inputs))
    assert data.targets[0].is_floating_point() == (case.target != "index")


def test_norms_beside_edges_move():
    """Half of these logits have the norm 0.5, an edge of 30 regions."""
    x, dense = torch.tensor([[0.0, 1.0], [0.0, -2.0]]), torch.zeros(2, 2)
    _move_from_edges(GHMC._replace(shape=(2, 2)), x, dense)
    assert x.tolist() == [[-9.0, 1.0], [-9.0, -2.0]]


@pytest.mark.parametrize("case", [GHMC, GHMR, SOFTMAX], ids=str)
def test_repeated_rows(case):
    """Repeated rows change neither the mean nor the gradient times N; an error in the last repeat only is found."""
    repeated = case._replace(repeats=3)
    assert check_values(repeated, "eager", CPU).worst <= 1
    data = make_data(case, CPU)
    expected = values.compute(case, values._double(data), "eager")
    found = values.compute(case, data, "eager")
    whole = found.gradients[0].repeat(3, 1)
    whole[-1, -1] *= 1.001
    absolute = values._cancellation(case, data, expected)
    errors = values.compare(repeated, found._replace(gradients=[whole]), expected, absolute)
    assert errors.gradient > 20 and errors.loss <= 1


def test_plan():
    """Past 2^31 elements where 40 GiB are free, less where less is, and nothing large on the CPU; cases differ."""
    for free, largest in ((80 * 2**30, LARGE), (8 * 2**30, 10**8)):
        large = [case for case in plan_cases(Place(GPU, "triton"), free) if case.repeats > 1]
        assert {case.loss for case in large} == {"ghmc", "ghmr", "cross_entropy"}
        assert all(case.elements > largest for case in large)
        assert free > 40 * 2**30 or all(case.elements < LARGE for case in large)
        assert all(2**32 % torch.Size(case.shape).numel() for case in large)
    for place in (Place(GPU, "triton"), Place(CPU, "triton"), Place(CPU, "eager")):
        cases = plan_cases(place, 0)
        assert max(case.repeats for case in cases) == 1 and len(set(cases)) == len(cases)
        assert {case.shape[1] for case in cases if case.loss == "cross_entropy"} >= {2, 1000, 32768}
        assert {(case.loss, case.dtype, case.distribution) for case in cases} >= {
            (loss, dtype, "trained")
            for loss in ("ghmc", "ghmr", "cross_entropy")
            for dtype in ("float32", "float16", "bfloat16")
        }


def _scaled_gradient(outputs):
    outputs[0].mul_(1.0001)


def _tail_not_written(outputs):
    outputs[0].view(-1)[-1] = float("nan")


@pytest.mark.slow
@pytest.mark.parametrize("spoil", [_scaled_gradient, _tail_not_written])
@pytest.mark.parametrize("case", [GHMC, GHMR, SOFTMAX], ids=str)
def test_a_wrong_gradient(case, spoil, kernels, monkeypatch):
    """One part in ten thousand, and one element that no program has written."""
    place, launch = kernels
    kernel = launch._LOSSES[case.loss]
    right = kernel.gradient

    def wrong(level, *arguments):
        right(level, *arguments)
        spoil([arguments[-2]])  # the output, before the options

    monkeypatch.setattr(kernel, "gradient", wrong)
    errors = check_values(case, "triton", place.device)
    assert errors.worst > 1 and errors.loss <= 1


@pytest.mark.slow
def test_a_wrong_count_and_state(kernels, monkeypatch):
    """An element in another region changes loss, gradient and moving average."""
    place, launch = kernels
    kernel = launch._LOSSES["ghmc"]
    right = kernel.accumulate

    def wrong(level, buffers, counts, *arguments):
        right(level, buffers, counts, *arguments)
        counts[0, 0] -= 1
        counts[0, 1] += 1

    monkeypatch.setattr(kernel, "accumulate", wrong)
    errors = check_values(GHMC._replace(momentum=0.75), "triton", place.device)
    assert min(errors.loss, errors.gradient, errors.state) > 1


def test_units():
    """Errors in units of the tolerance; NaN and another shape do not pass."""
    units = values._units(torch.tensor([1.0, 2.0]), torch.tensor([1.0, 2.002]).double(), 1e-3, 0.0)
    assert units == pytest.approx(0.999, rel=1e-3)
    assert values._units(torch.tensor([float("nan")]), torch.zeros(1), 1.0, 1.0) == float("inf")
    with pytest.raises(ValueError, match=r"shape \(2,\) instead of \(1,\)"):
        values._units(torch.zeros(2), torch.zeros(1), 1.0, 1.0)
    assert values.Errors(float("nan"), 0.0, 0.0, 0.0).worst == float("inf")


def run(*arguments, code="", **environment):
    """The command in a process of its own, after `code`."""
    script = f"import sys\n{code}\nfrom ghm_triton.check.__main__ import main\nsys.exit(main(sys.argv[1:]))"
    return subprocess.run(
        [sys.executable, "-W", "ignore", "-c", script, *arguments],
        env={name: value for name, value in os.environ.items() if name != "TRITON_INTERPRET"} | environment,
        capture_output=True,
        text=True,
        timeout=400,
    )


@pytest.mark.slow
@pytest.mark.skipif(torch.cuda.is_available(), reason="checks the GPU instead")
def test_the_command_without_a_gpu(tmp_path):
    """It says so, ends with "ok", and perf reads its CSV."""
    done = run("--csv", str(tmp_path / "check.csv"), "--seconds", "300")
    assert done.returncode == 0 and done.stderr == "", done.stdout + done.stderr
    lines = done.stdout.splitlines()
    assert lines[-1] == "ok" and "No GPU was found" in lines[1] and "TRITON_INTERPRET=1" in lines[2]
    assert "FAILED" not in done.stdout and "left out" not in done.stdout
    pandas = pytest.importorskip("pandas")
    from perf.report.rows import load
    from perf.report.tables import times as table

    rows = load([tmp_path / "check.csv"])
    assert (rows["status"] == "ok").all() and not rows.duplicated(KEY).any()
    assert len(rows[rows["mode"] == "check"]) == len(plan_cases(Place(CPU, "eager"), 0))
    shown = table(rows, "ghmc")
    assert list(shown.columns)[:3] == ["elements", "this package, eager", "cross entropy"]
    assert isinstance(shown, pandas.DataFrame) and shown.iloc[0, 2].endswith("ms (1.00x)")


BREAK = """
from ghm_triton.kernels import ghmr
right = ghmr.gradient
def wrong(level, coefficients, grad, output, options):
    right(level, coefficients, grad, output, options)
    output.mul_(1.001)
ghmr.gradient = wrong
from ghm_triton.check import __main__ as command
plan = command.plan_cases
command.plan_cases = lambda place, free: plan(place, free)[:5]
command.timed_cases = lambda place: []
from ghm_triton.check import behavior
examples = behavior.examples
behavior.examples = lambda place: examples(place)[2:]
"""


@pytest.mark.slow
@pytest.mark.skipif(torch.cuda.is_available(), reason="the interpreter is for machines without a GPU")
def test_the_command_with_a_broken_kernel():
    """The eager backend passes, the kernels of the other losses do, and the last line names GHM-R."""
    pytest.importorskip("triton")
    done = run("--seconds", "300", code=BREAK, TRITON_INTERPRET="1")
    *lines, last = done.stdout.splitlines()
    assert done.returncode == 1 and last.startswith("FAILED: "), done.stdout + done.stderr
    assert "GHM-R, 320 x 4, float32, trained" in last and "report" in last
    failed = [line for line in lines if line.startswith("  FAILED")]
    assert len(failed) == 1 and all("GHM-R, 320" in line for line in failed), done.stdout
    assert sum(line.startswith("  GHM") and " x " not in line and "cases" not in line for line in lines) >= 5


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_the_command_on_a_gpu():
    """Everything, synchronization, graphs and times included."""
    done = run()
    assert done.returncode == 0 and done.stdout.splitlines()[-1] == "ok", done.stdout + done.stderr


def test_arguments(capsys):
    """Mistakes end the command before anything is done."""
    for wrong in (["--device", "cuda:99"], ["--seconds", "0"], ["--devices"]):
        with pytest.raises(SystemExit) as ended:
            command.main(wrong)
        assert ended.value.code == 2
    assert "must be" in capsys.readouterr().err


def test_machine_without_a_gpu():
    """What is tested is told; the eager backend takes all dtypes there."""
    lines = machine.describe_machine(CPU)
    assert torch.__version__ in lines[0] and lines[1].startswith("device: the CPU")
    assert lines[-1] == "backend: float32 eager, float16 eager, bfloat16 eager, float64 eager"
    assert machine.find_places(CPU)[0] == Place(CPU, "eager") and machine.free_bytes(CPU) == 0
    assert machine.device_name(CPU) and machine.driver_version()


def test_equal_bits_and_graphs(monkeypatch):
    """Noise in the last bits, and a graph that does nothing, are found. Without a GPU, calls stand for replays."""
    place = Place(CPU, "eager")
    monkeypatch.setattr(behavior, "examples", lambda place: [GHMC._replace(levels=3), GHMC._replace(mask="rows"), GHMR])
    assert behavior.check_bits(place) and behavior.check_graph(place, lambda run: run)
    assert behavior.check_other_device(place, CPU)
    with pytest.raises(behavior.Failed, match="replay 1 of the graph: loss of GHM-C"):
        behavior.check_graph(place, lambda run: lambda: None)
    right, calls = behavior.step, iter(range(100))

    def noisy(module, data):
        loss, gradient, *others = right(module, data)
        return [loss, gradient + 1e-9 * next(calls), *others]

    monkeypatch.setattr(behavior, "step", noisy)
    with pytest.raises(behavior.Failed, match="two runs: gradient of GHM-C"):
        behavior.check_bits(place)


def test_a_graph_that_keeps_its_first_state(monkeypatch):
    """The moving average must advance with each replay."""
    monkeypatch.setattr(behavior, "examples", lambda place: [GHMR])
    place, once = Place(CPU, "eager"), []

    def capture(run):
        return lambda: once.append(run()) if not once else None

    with pytest.raises(behavior.Failed, match="replay 2 of the graph"):
        behavior.check_graph(place, capture)


@pytest.mark.slow
def test_compile(monkeypatch):
    """Each loss is one graph, of another number of rows too."""
    monkeypatch.setattr(behavior, "examples", lambda place: [GHMC, GHMC._replace(mask="rows"), GHMR, SOFTMAX])
    assert "fullgraph=True" in behavior.check_compile(Place(CPU, "eager"))


def test_waits_are_not_reported_as_none(monkeypatch):
    """Where PyTorch cannot tell, the check does not pass."""
    monkeypatch.setattr(behavior, "examples", lambda place: [GHMC])
    if not torch.cuda.is_available():
        with pytest.raises(ValueError, match="reports no waits"):
            behavior.check_no_waits(Place(CPU, "eager"))


def test_times():
    """Each implementation has a time per round, the baseline a ratio of 1; a slower clock shows."""
    ticks = iter(range(1, 100))
    rows = times.measure_case(GHMC, Place(CPU, "eager"), lambda call: (call(), float(next(ticks)))[1], rounds=2)
    found = {row.implementation: row for row in rows}
    assert list(found)[:2] == ["eager", "bce"] and found["bce"].ratios == [1.0, 1.0]
    assert found["eager"].milliseconds[0] == 1 and found["bce"].milliseconds[0] == 2
    assert found["eager"].ratios[0] == 0.5 and found["eager"].ratios[1] > 1  # the order of a round turns around
    assert "GHM-C" in times.describe_rows(rows)[0]
    assert times.clock_of(CPU)(lambda: sum(range(10**5))) > 0.1
    rows = times.measure_case(SOFTMAX, Place(CPU, "eager"), times.clock_of(CPU), rounds=2)
    assert [row.implementation for row in rows] == ["eager", "cross_entropy"]


def _raise(error):
    raise error


def test_report(tmp_path, capsys):
    """Failures, memory, time and a broken device: last line, exit code, rows."""
    place, case = Place(CPU, "eager"), GHMC
    good = report.Report(100)
    good.check_case(case, place, lambda *arguments: RIGHT)
    good.check_case(GHMR, place, lambda *arguments: _raise(torch.OutOfMemoryError("no")))
    good.attempt("easy", lambda: "done")
    good.print_errors()
    assert good.conclude() == 0
    shown = capsys.readouterr().out
    assert (
        shown.splitlines()[-1] == "ok, but 1 of the checks left out"
        and "left out, 1: GHM-R" in shown
        and "easy: done" in shown
    )
    assert "0.10" in shown and "0.20" in shown
    bad = report.Report(100)
    bad.check_case(case, place, lambda *arguments: RIGHT._replace(gradient=1.5))
    bad.check_case(GHMR, place, lambda *arguments: RIGHT._replace(loss=float("nan")))
    bad.attempt("graph", lambda: _raise(behavior.Failed("differs")))
    with pytest.raises(report.Broken):
        bad.check_case(SOFTMAX, place, lambda *arguments: _raise(RuntimeError("CUDA error: an illegal memory access")))
    assert bad.conclude() == 1
    assert "FAILED: 4 (GHM-C, 16 x 20, float32" in capsys.readouterr().out.splitlines()[-1]
    bad.write(tmp_path / "check.csv")
    with open(tmp_path / "check.csv", newline="") as file:
        rows = list(csv.DictReader(file))
    assert [row["status"] for row in rows] == ["wrong", "wrong", "error"]
    assert "gradient 1.5" in rows[0]["detail"] and rows[0]["loss_error"] == "1e-08"


def test_no_time_is_left(capsys):
    """Nothing begins after the time, and the report says what is missing."""
    late = report.Report(1e-9)
    late.attempt("graph", lambda: _raise(AssertionError("must not run")))
    assert late.late() and late.conclude() == 0
    assert "left out, 1: graph" in capsys.readouterr().out
    report.Report(100).conclude()
    assert capsys.readouterr().out == "ok\n"
