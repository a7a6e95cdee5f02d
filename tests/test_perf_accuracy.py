"""The plan of the comparison, and that it can be stopped and continued."""

import math

import pytest

for module in ("torchvision", "sklearn", "pycocotools", "pandas"):
    pytest.importorskip(module)

from perf import accuracy, accuracy_plan


@pytest.mark.slow
def test_comparison_chooses_from_the_grid_and_goes_on(tmp_path, capsys):
    """Rows that are there are skipped; what is reported has the rate and weight of the best of the grid."""

    def do(stages):
        """Append rows of an AP that is greatest at (rate, weight), as long as there is something to do."""
        for _ in range(20):
            left = [run for run in accuracy_plan.plan(table.read(), stages=stages, **common) if run not in done]
            for run in left:
                distance = abs(math.log(run.rate / rate)) + abs(math.log(run.box_weight / weight))
                table.append(vars(run) | {"AP": 50 - distance})
                done.append(run)
            if not left:
                return

    compared = [("focal + SL1", 1.0), ("GHM-C + SL1", 1.0)]
    common = {"compared": compared, "tasks": ["digits-10"], "steps": 4, "seeds": 2, "ablation_seeds": 1}
    rate, weight = accuracy_plan.RATES[0], accuracy_plan.BOX_WEIGHTS[-1]
    table, done = accuracy.Table(tmp_path / "a.csv", accuracy.COLUMNS, accuracy_plan.KEY), []
    do(["grid"])
    assert {(run.stage, run.steps, run.seed) for run in done} == {("grid", 2, 0)}
    # From the four in the middle to the corner, by one neighbour at a time, for each of the losses; 16 in all.
    assert len(done) == len(set(done)) and 2 * 8 <= len(done) < 2 * 16
    assert set(accuracy_plan.runs_of(table.read())) == set(done)
    assert accuracy_plan.reported(table.read()).empty and "focal" not in accuracy_plan.markdown(table.read())
    grid, done[:] = list(done), []
    do(["main", "ablation"])
    assert not set(grid) & set(done)
    assert {(run.rate, run.box_weight) for run in done} == {(rate, weight)}
    assert {(run.stage, run.steps, run.seed) for run in done} == {("main", 4, 1), ("main", 4, 2), ("ablation", 2, 1)}
    assert [run.stage for run in done].count("main") == 4
    for stage, steps in (("main", 4), ("ablation", 2)):  # with a rate that would be of an earlier grid
        table.append(vars(done[0]) | {"stage": stage, "steps": steps, "rate": 1.0, "AP": 99.0})
    assert set(accuracy_plan.runs_of(accuracy_plan.reported(table.read()))) == set(done)
    # M 30 and momentum 0.75 are both the paper's setting: one run.
    assert [run.stage for run in done].count("ablation") == len(accuracy_plan.ABLATIONS["GHM-C + SL1", 1.0]) - 1

    out, backbone = str(tmp_path / "b.csv"), str(tmp_path / "backbone.pt")
    options = [
        "--smoke",
        "--steps",
        "1",
        "--losses",
        "focal + SL1",
        "--tasks",
        "digits-1",
        "--seeds",
        "1",
        "--out",
        out,
    ]
    assert accuracy.main(options + ["--backbone", backbone]) == 0
    assert "| digits-1 | focal + SL1 |" in capsys.readouterr().out
    done = (tmp_path / "b.csv").read_text()
    assert (
        done.count("\nmain,") == 1 and done.count("\n") == 1 + 7 + 1
    )  # an AP of 0 everywhere: seven cells of the grid
    assert accuracy.main(options + ["--backbone", backbone]) == 0
    assert (tmp_path / "b.csv").read_text() == done and (tmp_path / "b.png").exists()


@pytest.mark.slow
def test_comparison_goes_on_after_a_run_that_diverges(tmp_path, capsys, monkeypatch):
    def diverge(run, backbone, **options):
        raise FloatingPointError("the gradient is not finite")

    monkeypatch.setattr(accuracy, "measure", diverge)
    options = ["--smoke", "--losses", "GHM-C + SL1", "--tasks", "digits-1", "--exponents", "1"]
    options += ["--seeds", "1", "--out", str(tmp_path / "a.csv"), "--backbone", str(tmp_path / "backbone.pt")]
    assert accuracy.main(options + ["--ablation-seeds", "1"]) == 0
    output = capsys.readouterr().out
    assert "the gradient is not finite" in output and "| 1 | 0.0 | 0.0 | 0.0 | nan |" in output
