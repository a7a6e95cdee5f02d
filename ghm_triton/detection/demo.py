"""Train a small RetinaNet with GHM-C and GHM-R, and one with focal loss, on handwritten digits, in minutes on a CPU.

    python -m ghm_triton.detection.demo
    python -m ghm_triton.detection.demo --alone --steps 1000

It draws its detections in two held-out scenes next to the ground truth, AP over the steps, and the shares of the
gradient.
"""

import argparse
import copy
import math
import pathlib
import sys
import time
from typing import NamedTuple

import torch
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from torch import nn

from ..arguments import command_parser, whole
from .data.digit_drawing import STYLES
from .data.digit_scenes import DigitScenes
from .losses import LossOptions, use_losses
from .models.small import SmallBackbone, small_retinanet
from .predict import predict
from .pretrain import STEPS, pretrain
from .training.curves import draw_ap
from .training.density_figure import draw_counts, draw_gradient, draw_weights, observe
from .training.drawing import draw_objects
from .training.engine import train_one_cycle
from .training.evaluation import average_precision, detect
from .training.recipes import SMALL

LOSSES = {  # both use the learning rate and the box weight that a grid search found best for focal loss
    f"GHM-C + GHM-R, exponent {SMALL['exponent']}": LossOptions(
        "ghm", exponent=SMALL["exponent"], box_loss_weight=SMALL["box_loss_weight"]
    ),
    "focal + smooth L1": LossOptions("focal", "smooth_l1", box_loss_weight=SMALL["box_loss_weight"]),
}
_POINTS = 5  # measurements of AP over the steps, the last one at the end
_THRESHOLD = 0.5  # minimum score of the detections that are drawn


class Result(NamedTuple):
    """The results of a training: AP over the steps, COCO's metrics at the end, and seconds per step."""

    model: nn.Module
    curve: dict[int, float]
    metrics: dict[str, float]
    seconds_per_step: float


def run(losses: LossOptions, backbone: SmallBackbone, *, classes: int, steps: int, seed: int, smoke: bool) -> Result:
    """Train with `losses` on a copy of `backbone`."""
    torch.manual_seed(seed)
    common = {"classes": classes, "style": STYLES["hard"]}
    held_out = DigitScenes(8 if smoke else 200, split="val", **common)
    model = small_retinanet(classes)
    model.backbone = copy.deepcopy(backbone)
    use_losses(model, losses)
    curve, paused = {}, 0.0
    every = math.ceil(steps / _POINTS)
    done = 0

    def after_step(targets: list[dict]) -> None:
        nonlocal done, paused
        done += 1
        if done % every == 0 and done < steps:
            start = time.perf_counter()
            results = detect(model, held_out, indices=range(len(held_out)))
            curve[done] = average_precision(held_out.coco(), results)["AP"]
            paused += time.perf_counter() - start

    batch = SMALL["batch_size"]
    scenes = DigitScenes(steps * batch, split="train", seed=seed, **common)
    start = time.perf_counter()
    train_one_cycle(model, scenes, batch=batch, rate=SMALL["lr"], seed=seed, after_step=after_step)
    seconds = time.perf_counter() - start - paused
    metrics = average_precision(held_out.coco(), detect(model, held_out))
    curve[steps] = metrics["AP"]
    return Result(model, curve, metrics, seconds / steps)


def draw(path: pathlib.Path, results: dict[str, Result], *, classes: int, seed: int) -> None:
    """Draw two held-out scenes with the truth and the detections, AP over the steps, and the gradient density."""
    common = {"classes": classes, "style": STYLES["hard"]}
    figure = Figure(figsize=(20, 9.5), layout="constrained")
    scenes_axes, (ap, counts, weights, gradient) = figure.subplots(2, 4)
    (name, result), *_ = results.items()
    scenes = DigitScenes(50, split="val", **common)
    categories = scenes.coco()["categories"]
    by_digits = sorted(range(len(scenes)), key=lambda index: len(scenes.scene(index)[2]), reverse=True)
    for index, truth, found in zip(by_digits, scenes_axes[::2], scenes_axes[1::2]):
        image, target = scenes[index]
        image, labels = (255 * image).round().byte(), target["labels"]
        captions = [categories[label]["name"] for label in labels.tolist()]
        drawn = draw_objects(image, target["boxes"], labels, captions, classes)
        _show(truth, drawn, f"held-out scene: {len(labels)} digits")
        objects, drawn = predict(result.model.eval(), categories, image, threshold=_THRESHOLD)
        _show(found, drawn, f"{name}: {len(objects)} detections\n(score from {_THRESHOLD})")
    curves = {other: list(one.curve.values()) for other, one in results.items()}
    draw_ap(ap, list(result.curve), curves, xlabel="step")
    ap.set_title("average precision on held-out scenes")
    ap.legend(loc="lower right", fontsize="small")
    items = [DigitScenes(16, split="train", seed=seed, **common)[index] for index in range(16)]
    seen = observe(result.model, items)["classification"]
    draw_counts(counts, seen, "classification")
    draw_weights(weights, seen, "classification")
    draw_gradient(gradient, seen, "classification")
    figure.savefig(path, dpi=110, format="png")


def _show(axes: Axes, picture: torch.Tensor, title: str) -> None:
    axes.imshow(picture.permute(1, 2, 0).numpy())
    axes.set_title(title)
    axes.axis("off")


def table(results: dict[str, Result]) -> str:
    """Return a table of the results."""
    lines = [f"{'losses':28}{'AP':>7}{'AP50':>7}{'AP75':>7}{'s/step':>9}"]
    for name, one in results.items():
        numbers = "".join(f"{one.metrics[metric]:7.1f}" for metric in ("AP", "AP50", "AP75"))
        lines.append(f"{name:28}{numbers}{one.seconds_per_step:9.2f}")
    return "\n".join(lines)


def main(arguments: list[str] | None = None) -> int:
    """Run the demo. Return 1 if the picture cannot be written."""
    parser = command_parser("ghm_triton.detection.demo", __doc__)
    parser.add_argument("--alone", action="store_true", help="leave out the training with focal loss")
    parser.add_argument("--classes", type=int, choices=[1, 10], default=10, help="1: all digits are one class")
    parser.add_argument("--steps", type=whole(1), default=500, help="steps of each training, of 8 images")
    parser.add_argument(
        "--seed", type=whole(0, 2**63 - 1), default=0, help="random seed of the weights and the training scenes"
    )
    parser.add_argument("--threads", type=whole(1), help="CPU threads; without it, PyTorch chooses")
    parser.add_argument("--output", metavar="FILE", default="demo.png", help="image to write")
    parser.add_argument("--smoke", action="store_true", help="run only a few steps, to check that everything works")
    options = parser.parse_args(arguments)
    path = pathlib.Path(options.output)
    if options.threads:
        torch.set_num_threads(options.threads)
    try:
        _check_writable(path)
    except OSError as error:
        print(f"error: output must be a file that can be written, got {path}: {error}", file=sys.stderr)
        return 1
    try:
        results = _train(options)
    except KeyboardInterrupt:
        print("stopped; no picture is written", file=sys.stderr)
        return 130
    draw(path, results, classes=options.classes, seed=options.seed)
    print(table(results))
    print(f"picture: {path.resolve()}")
    print("next: python -m ghm_triton.detection.train --help, on your own images in COCO's format")
    return 0


def _check_writable(path: pathlib.Path) -> None:
    """Raise an OSError if the file cannot be written. An existing file stays as it is."""
    path.parent.mkdir(parents=True, exist_ok=True)
    existed = path.exists()
    path.open("ab").close()
    if not existed:
        path.unlink()


def _train(options: argparse.Namespace) -> dict[str, Result]:
    """Return the results by the names of the losses. All trainings start from the same pre-trained backbone."""
    steps = 2 if options.smoke else options.steps
    torch.manual_seed(options.seed)
    backbone = SmallBackbone()
    pretrain(backbone, steps=2 if options.smoke else STEPS)
    results = {}
    for name, losses in list(LOSSES.items())[: 1 if options.alone else 2]:
        print(f"{name}: {steps} steps of {SMALL['batch_size']} images, {torch.get_num_threads()} threads", flush=True)
        results[name] = run(
            losses, backbone, classes=options.classes, steps=steps, seed=options.seed, smoke=options.smoke
        )
    return results


if __name__ == "__main__":
    sys.exit(main())
