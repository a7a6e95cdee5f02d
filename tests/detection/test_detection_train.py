"""The training command: resumed to the bit, over several processes as over one, and its files."""

import argparse
import multiprocessing
import os
import signal
import subprocess
import sys
import time

import pytest
import torch

pytest.importorskip("torchvision")
pytest.importorskip("sklearn")
pytest.importorskip("pycocotools")
pd = pytest.importorskip("pandas")

from ghm_triton.detection import digits, evaluate, predict, train
from ghm_triton.detection.data import digit_drawing, digit_scenes
from ghm_triton.detection.data.augment import Augmented
from ghm_triton.detection.losses import LossOptions, use_losses
from ghm_triton.detection.models.small import small_retinanet
from ghm_triton.detection.training import checkpoint, engine, pace, processes, recipes, schedules, signals
from ghm_triton.detection.training import run as training_run
from ghm_triton.detection.training.evaluation import METRICS

FAST = ["--batch-size", "4", "--workers", "0", "--pretrain-steps", "0", "--device", "cpu"]
FAST += ["--augment", "flip", "--min-size", "64"]


@pytest.fixture(autouse=True)
def no_pictures(monkeypatch):
    """They take longer than the steps; one test looks at them."""
    monkeypatch.setattr(training_run, "draw_curves", lambda *arguments: [])
    monkeypatch.setattr(training_run, "draw_density", lambda *arguments: None)
    monkeypatch.setattr(training_run, "observe", lambda *arguments: None)


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    folder = tmp_path_factory.mktemp("data")
    digits.main([str(folder), "--train", "14", "--val", "4", "--size", "64", "--style", "hard", "--digits", "1", "3"])
    return folder


def run(data, output, *more):
    return train.main(["--data", str(data), "--output", str(output), *FAST, *more])


def weights(output):
    return checkpoint.load_checkpoint(output / "checkpoint.pt")


def same(one, two):
    """To the bit, through dicts and lists."""
    if isinstance(one, torch.Tensor):
        return torch.equal(one, two)
    if isinstance(one, dict):
        return one.keys() == two.keys() and all(same(one[key], two[key]) for key in one)
    if isinstance(one, (list, tuple)):
        return len(one) == len(two) and all(map(same, one, two))
    return one == two


class Killed(BaseException):
    """As by a signal that nobody can catch: nothing may run after it."""


@pytest.fixture(scope="module")
def whole(data, tmp_path_factory):
    """A run that nobody stops. Its pictures are drawn: no_pictures is of a test."""
    output = tmp_path_factory.mktemp("whole")
    assert run(data, output, "--epochs", "2", "--save-every", "3") == 0
    return output


@pytest.mark.slow
@pytest.mark.parametrize("step", [2, 4, 6])
def test_killed_and_resumed_is_the_same_to_the_bit(data, whole, tmp_path, monkeypatch, step):
    """Within the first epoch, at its end, and within the second; the last save is up to a step before the kill."""
    more = ("--epochs", "2", "--save-every", "1" if step == 2 else "3")
    steps = 0
    original = engine.Trainer.train_step

    def killed(self, *arguments):
        nonlocal steps
        steps += 1
        if steps > step:
            raise Killed
        return original(self, *arguments)

    with monkeypatch.context() as patch:
        patch.setattr(engine.Trainer, "train_step", killed)
        with pytest.raises(Killed):
            run(data, tmp_path, *more)
    before = weights(tmp_path)
    assert before["epoch"] * 4 + before["step"] <= step
    torch.manual_seed(99)
    assert run(data, tmp_path, *more, "--resume") == 0
    assert_same_run(whole, tmp_path)


@pytest.mark.slow
def test_an_evaluation_that_was_killed_is_repeated(data, whole, tmp_path, monkeypatch):
    def killed(self):
        raise Killed

    with monkeypatch.context() as patch:
        patch.setattr(training_run.Run, "_evaluate", killed)
        with pytest.raises(Killed):
            run(data, tmp_path, "--epochs", "2")
    assert weights(tmp_path)["epoch"] == 1 and not (tmp_path / "metrics.csv").exists()
    assert run(data, tmp_path, "--epochs", "2", "--resume") == 0
    assert_same_run(whole, tmp_path)


def assert_same_run(one, other):
    """Everything but the seconds; at least one of both has drawn its pictures, which must change nothing."""
    states = weights(one), weights(other)
    for name in ("model", "optimizer", "schedule", "scaler", "random", "log"):
        assert same(states[0][name], states[1][name]), name
    assert states[0]["model"]["head.classification_loss.running_counts"].sum() > 0
    rows = [pd.read_csv(folder / "metrics.csv") for folder in (one, other)]
    assert rows[0].epoch.tolist() == [1, 2] and set(METRICS) <= set(rows[0])
    assert rows[0].drop(columns="seconds").equals(rows[1].drop(columns="seconds"))


@pytest.mark.slow
def test_pictures_are_written_after_each_epoch(data, whole, tmp_path, monkeypatch):
    """They used to come at the end only."""
    for name in ("losses.png", "ap.png", "density.png"):
        assert (whole / name).read_bytes().startswith(b"\x89PNG")
    drawn = []
    monkeypatch.setattr(training_run, "draw_curves", lambda folder, log, metrics: drawn.append(len(metrics)) or [])
    monkeypatch.setattr(training_run, "draw_density", lambda path, seen: drawn.append(path.name))
    assert run(data, tmp_path, "--epochs", "2", "--batch-size", "14") == 0
    assert drawn == [1, "density.png", 2, "density.png"]


@pytest.mark.slow
def test_a_complete_run_says_so_and_trains_on(data, whole, tmp_path, capsys):
    """The longer run takes up the schedule of its length, one cycle as well."""
    import shutil

    shutil.copytree(whole, tmp_path / "run")
    assert run(data, tmp_path / "run", "--epochs", "2", "--resume") == 0
    text = capsys.readouterr().out
    assert "is complete after 2 epochs" in text and "--epochs 4 --resume" in text
    assert same(weights(whole)["model"], weights(tmp_path / "run")["model"])
    assert run(data, tmp_path / "run", "--epochs", "3", "--resume") == 0
    state = weights(tmp_path / "run")
    assert state["epoch"] == 3 and [row["epoch"] for row in state["metrics"]] == [1, 2, 3]
    optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=1.0)
    cycle = torch.optim.lr_scheduler.OneCycleLR(optimizer, 1.5e-3, total_steps=12, cycle_momentum=False)
    for _ in range(8):
        optimizer.step()
        cycle.step()
    optimizer.step()
    cycle.step()
    # The tenth step is logged, with its rate.
    assert state["log"][-1]["step"] == 10 and state["log"][-1]["lr"] == pytest.approx(cycle.get_last_lr()[0])


@pytest.mark.slow
@pytest.mark.parametrize(
    "option, value, before", [("--lr", "0.1", "0.0015"), ("--augment", "none", "'flip'"), ("--mu", "0.1", "0.02")]
)
def test_resuming_with_other_options_is_refused(data, whole, capsys, option, value, before):
    """They used to be ignored in silence."""
    state = weights(whole)
    assert run(data, whole, "--epochs", "3", "--resume", option, value) == 1
    assert f"{option} must be {before} as in the checkpoint, got" in capsys.readouterr().err
    assert same(state["model"], weights(whole)["model"])


@pytest.mark.parametrize("seed", [20261123, 2**63 - 1])
def test_large_seeds(seed):
    """Products of the seed left 64 bits from 18,446,634 on, and died on the first image."""
    flips = [
        Augmented([(torch.rand(3, 2, 2), {"boxes": torch.zeros(0, 4)})] * 20, "flip", seed=one, epoch=3)
        for one in (seed, seed - 1)
    ]
    flipped = [[not torch.equal(data[index][0], data.dataset[0][0]) for index in range(20)] for data in flips]
    assert flipped[0] != flipped[1] and 0 < sum(flipped[0]) < 20
    assert sorted(engine.epoch_batches(5, 5, seed=seed, epoch=9)[0]) == [0, 1, 2, 3, 4]
    assert train.parse(["--output", "x", "--seed", str(seed)]).seed == seed


def _do_nothing(*_):
    pass


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
def test_a_stop_signal_saves_the_step_it_came_in(data, tmp_path, monkeypatch, capsys, number):
    """A closed terminal (HUP) used to lose the steps."""
    original = engine.Trainer.train_step

    def interrupted(self, *arguments):
        os.kill(os.getpid(), number)
        return original(self, *arguments)

    inherited = signal.signal(number, _do_nothing)  # a shell in the background starts its jobs with INT ignored
    monkeypatch.setattr(engine.Trainer, "train_step", interrupted)
    try:
        assert run(data, tmp_path / "run", "--epochs", "1") == 130
        assert signal.getsignal(number) == _do_nothing
    finally:
        signal.signal(number, inherited)
    assert weights(tmp_path / "run")["step"] == 1
    text = capsys.readouterr().out
    assert text.startswith("recipe small: 1 epoch of 4 steps of 4 images")  # the schedule, before the first step
    assert "stopped; repeat the command with --resume to continue from" in text


@pytest.mark.slow
def test_a_signal_to_the_whole_group_leaves_the_workers(data, tmp_path, monkeypatch):
    """As `timeout` sends it: a worker that died of it used to end the training before anything was saved."""
    original = engine.Trainer.train_step

    def interrupted(self, *arguments):
        (worker,) = multiprocessing.active_children()
        # Not os.kill: to a TERM from its parent, a worker of PyTorch exits without an error.
        subprocess.run(["kill", "-TERM", str(worker.pid), str(os.getpid())], check=True)
        return original(self, *arguments)

    monkeypatch.setattr(engine.Trainer, "train_step", interrupted)
    assert run(data, tmp_path / "run", "--epochs", "1", "--workers", "1") == 130
    assert weights(tmp_path / "run")["step"] == 1


def test_a_signal_to_another_process_stops_this_one_too(data, tmp_path, monkeypatch):
    """Each process saves its part of the checkpoint in the same step; one that went on would wait for the others."""
    monkeypatch.setattr(processes.Processes, "any", lambda self, flag: True)
    assert run(data, tmp_path / "run", "--epochs", "1") == 130
    assert weights(tmp_path / "run")["step"] == 1


def test_under_nohup_a_closed_terminal_does_not_stop():
    before = signal.signal(signal.SIGHUP, signal.SIG_IGN)
    try:
        with signals.catch_stop_signals() as request:
            os.kill(os.getpid(), signal.SIGHUP)
            assert signal.getsignal(signal.SIGHUP) == signal.SIG_IGN and not request.asked
            os.kill(os.getpid(), signal.SIGTERM)
            assert request.asked
    finally:
        signal.signal(signal.SIGHUP, before)


@pytest.mark.slow
def test_a_signal_in_the_pre_training_or_the_evaluation_stops(data, tmp_path, monkeypatch):
    """The evaluation is repeated after a resume, and the pre-training goes on."""
    original = training_run.detect

    def interrupted(*arguments, **options):
        os.kill(os.getpid(), signal.SIGTERM)
        return original(*arguments, **options)

    with monkeypatch.context() as patch:
        patch.setattr(training_run, "detect", interrupted)
        assert run(data, tmp_path / "a", "--epochs", "1", "--batch-size", "14") == 130
    state = weights(tmp_path / "a")
    assert state["epoch"] == 1 and state["metrics"] == []

    from ghm_triton.detection import pretrain

    draw = pretrain.draw_crop
    monkeypatch.setattr(pretrain, "draw_crop", lambda *inputs: os.kill(os.getpid(), signal.SIGTERM) or draw(*inputs))
    assert run(data, tmp_path / "b", "--epochs", "1", "--pretrain-steps", "3") == 130
    state = weights(tmp_path / "b")
    assert (state["epoch"], state["step"], state["pretraining"]["step"]) == (0, 0, 1)


@pytest.mark.slow
@pytest.mark.parametrize("step", [2, 3, 5])
def test_a_pre_training_is_resumed_to_the_bit(data, tmp_path, monkeypatch, step):
    """Killed after a checkpoint, right before its last step, and after it, before the first step of the training."""
    from ghm_triton.detection import pretrain

    monkeypatch.setattr(pretrain, "_HELD_OUT", 100)
    more = ("--epochs", "1", "--save-every", "2", "--pretrain-steps", "4")
    assert run(data, tmp_path / "whole", *more) == 0
    steps = 0
    zero_grad = torch.optim.AdamW.zero_grad

    def killed(self):
        nonlocal steps
        steps += 1
        if steps > step - (step == 5):  # the fifth is of the training
            raise Killed
        zero_grad(self)

    with monkeypatch.context() as patch:
        patch.setattr(torch.optim.AdamW, "zero_grad", killed)
        with pytest.raises(Killed):
            run(data, tmp_path / "killed", *more)
    before = weights(tmp_path / "killed")["pretraining"]
    assert before == "done" if step == 5 else before["step"] == 2
    drawn = []
    draw = pretrain.draw_crop
    monkeypatch.setattr(
        pretrain, "draw_crop", lambda random, split, style: drawn.append(split) or draw(random, split, style)
    )
    assert run(data, tmp_path / "killed", *more, "--resume") == 0
    assert drawn.count("train") == (0 if step == 5 else 2 * 64)
    for name in ("model", "optimizer", "log", "means"):
        assert same(weights(tmp_path / "whole")[name], weights(tmp_path / "killed")[name]), name


def settled(images, *more, **resumed):
    options = parsed(*more)
    recipes.complete(options, images, resumed=resumed)
    return options.epochs, options.pretrain_steps


def test_the_length_is_in_steps_and_the_pre_training_in_proportion():
    """Sixty pictures used to train for 24 steps after 1,500 of pre-training."""
    assert settled(2000) == (3, 1500) and settled(60) == (94, 1500)
    assert settled(60, "--epochs", "3") == (3, 48) and settled(60, "--steps", "100") == (13, 208)
    assert settled(60, "--epochs", "3", "--pretrain-steps", "7") == (3, 7)
    assert settled(60, "--backbone", "b.pt") == (94, 0) and settled(60, "--model", "lite0") == (94, 0)
    assert settled(60, "--recipe", "paper") == (14, 0) and settled(60, "--recipe", "paper", "--steps", "9") == (3, 0)
    # A longer training goes on from the same pre-training.
    assert settled(60, "--epochs", "50", pretrain_steps=48) == (50, 48)


def test_the_plan_counts_all_steps_and_says_when_they_are_few():
    options = parsed()
    recipes.complete(options, 60)
    plan = recipes.describe_plan(options, 60).splitlines()
    assert plan[0].startswith("recipe small: 94 epochs of 8 steps of 8 images; AdamW")
    assert plan[1:] == [
        "before: 1,500 steps of pre-training on crops of digits",
        "evaluation: after every 7 epochs and at the end",
    ]
    options = parsed("--epochs", "3")
    recipes.complete(options, 60)
    hint = recipes.describe_plan(options, 60).splitlines()[-1]
    assert hint.startswith("hint: 24 steps are few") and hint.endswith("--steps 750 takes 94 epochs")
    options = parsed("--recipe", "paper")
    recipes.complete(options, 1600)
    assert len(recipes.describe_plan(options, 1600).splitlines()) == 1
    assert [recipes.evaluated_every(argparse.Namespace(epochs=epochs), steps) for epochs, steps in
            ((14, 100), (300, 50), (94, 8), (14, 8), (15, 8), (16, 8))] == [1, 1, 7, 1, 1, 2]  # fmt: skip


@pytest.mark.parametrize(
    "seconds, text",
    [(0.2, "about 1 second"), (42, "about 42 seconds"), (170, "about 3 minutes"), (5400, "about 1.5 hours")],
)
def test_times_in_words(seconds, text):
    assert pace.describe_time(seconds) == text


def test_the_time_left_is_said_once(monkeypatch):
    """After eleven steps of 2 seconds; 40 are left."""
    clock, said = iter(range(0, 100, 20)), []
    monkeypatch.setattr(pace.time, "perf_counter", lambda: next(clock))
    one = pace.Pace(said.append, "training", ", plus the evaluations")
    for left in range(50, 30, -1):
        one.step(left)
    assert said == ["training: about 80 seconds for the other 40 steps, plus the evaluations"]


@pytest.mark.slow
def test_metrics_hold_the_means_of_the_steps_since_the_evaluation_before(data, tmp_path, monkeypatch):
    """They used to be of one early step. The log holds means of ten steps, over the end of an epoch too."""
    original, losses = engine.Trainer.train_step, []

    def kept(self, *arguments):
        losses.append(original(self, *arguments))
        return losses[-1]

    monkeypatch.setattr(engine.Trainer, "train_step", kept)
    monkeypatch.setattr(recipes, "_EVALUATIONS", 2)
    assert run(data, tmp_path, "--epochs", "3") == 0
    rows = pd.read_csv(tmp_path / "metrics.csv")
    assert rows.epoch.tolist() == [2, 3] and rows.step.tolist() == [8, 12]
    (entry,) = weights(tmp_path)["log"]
    for name in ("classification", "bbox_regression"):
        values = [one[name] for one in losses]
        assert rows[name].tolist() == pytest.approx([sum(values[:8]) / 8, sum(values[8:]) / 4], rel=1e-5)
        assert entry[name] == pytest.approx(sum(values[:10]) / 10, rel=1e-6) and entry["step"] == 10


@pytest.mark.slow
def test_the_best_checkpoint_stays(data, tmp_path, monkeypatch):
    """best.pt is that of the highest AP, also after a resume."""
    values = iter([10.0, 30.0, 20.0, 25.0, 40.0])
    monkeypatch.setattr(training_run, "average_precision", lambda *_: dict.fromkeys(METRICS, next(values)))
    assert run(data, tmp_path, "--epochs", "3", "--batch-size", "14") == 0
    best = checkpoint.load_checkpoint(tmp_path / "best.pt")
    assert best["epoch"] == 2 and best["metrics"][-1]["AP"] == 30 and weights(tmp_path)["epoch"] == 3
    assert run(data, tmp_path, "--epochs", "4", "--batch-size", "14", "--resume") == 0
    assert checkpoint.load_checkpoint(tmp_path / "best.pt")["epoch"] == 2
    assert run(data, tmp_path, "--epochs", "5", "--batch-size", "14", "--resume") == 0
    assert checkpoint.load_checkpoint(tmp_path / "best.pt")["epoch"] == 5


def test_processes_share_the_batches_of_one():
    whole = engine.epoch_batches(14, 4, seed=3, epoch=1)
    parts = [engine.epoch_batches(14, 4, seed=3, epoch=1, rank=rank, count=2) for rank in (0, 1)]
    assert [one + two for one, two in zip(*parts)] == whole
    assert {index for batch in whole for index in batch} == set(range(14)) and {len(batch) for batch in whole} == {4}
    assert engine.epoch_batches(14, 4, seed=3, epoch=2) != whole
    assert [len(batch) for batch in engine.epoch_batches(1, 4, seed=0, epoch=0)] == [4]


def test_schedule_warms_up_and_falls():
    optimizer, schedule = schedules.warmup_and_falls(torch.nn.Linear(1, 1), rate=1.0, warmup=4, falls=[6, 8])
    rates = []
    for _ in range(10):
        rates.append(schedule.get_last_lr()[0])
        optimizer.step()
        schedule.step()
    assert rates == pytest.approx([1 / 3, 1 / 2, 2 / 3, 5 / 6, 1, 1, 0.1, 0.1, 0.01, 0.01])


def parsed(*more):
    return train.parse(["--output", "x", *more])


def test_the_paper_is_the_recipe_of_large_models_and_small_that_of_the_small_one():
    options = parsed("--model", "retinanet_resnet50_fpn")
    assert (options.recipe, options.epochs, options.batch_size, options.lr, options.exponent) == (
        "paper",
        14,
        16,
        0.01,
        0.5,
    )
    assert (options.box_loss_weight, options.pretrain_steps, options.clip, options.warmup) == (1, 0, 35, 500)
    assert options.augment == "flip"
    assert recipes.learning_rate_falls(options, 100) == [800, 1100]  # starts of epochs 9 and 12
    for options in (parsed(), parsed("--recipe", "small")):
        assert (options.recipe, options.exponent, options.box_loss_weight) == ("small", 0.5, 4.0)
        assert options.box_loss is None and options.augment == "none"
    assert parsed("--recipe", "paper", "--exponent", "1").exponent == 1
    assert parsed("--exponent", "0.7", "--lr", "0.1").exponent == 0.7
    assert parsed("--loss", "focal").box_loss == "smooth_l1"  # the model's own box loss takes no factor
    assert parsed("--recipe", "small", "--model", "fcos_resnet50_fpn").box_loss_weight == 1


@pytest.mark.parametrize("epochs", [1, 2, 3, 4, 14])
def test_falls_keep_their_share_of_short_runs_and_the_warmup_stays_short(epochs):
    """Epochs 1 and 2 used to train at a hundredth and a tenth of the rate, 4 fell twice at once."""
    options = parsed("--recipe", "paper", "--epochs", str(epochs))
    for steps in (3, 10, 100):
        first, second = recipes.learning_rate_falls(options, steps)
        total = epochs * steps
        assert 8 / 14 * total <= first < second <= total and second - 11 / 14 * total < 1
        assert recipes.warmup_steps(options, steps) <= total / 10
    assert recipes.learning_rate_falls(parsed("--recipe", "paper", "--lr-steps", "3"), 10) == [20]
    assert "0.01 after 140 steps, 0.001 after 800 steps, 0.0001 after 1,100 steps" in recipes.describe_schedule(
        parsed("--recipe", "paper"), 1600
    )


# Each process writes its gradients; the parent compares.
_PROCESS = """
import sys, torch
torch.set_num_threads(1)
from ghm_triton.detection.training.processes import join_processes
from ghm_triton.detection.training.engine import Trainer
torch.manual_seed(0)
sys.path.insert(0, {tests!r})
from test_detection_train import gradients, scenes
with join_processes(torch.device("cpu")) as processes:
    images, targets = scenes()
    part = slice(0, 2) if processes.rank == 0 else slice(2, 4)
    found = gradients(images[part], targets[part], processes)
    flags = processes.any(processes.rank == 1), processes.any(False)
    torch.save((*found, flags), f"{folder}/{{processes.rank}}.pt")
"""


def scenes():
    """Four images: of 1 and 3 objects for one process, none for the other."""
    style = digit_drawing.SceneStyle(size=64, digits=(1, 3), height=(12, 30))
    images, targets = map(list, zip(*digit_scenes.DigitScenes(4, split="train", style=style)))
    empty = {"boxes": torch.zeros(0, 4), "labels": torch.zeros(0, dtype=torch.int64)}
    return images, targets[:2] + [empty, empty]


def gradients(images, targets, together, steps=2):
    """Of a harmonized model whose batch norms stand still, after each step, and the losses' counts."""
    torch.manual_seed(0)
    model = use_losses(small_retinanet(10, size=64), LossOptions(), sync=True)
    for module in model.modules():
        if isinstance(module, torch.nn.BatchNorm2d):
            module.eval().train = lambda mode=True: None
    optimizer = torch.optim.SGD(model.parameters(), lr=0.01)
    schedule = torch.optim.lr_scheduler.ConstantLR(optimizer)
    trainer = engine.Trainer(model, optimizer, schedule, processes=together, clip=1e9)
    model.head.train()
    found = []
    for _ in range(steps):
        trainer.train_step(images, targets)
        found.append({name: one.grad.clone() for name, one in model.named_parameters() if one.grad is not None})
    return found, {name: value for name, value in model.state_dict().items() if "running_counts" in name}


@pytest.mark.slow
def test_two_processes_have_the_gradients_of_one(tmp_path):
    """One of them has all objects, the other none."""
    script = tmp_path / "process.py"
    script.write_text(_PROCESS.format(tests=str(__file__.rsplit("/", 1)[0]), folder=tmp_path))
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2", str(script)]
    subprocess.run(command, check=True, timeout=120, capture_output=True)
    images, targets = scenes()
    expected, counts = gradients(images, targets, processes.Processes(torch.device("cpu")))
    for rank in (0, 1):
        found, found_counts, flags = torch.load(tmp_path / f"{rank}.pt")
        assert flags == (True, False)
        for mine, whole in zip(found, expected):
            assert mine.keys() == whole.keys()
            for name, value in whole.items():
                torch.testing.assert_close(mine[name], value, rtol=1e-3, atol=1e-6 + 1e-4 * value.abs().max().item())
        for name, value in counts.items():
            torch.testing.assert_close(found_counts[name], value, rtol=1e-6, atol=0)


@pytest.mark.slow
def test_torchrun_trains_and_stops_on_term(data, tmp_path):
    """TERM reaches torchrun, and from it the group of each process, workers included; nothing used to be saved."""
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2"]
    command += ["-m", "ghm_triton.detection.train", "--data", str(data), "--output", str(tmp_path / "run"), *FAST]
    command += ["--epochs", "100", "--workers", "1"]
    with open(tmp_path / "out.txt", "w") as out:
        process = subprocess.Popen(command, stdout=out, stderr=out)
        deadline = time.monotonic() + 240
        while not (tmp_path / "run" / "metrics.csv").exists():
            assert process.poll() is None and time.monotonic() < deadline, (tmp_path / "out.txt").read_text()[-2000:]
            time.sleep(0.1)
        process.terminate()
        process.wait(timeout=120)
    text = (tmp_path / "out.txt").read_text()
    assert text.count("stopped; repeat the command with --resume") == 1, text[-2000:]
    assert "DataLoader worker" not in text
    state = weights(tmp_path / "run")
    assert state["epoch"] >= 1 and len(state["random"]) == 2 and state["metrics"][0]["AP"] >= 0


@pytest.mark.slow
def test_a_signal_leaves_a_worker_that_is_starting(data, tmp_path, monkeypatch):
    """PyTorch ends a worker at TERM until the worker ignores it, and with the worker the training."""

    def interrupted(worker):
        os.kill(os.getpid(), signal.SIGTERM)
        signals.ignore_stop_signals(worker)

    monkeypatch.setattr(engine, "ignore_stop_signals", interrupted)
    assert run(data, tmp_path / "run", "--epochs", "1", "--workers", "1") == 0
    assert weights(tmp_path / "run")["epoch"] == 1


@pytest.mark.slow
def test_evaluate_and_predict(data, tmp_path, capsys):
    """The numbers are those that training wrote; the boxes of a picture are those of the evaluation."""
    import json

    assert run(data, tmp_path / "run", "--epochs", "1") == 0
    path = str(tmp_path / "run" / "checkpoint.pt")
    assert evaluate.main([path, "--data", str(data), "--output", str(tmp_path / "all"), "--device", "cpu"]) == 0
    numbers = json.loads((tmp_path / "all" / "metrics.json").read_text())
    written = pd.read_csv(tmp_path / "run" / "metrics.csv").iloc[-1]
    assert list(numbers) == list(METRICS)
    for name, value in numbers.items():
        assert written[name] == pytest.approx(value, rel=1e-4)

    state = checkpoint.load_checkpoint(path)
    state["model"]["head.classification_head.cls_logits.bias"] += 5  # so soon it finds nothing otherwise
    checkpoint.save_checkpoint(path, state)
    assert evaluate.main([path, "--data", str(data), "--output", str(tmp_path / "all"), "--device", "cpu"]) == 0
    found = json.loads((tmp_path / "all" / "detections.json").read_text())
    picture = str(data / "val" / "000001.png")
    options = ["--output", str(tmp_path / "one"), "--threshold", "0", "--device", "cpu"]
    assert predict.main([path, picture, *options]) == 0
    objects = json.loads((tmp_path / "one" / "000001.json").read_text())["objects"]
    of_image = [one for one in found if one["image_id"] == 1]
    assert len(objects) == len(of_image) > 0
    for one, other in zip(objects, of_image):
        assert one["category_id"] == other["category_id"] and one["category"] == str(one["category_id"] - 1)
        assert one["score"] == pytest.approx(other["score"], rel=1e-4)
        assert one["bbox"] == pytest.approx(other["bbox"], rel=1e-3, abs=1e-2)
    from PIL import Image

    assert Image.open(tmp_path / "one" / "000001.png").size == (640, 640)  # enlarged for the captions


@pytest.mark.slow
def test_amp_trains(data, tmp_path):
    assert run(data, tmp_path / "run", "--epochs", "1", "--amp", "--min-size", "32") == 0
    assert all(value.isfinite().all() for value in weights(tmp_path / "run")["model"].values())
