"""Trains a small RetinaNet with each pair of losses on scenes of digits, and compares their AP.

    python -m perf.accuracy [--threads 1] [--max-minutes 60] [--out FILE.csv]

A row is appended after each run; started again, it goes on where it stopped. It ends in a table and a plot.
"""

import argparse
import dataclasses
import math
import sys
import time
from collections.abc import Sequence
from pathlib import Path

import pandas as pd
import torch
from torch import nn

from ghm_triton.detection.argument_types import real, whole
from ghm_triton.detection.data.digit_drawing import STYLES
from ghm_triton.detection.data.digit_scenes import DigitScenes
from ghm_triton.detection.losses import LossOptions, use_losses
from ghm_triton.detection.models.small import SmallBackbone, small_retinanet
from ghm_triton.detection.pretrain import pretrain
from ghm_triton.detection.training.checkpoint import load_checkpoint, save_checkpoint
from ghm_triton.detection.training.engine import train_one_cycle as train
from ghm_triton.detection.training.evaluation import METRICS, average_precision, detect

from .accuracy_plan import COMPARED, KEY, PAIRS, STAGES, TASKS, Run, describe, markdown, plan, plot, runs_of
from .table import Table, now, origin

STYLE = STYLES["hard"]
CURVE_POINTS = 4  # AP is also measured on this many parts of the way, on fewer scenes
COLUMNS = KEY + list(METRICS) + ["curve", "seconds_per_step", "threads", "scenes", "torch", "commit", "measured_at"]


def start_weights(path: Path, *, steps: int) -> dict:
    """The pre-trained backbone, the same for all runs; made once and kept in `path`."""
    if not path.exists():
        torch.manual_seed(0)
        backbone = SmallBackbone()
        right = pretrain(backbone, steps=steps)
        path.parent.mkdir(parents=True, exist_ok=True)
        save_checkpoint(path, {"backbone": backbone.state_dict(), "right_percent": right})
    state = load_checkpoint(path)
    print(f"backbone {path}: {state['right_percent']:.1f}% of held-out crops right")
    # The pyramid was not part of it: each seed has its own.
    return {name: value for name, value in state["backbone"].items() if not name.startswith("pyramid.")}


def build(run: Run, backbone: dict) -> nn.Module:
    """The model of `run`, with its losses, on the pre-trained backbone."""
    torch.manual_seed(run.seed)
    model = small_retinanet(TASKS[run.task], size=STYLE.size)
    model.backbone.load_state_dict(backbone, strict=False)
    options = {name: getattr(run, name) for name in ("bins", "momentum", "variant", "mu", "exponent")}
    return use_losses(model, LossOptions(**PAIRS[run.losses], box_loss_weight=run.box_weight, **options))


def measure(run: Run, backbone: dict, *, scenes: int) -> dict:
    """Train and evaluate; the values of the row. The grid is evaluated on other scenes than what is reported."""
    model = build(run, backbone)
    common = {"classes": TASKS[run.task], "style": STYLE}
    held_out = DigitScenes(scenes, split="val", seed=1 if run.stage == "grid" else 0, **common)
    few = DigitScenes(math.ceil(scenes / 4), split="val", seed=2, **common)
    points, elsewhere, done = [], 0.0, 0

    def after_step(targets):
        nonlocal done, elsewhere
        done += 1
        if run.stage != "grid" and done % math.ceil(run.steps / CURVE_POINTS) == 0:
            paused = time.perf_counter()
            points.append(f"{done}:{average_precision(few.coco(), detect(model, few))['AP']:.2f}")
            elsewhere += time.perf_counter() - paused

    start = time.perf_counter()
    training = DigitScenes(run.steps * run.batch, split="train", seed=run.seed, **common)
    train(model, training, batch=run.batch, rate=run.rate, seed=run.seed, after_step=after_step)
    seconds = time.perf_counter() - start - elsewhere
    result = average_precision(held_out.coco(), detect(model, held_out))
    return result | {"curve": " ".join(points), "seconds_per_step": seconds / run.steps, "scenes": scenes}


def next_run(rows: pd.DataFrame, options: argparse.Namespace) -> tuple[Run | None, int]:
    """(the first run of the plan without a row, how many are without); (None, 0) when all are there."""
    done = set(runs_of(rows))
    runs = plan(
        rows,
        stages=options.stages,
        compared=[pair for pair in COMPARED if pair[0] in options.losses and pair[1] in options.exponents],
        tasks=options.tasks,
        steps=options.steps,
        seeds=options.seeds,
        ablation_seeds=options.ablation_seeds,
    )
    left = [run for run in runs if run not in done]
    return (left[0], len(left)) if left else (None, 0)


def main(arguments: Sequence[str] | None = None) -> int:
    """Do the runs that are left, as far as time allows, and print the table."""
    options = _parse(arguments)
    if options.threads:
        torch.set_num_threads(options.threads)
    started = time.monotonic()
    backbone, longest = None, 0.0
    scenes = 16 if options.smoke else options.scenes
    table = Table(options.out, COLUMNS, KEY)
    while True:
        rows = table.read()  # anew: another session may have appended
        run, left = next_run(rows, options)
        minutes = (time.monotonic() - started) / 60
        if run is None or minutes + longest > options.max_minutes:
            break
        if backbone is None:
            backbone = start_weights(options.backbone, steps=5 if options.smoke else 1500)
        print(f"{left} runs left: {run}", flush=True)
        try:
            values = measure(run, backbone, scenes=scenes)
        except FloatingPointError as error:  # it would fail again when continued
            print(error)
            values = dict.fromkeys(METRICS, 0.0) | {
                "curve": f"{run.steps}:0",
                "seconds_per_step": math.nan,
                "scenes": scenes,
            }
        about = {name: value for name, value in origin().items() if name in COLUMNS}
        about |= {"threads": torch.get_num_threads(), "measured_at": now()}
        table.append(dataclasses.asdict(run) | values | about)
        longest = max(longest, (time.monotonic() - started) / 60 - minutes)
        scores = "AP {AP:.1f}, AP50 {AP50:.1f}, {seconds_per_step:.2f} s/step".format_map(values)
        print(f"{describe(run)}, {run.stage}, seed {run.seed}: {scores}", flush=True)
    if left:
        print(f"{left} runs are left; the same command goes on from there.")
    print(markdown(rows))
    image = options.out.with_suffix(".png")
    plot(rows, image)
    print(f"{len(rows)} rows in {options.out}")
    return 0


def _parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m perf.accuracy", description=__doc__.splitlines()[0])
    parser.add_argument("--stages", nargs="+", choices=STAGES, default=list(STAGES), help="(all)")
    parser.add_argument("--tasks", nargs="+", choices=list(TASKS), default=list(TASKS), help="(all)")
    parser.add_argument("--losses", nargs="+", choices=list(PAIRS), default=list(PAIRS), help="(all)")
    exponents = sorted({exponent for _, exponent in COMPARED})
    parser.add_argument("--exponents", nargs="+", type=float, choices=exponents, default=exponents, help="(all)")
    parser.add_argument("--seeds", type=whole(1), default=5, help="of each pair of losses (5)")
    parser.add_argument("--ablation-seeds", type=whole(1), default=2, help="of each setting (2)")
    parser.add_argument("--steps", type=whole(1), help="(800)")
    parser.add_argument("--scenes", type=whole(1), default=300, help="held out, to evaluate on (300)")
    parser.add_argument("--threads", type=whole(1), help="of PyTorch (as PyTorch chooses)")
    parser.add_argument("--max-minutes", type=real(0), default=math.inf, help="start no run that would end later")
    parser.add_argument("--smoke", action="store_true", help="4 steps a run, to see that everything runs")
    parser.add_argument("--out", type=Path, help="CSV to go on with (perf/results/accuracy-cpu.csv)")
    parser.add_argument("--backbone", type=Path, help="of the pre-trained weights (beside the CSV: OUT-backbone.pt)")
    options = parser.parse_args(arguments)
    smoke = "-smoke" if options.smoke else ""
    options.out = options.out or Path(f"perf/results/accuracy-cpu{smoke}.csv")
    options.backbone = options.backbone or options.out.with_name(f"{options.out.stem}-backbone{smoke}.pt")
    options.steps = options.steps or (4 if options.smoke else 800)
    return options


if __name__ == "__main__":
    sys.exit(main())
