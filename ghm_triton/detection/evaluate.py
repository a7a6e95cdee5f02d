"""Print COCO's twelve metrics and the AP of each class for a checkpoint of `train`. --output also writes them.

    python -m ghm_triton.detection.evaluate RUN/best.pt --data DIR

A metric is -1 if the data has no objects of that size or class.
"""

import json
import pathlib
import sys

from tqdm import tqdm

from ..arguments import command_parser, device, plain_warnings
from .data.coco import CocoBoxes
from .data.split_files import locate_split
from .models.builder import build_from
from .training.checkpoint import load_checkpoint
from .training.evaluation import average_precision_by_class, detect

_CHUNK = 64  # images between two steps of the progress bar


def evaluate(
    checkpoint: str | pathlib.Path,
    annotations: str | pathlib.Path,
    images: str | pathlib.Path,
    *,
    device: str = "cpu",
) -> tuple[dict[str, float], list[dict], list[dict]]:
    """Evaluate a checkpoint on a data set.

    Returns:
        COCO's twelve metrics; a dict of "id", "name", "AP" and "AP50" per category; and the detections in COCO's
        result format. A metric is -1 where there are no objects.

    Raises:
        OSError, ValueError: The checkpoint or the data set is missing or invalid, or the data set has other categories
            than the checkpoint.
    """
    model, categories = build_from(load_checkpoint(checkpoint))
    data = CocoBoxes(annotations, images, category_ids=[category["id"] for category in categories])
    model.to(device)
    found = []
    for first in tqdm(range(0, len(data), _CHUNK), desc="detecting", unit="chunk"):
        found += detect(model, data, indices=range(first, min(first + _CHUNK, len(data))))
    metrics, by_class = average_precision_by_class(data.coco(), found)
    classes = [category | by_class.get(category["id"], {"AP": -1.0, "AP50": -1.0}) for category in categories]
    return metrics, classes, found


def main(arguments: list[str] | None = None) -> int:
    """Run the evaluation. Print an error in the input and return 1 for it."""
    parser = command_parser("ghm_triton.detection.evaluate", __doc__)
    parser.add_argument("checkpoint", metavar="CHECKPOINT", help="checkpoint.pt of a training")
    parser.add_argument("--data", metavar="DIR", help="data set in COCO's layout; its validation split is used")
    parser.add_argument("--val-json", metavar="FILE", help="annotations to use instead of those in --data")
    parser.add_argument("--val-images", metavar="DIR", help="folder of the images of --val-json")
    parser.add_argument(
        "--output", metavar="DIR", help="folder to write metrics.json, classes.json, and detections.json to"
    )
    parser.add_argument("--device", type=device, default="auto", help="auto, cpu, cuda, cuda:N, ...")
    options = parser.parse_args(arguments)
    try:
        with plain_warnings():
            metrics, classes, found = evaluate(options.checkpoint, *locate_split(options, "val"), device=options.device)
        if options.output:
            folder = pathlib.Path(options.output)
            folder.mkdir(parents=True, exist_ok=True)
            for name, content in (("metrics", metrics), ("classes", classes), ("detections", found)):
                (folder / f"{name}.json").write_text(json.dumps(content, indent=None if content is found else 1))
    except (ImportError, OSError, ValueError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    _print(metrics, classes)
    return 0


def _print(metrics: dict[str, float], classes: list[dict]) -> None:
    lacking = "  (-1: the data has no such objects)"
    for name, value in metrics.items():
        print(f"{name:6}{value:6.1f}" + (lacking if value == -1 else ""))
    width = max([len("class"), *(len(one["name"]) for one in classes)])
    print(f"\n{'class':{width}}{'AP':>7}{'AP50':>7}")
    for one in classes:
        print(f"{one['name']:{width}}{one['AP']:7.1f}{one['AP50']:7.1f}" + (lacking if one["AP"] == -1 else ""))


if __name__ == "__main__":
    sys.exit(main())
