"""Show the anchors with the largest gradient norm, which are often wrong or missing boxes.

    python -m ghm_triton.detection.hardest RUN/checkpoint.pt --data DIR --output RUN/hardest.png

Each anchor is orange, and the annotated boxes are white.
"""

import copy
import math
import pathlib
import sys
from typing import NamedTuple

import torch
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle
from torch import Tensor, nn
from torchvision.models.detection import FCOS
from torchvision.models.detection.ssd import SSD
from torchvision.ops import nms
from tqdm import tqdm

from ..arguments import command_parser, device, plain_warnings, whole
from .data.coco import CocoBoxes
from .data.split_files import locate_split
from .heads import harmonize
from .models.builder import build_from
from .text import counted
from .training.checkpoint import load_checkpoint
from .training.density_figure import Recorder

_PER_IMAGE = 2
_CANDIDATES = 50  # per image; most of these anchors overlap one another
_COLUMNS = 6


class Hard(NamedTuple):
    """An anchor and one of its scores.

    Attributes:
        index: The image in its data set.
        box: xyxy, in pixels of the image.
        norm: The gradient norm, 0 to 1: the score's distance to its target.
        label: The annotated label of the anchor, -1 for background.
        scored: The label that the score belongs to.
        score: The score.
    """

    index: int
    box: list[float]
    norm: float
    label: int
    scored: int
    score: float

    def describe(self, categories: list[dict]) -> str:
        """Return the annotated class and the score in words."""
        annotated = "background" if self.label < 0 else categories[self.label]["name"]
        return f"annotated: {annotated}\nscore of {categories[self.scored]['name']}: {self.score:.2f}"


class _Probe:
    """A copy of a detector, in evaluation mode, that records the inputs of its losses instead of computing them.

    Args:
        model: A RetinaNet, FCOS or SSD.
    """

    def __init__(self, model: nn.Module):
        self.softmax = isinstance(model, SSD)
        self.recorder, self.seen = Recorder(), {}
        regression = None if isinstance(model, FCOS) else Recorder()
        self.model = harmonize(copy.deepcopy(model), self.recorder, regression).eval()
        self.model.training = True  # of the detector alone, so that it matches anchors with the targets
        self.model.transform.register_forward_hook(lambda part, given, output: self.seen.update(images=output[0]))
        self.model.anchor_generator.register_forward_hook(lambda part, given, output: self.seen.update(anchors=output))

    def look(self, items: list[tuple[Tensor, dict]]) -> tuple[Tensor, Tensor, Tensor, list[Tensor]]:
        """Return scores [images, anchors, classes], labels, which anchors count, and their boxes per image."""
        place = next(self.model.parameters()).device
        images = [image.to(place) for image, _ in items]
        targets = [{name: target[name].to(place) for name in ("boxes", "labels")} for _, target in items]
        with torch.no_grad():
            self.model(images, targets)
        logits, labels, *counted = self.recorder.inputs
        if self.softmax:  # over the background, label 0, and the classes; all anchors of the batch in one dimension
            scores = logits.float().softmax(dim=-1)[:, 1:].unflatten(0, (len(items), -1))
            labels = labels.unflatten(0, (len(items), -1)) - 1
        else:
            scores = logits.float().sigmoid()
        counted = counted[0].bool() if counted else torch.ones_like(labels, dtype=torch.bool)
        sizes = zip(images, self.seen["images"].image_sizes)
        factors = [(image.shape[2] / width, image.shape[1] / height) for image, (height, width) in sizes]
        anchors = [boxes * boxes.new_tensor(factor * 2) for boxes, factor in zip(self.seen["anchors"], factors)]
        return scores, labels, counted, anchors


def find_hardest(model: nn.Module, data: CocoBoxes, *, count: int, batch: int = 8) -> list[Hard]:
    """Return the anchors with the largest gradient norm, at most two per image, the hardest first.

    Args:
        model: A RetinaNet, FCOS or SSD for the labels of `data`. It stays as it is.
        data: The images and their boxes.
        count: Number of anchors.
        batch: Images per batch.
    """
    probe, hardest = _Probe(model), []
    for first in tqdm(range(0, len(data), batch), desc="looking", unit="batch"):
        items = [(index, data[index]) for index in range(first, min(first + batch, len(data)))]
        items = [(index, item) for index, item in items if not item[1]["unreadable"]]
        if items:
            hardest += _of_batch([index for index, _ in items], *probe.look([item for _, item in items]))
            hardest = sorted(hardest, key=lambda one: -one.norm)[:count]
    return hardest


def _of_batch(indices: list[int], scores: Tensor, labels: Tensor, counted: Tensor, anchors: list[Tensor]) -> list[Hard]:
    targets = labels[..., None] == torch.arange(scores.shape[-1], device=scores.device)
    norms, classes = torch.where(counted[..., None], (scores - targets.float()).abs(), -1).max(dim=-1)
    found = []
    for index, score, label, norm, of_class, boxes in zip(indices, scores, labels, norms, classes, anchors):
        top = norm.topk(min(_CANDIDATES, len(norm))).indices
        for anchor in top[nms(boxes[top], norm[top], 0.1)][:_PER_IMAGE].tolist():
            one = of_class[anchor].item()
            place = index, boxes[anchor].tolist(), norm[anchor].item(), label[anchor].item()
            found.append(Hard(*place, one, score[anchor, one].item()))
    return found


def draw_hardest(path: pathlib.Path, data: CocoBoxes, hardest: list[Hard], categories: list[dict]) -> None:
    """Draw each anchor (orange) in its image, with the annotated boxes (white), and save the figure to `path`."""
    rows = math.ceil(len(hardest) / _COLUMNS)
    figure = Figure(figsize=(3 * _COLUMNS, 3.6 * rows), layout="constrained")
    panels = figure.subplots(rows, _COLUMNS, squeeze=False).flatten()
    for axes in panels:
        axes.axis("off")
    for axes, one in zip(panels, hardest):
        image, target = data[one.index]
        axes.imshow(image.permute(1, 2, 0).numpy())
        for box in target["boxes"].tolist():
            _outline(axes, box, color="white", linewidth=1)
        _outline(axes, one.box, color="tab:orange", linewidth=2)
        left, top, right, bottom = one.box
        margin = 1.5 * max(right - left, bottom - top)
        axes.set_xlim(max(left - margin, 0), min(right + margin, image.shape[2]))
        axes.set_ylim(min(bottom + margin, image.shape[1]), max(top - margin, 0))
        name = data.images[one.index]["file_name"]
        axes.set_title(f"{name}\n{one.describe(categories)}", fontsize="small")
    figure.savefig(path, dpi=100, format="png")


def _outline(axes: Axes, box: list[float], **style) -> None:
    left, top, right, bottom = box
    axes.add_patch(Rectangle((left, top), right - left, bottom - top, fill=False, **style))


def main(arguments: list[str] | None = None) -> int:
    """Draw the page. Print an error in the input and return 1 for it."""
    parser = command_parser("ghm_triton.detection.hardest", __doc__)
    parser.add_argument("checkpoint", metavar="CHECKPOINT", help="checkpoint.pt or best.pt of a training")
    parser.add_argument("--data", metavar="DIR", help="data set in COCO's layout")
    parser.add_argument("--split", choices=["train", "val"], default="train", help="split to look at")
    for split in ("train", "val"):
        parser.add_argument(f"--{split}-json", metavar="FILE", help="annotations to use instead of those in --data")
        parser.add_argument(f"--{split}-images", metavar="DIR", help=f"folder of the images of --{split}-json")
    parser.add_argument("--count", type=whole(1), default=24, help="number of anchors, at most two per image")
    parser.add_argument("--output", metavar="FILE", default="hardest.png", help="picture to write")
    parser.add_argument("--device", type=device, default="auto", help="auto, cpu, cuda, cuda:N, ...")
    options = parser.parse_args(arguments)
    path = pathlib.Path(options.output)
    try:
        with plain_warnings():
            model, categories = build_from(load_checkpoint(options.checkpoint))
            ids = [category["id"] for category in categories]
            data = CocoBoxes(*locate_split(options, options.split), category_ids=ids)
            hardest = find_hardest(model.to(options.device), data, count=options.count)
        path.parent.mkdir(parents=True, exist_ok=True)
        draw_hardest(path, data, hardest, categories)
    except (ImportError, OSError, ValueError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    print(f"{path}: {counted(len(hardest), 'anchor')}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
