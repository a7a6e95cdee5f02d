"""Train a small RetinaNet with GHM-C and GHM-R on scenes of handwritten digits, and print its COCO AP on others.

python -m ghm_triton.detection.demo
"""

import argparse
import time

import torch

from .argument_types import whole
from .data.digit_scenes import DigitScenes
from .losses import LossOptions, use_losses
from .models.small import small_retinanet
from .training.engine import train_one_cycle
from .training.evaluation import average_precision, detect

BATCH = 8
RATE = 2e-3

LOSSES = LossOptions("ghm", exponent=0.5, box_loss_weight=4.0)


def main(arguments: list[str] | None = None) -> dict[str, float]:
    """Run the demo; returns COCO's twelve numbers on the held-out scenes."""
    options = _parse(arguments)
    torch.manual_seed(options.seed)
    if options.threads:
        torch.set_num_threads(options.threads)
    common = {"seed": options.seed, "classes": options.classes}
    held_out = DigitScenes(16 if options.smoke else 200, split="val", **common)

    model = small_retinanet(options.classes)
    if options.loss == "ghm":
        use_losses(model, LOSSES)
    start = time.perf_counter()
    train_one_cycle(model, DigitScenes(options.steps * BATCH, split="train", **common), batch=BATCH, rate=RATE)
    seconds = time.perf_counter() - start

    result = average_precision(held_out.coco(), detect(model, held_out))
    threads = torch.get_num_threads()
    print(f"{options.loss}: {options.steps} steps of {BATCH} images in {seconds:.0f} s, {threads} threads")
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
