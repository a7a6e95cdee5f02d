"""Train a small RetinaNet with GHM-C and GHM-R on scenes of handwritten digits, and print its COCO AP on others.

python -m ghm_triton.detection.demo
"""

import argparse
import copy
import math
import time
from collections.abc import Callable

import torch
from torch import nn

from .digits import DigitScenes
from .engine import Trainer
from .evaluation import average_precision, detect
from .options import whole
from .retinanet import harmonize
from .small import small_retinanet

BATCH = 8
RATE = 2e-3

# Where these leave the paper's settings, training is shorter and batches are smaller than there (25 thousand anchors).
# Most regions of hard examples are empty in most steps. Their moving average decays, and the next example weighs up to
# 1 / (1 - momentum) times too much: no average. And box deltas are far from 0.02 when starting from nothing.
LOSSES = {"momentum": 0.0, "mu": 0.1, "box_loss_weight": 20.0}


def train(
    model: nn.Module,
    scenes: DigitScenes,
    *,
    batch: int = BATCH,
    rate: float = RATE,
    epochs: int = 1,
    seed: int = 0,
    after_step: Callable[[list[dict]], None] = lambda targets: None,
) -> Trainer:
    """`epochs` passes over `scenes`: AdamW, one-cycle learning rate with its maximum at `rate`, a progress bar."""
    optimiser = torch.optim.AdamW(model.parameters(), lr=rate, weight_decay=1e-4)
    steps = epochs * math.ceil(len(scenes) / batch)
    trainer = Trainer(model, optimiser, torch.optim.lr_scheduler.OneCycleLR(optimiser, rate, total_steps=steps))
    for _ in range(epochs):
        trainer.train_epoch(scenes, batch=batch, seed=seed, after_step=after_step)
    return trainer


def box_error(model: nn.Module, scenes: DigitScenes) -> float:
    """torchvision's L1 loss of the boxes of all `scenes`, whatever the model is trained with.

    A harmonized loss tells little of progress: it is the mean of the losses of the regions, and stays what it is when
    examples move from the hard regions to the easy ones.
    """
    plain = harmonize(copy.deepcopy(model), bins=None, box_bins=None).train()
    images, targets = zip(*(scenes[index] for index in range(len(scenes))))
    with torch.no_grad():
        return plain(list(images), list(targets))["bbox_regression"].item()


def main(arguments: list[str] | None = None) -> dict[str, float]:
    """Run the demo; COCO's twelve numbers on the held-out scenes, and the box error "before" and "after"."""
    options = _parse(arguments)
    torch.manual_seed(options.seed)
    if options.threads:
        torch.set_num_threads(options.threads)
    common = {"seed": options.seed, "classes": options.classes}
    held_out = DigitScenes(16 if options.smoke else 200, split="val", **common)
    few = DigitScenes(16, split="val", **common)

    model = small_retinanet(options.classes)
    if options.loss == "ghm":
        harmonize(model, **LOSSES)
    before = box_error(model, few)
    start = time.perf_counter()
    train(model, DigitScenes(options.steps * BATCH, split="train", **common))
    seconds = time.perf_counter() - start

    result = average_precision(held_out.coco(), detect(model, held_out))
    result |= {"before": before, "after": box_error(model, few)}
    threads = torch.get_num_threads()
    print(f"{options.loss}: {options.steps} steps of {BATCH} images in {seconds:.0f} s, {threads} threads")
    print("L1 loss of boxes on held-out digits {before:.3f} before, {after:.3f} after".format_map(result))
    print("COCO AP {AP:.1f}, AP50 {AP50:.1f}, AP75 {AP75:.1f} on held-out digits".format_map(result))
    return result


def _parse(arguments: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description="Train a small RetinaNet on handwritten digits and print its COCO AP.")
    parser.add_argument("--loss", choices=["ghm", "focal"], default="ghm", help="focal: as torchvision has it (ghm)")
    parser.add_argument("--classes", type=int, choices=[1, 10], default=1, help="1: every digit is one class (1)")
    parser.add_argument("--steps", type=whole(1), help="of 8 images each (800)")
    parser.add_argument("--seed", type=whole(0), default=0, help="(0)")
    parser.add_argument("--threads", type=whole(1), help="of the processor (PyTorch's choice)")
    parser.add_argument("--smoke", action="store_true", help="20 steps, to see that everything runs")
    options = parser.parse_args(arguments)
    if options.steps is None:
        options.steps = 20 if options.smoke else 800
    return options


if __name__ == "__main__":
    main()
