"""The kernels compiled ahead of time for GPUs that are not here: no spills, wide accesses, no atomics, few launches."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

triton = pytest.importorskip("triton")
pandas = pytest.importorskip("pandas")
if not hasattr(triton, "knobs"):
    pytest.skip("needs Triton 3.4 to compile ahead of time", allow_module_level=True)

pytestmark = [pytest.mark.slow, pytest.mark.xdist_group("compiled")]  # all tests share one report
ROOT = Path(__file__).parents[2]
CLASSES = ["fp32", "integer", "special", "memory", "shared", "other"]  # of instructions
COMPILED = ["sm_90", "gfx942"]  # here; 128 launches each take minutes, so the other targets are those of the record
TARGETS = ["sm_80", "sm_89", "sm_100", *COMPILED]


@pytest.fixture(scope="module")
def compiled(tmp_path_factory):
    """The table of `python -m perf.compiled`, from its own process: in this one, the kernels may be interpreted."""
    path = tmp_path_factory.mktemp("compiled") / "compiled.csv"
    environment = {name: value for name, value in os.environ.items() if name != "TRITON_INTERPRET"}
    command = [sys.executable, "-m", "perf.compiled", "--targets", *COMPILED, "--out", path]
    done = subprocess.run(command, capture_output=True, text=True, env=environment, cwd=ROOT)
    assert done.returncode == 0, done.stderr
    return pandas.read_csv(path)


@pytest.fixture(scope="module")
def record():
    """What the same command found for all targets."""
    return pandas.read_csv(ROOT / "perf" / "results" / "compiled.csv")


@pytest.fixture(scope="module")
def report(compiled, record):
    return pandas.concat([compiled, record[~record.target.isin(COMPILED)]])


def test_the_record_is_of_these_kernels(compiled, record):
    """Else it says nothing about them. After a change of a kernel: python -m perf.compiled --out perf/results/..."""
    assert set(record.target) == set(TARGETS)
    for target, rows in record.groupby("target"):
        like = compiled[compiled.target == ("gfx942" if target == "gfx942" else "sm_90")]
        assert sorted(zip(rows.kernel, rows.configuration)) == sorted(zip(like.kernel, like.configuration)), target
    if set(record.triton) == {triton.__version__}:  # another compiler may choose other registers
        same = record[record.target.isin(COMPILED)].reset_index(drop=True)
        pandas.testing.assert_frame_equal(same, compiled, check_exact=True)


@pytest.mark.parametrize("target", TARGETS)
def test_every_kernel_compiles_without_spills(report, target):
    """A kernel that outgrows its registers goes to memory for them, at several times the cost."""
    rows = report[report.target == target]
    assert set(rows.kernel) == {
        f"_{loss}_{step}_kernel"
        for loss in ("ghmc", "ghmr", "cross_entropy")
        for step in ("accumulate", "gradient", "scale")
    } | {"_fold_kernel", "_harmonize_kernel"}
    assert rows[rows.spills > 0].empty
    assert rows.registers.max() <= 168  # 3 programs of 128 threads per multiprocessor


@pytest.mark.parametrize("target", TARGETS)
def test_contiguous_tensors_move_16_bytes_at_a_time(report, target):
    """Masks and unknown alignment cut accesses to single elements; a full tile must not have them."""
    rows = report[(report.target == target) & ~report.configuration.str.contains("softmax of 10 ")]  # rows of 40 bytes
    assert (rows.load_bytes == 16).all()
    assert (rows[rows.kernel.str.contains("gradient|scale")].store_bytes == 16).all()


@pytest.mark.parametrize("target", TARGETS)
def test_no_atomics_in_global_memory(report, target):
    """Sums by atomic additions of floats would depend on their order, and two runs would differ."""
    assert (report[report.target == target].atomics == 0).all()


def test_three_launches_for_forward_and_backward(report):
    """accumulate, harmonize, gradient; with more than 64 programs, as in large inputs and pyramids, one fold."""
    rows = report[report.target == "sm_90"].set_index("configuration").launches_of_the_call
    assert set(rows["float32 class index"]) == set(rows["float32 deltas, element weight, mmdet"]) == {3}
    assert set(rows["float32 class index, five levels"]) == {5 + 2 + 5}
    softmax = rows[rows.index.str.contains("softmax") & ~rows.index.str.endswith("none")]
    assert len(softmax) and (softmax <= 4).all()


def test_easy_tiles_cost_little(report):
    """The fast path of a trained classifier: about 25 instructions per logit, a third of what the full path takes."""
    rows = report[(report.kernel == "_ghmc_accumulate_kernel") & report.target.str.startswith("sm_")]
    rows = rows[rows.configuration.str.endswith(" class index")]
    easy, hard = (rows[[f"{way}_{kind}" for kind in CLASSES]].sum(axis=1) for way in ("easy", "hard"))
    assert (easy < 35).all() and (easy > 10).all()  # above 35 it would no longer hide behind fp32 loads on an H100
    assert (hard > 2 * easy).all()


def test_writes_only_where_out_says(tmp_path, monkeypatch, capsys):
    """Without --out it wrote over the tracked CSV."""
    from perf.compiled import __main__ as command

    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("TRITON_INTERPRET", raising=False)
    monkeypatch.setattr(command, "report", lambda targets: pandas.DataFrame({"block": [float("nan")], "spills": [0]}))
    assert command.main([]) == 0 and "1 kernels, 0 with spills" in capsys.readouterr().out
    assert list(tmp_path.iterdir()) == []
    assert command.main(["--out", "new/compiled.csv"]) == 0
    assert [path.name for path in tmp_path.rglob("*.csv")] == ["compiled.csv"]


def test_words_of_a_line_do_not_touch(capsys):
    """Names of more than 32 or 46 letters ran into the next word."""
    from perf.compiled.__main__ import print_bounds

    kernel, use = "_cross_entropy_accumulate_kernel", "bfloat16 softmax of 19 classes, channels second, probabilities"
    bounds = dict(easy_over_memory=1.0, easy_bound="memory", hard_over_memory=1.5, hard_bound="issue")
    print_bounds(pandas.DataFrame([dict(device="MI300X", kernel=kernel, configuration=use, block=256, **bounds)]))
    assert capsys.readouterr().out.startswith(f"MI300X {kernel} {use} easy ")


def test_interpreted_kernels_are_refused(monkeypatch, capsys):
    from perf.compiled import __main__ as command

    monkeypatch.setenv("TRITON_INTERPRET", "1")
    with pytest.raises(SystemExit) as end:
        command.main([])
    assert end.value.code == 2 and "TRITON_INTERPRET must be unset, got '1'" in capsys.readouterr().err
