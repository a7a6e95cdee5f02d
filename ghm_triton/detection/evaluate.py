"""Print COCO's twelve numbers of a checkpoint of `train`, and write them with --output.

python -m ghm_triton.detection.evaluate CHECKPOINT --data DIR
"""

import json
import pathlib
import sys

from tqdm import tqdm

from ..arguments import command_parser, device
from .data.coco import CocoBoxes
from .data.split_files import locate_split
from .models.builder import build_from
from .training.checkpoint import load_checkpoint
from .training.evaluation import average_precision, detect

_CHUNK = 64  # images between two steps of the progress bar


def evaluate(
    checkpoint: str | pathlib.Path,
    annotations: str | pathlib.Path,
    images: str | pathlib.Path,
    *,
    device: str = "cpu",
) -> tuple[dict[str, float], list[dict]]:
    """Evaluates a checkpoint on a data set.

    Returns:
        COCO's twelve numbers, and the detections in COCO's result format.

    Raises:
        OSError, ValueError: The checkpoint or the data set is not as it should be, or has categories that the model was
            not trained on.
    """
    model, categories = build_from(load_checkpoint(checkpoint))
    data = CocoBoxes(annotations, images, category_ids=[category["id"] for category in categories])
    model.to(device)
    found = []
    for first in tqdm(range(0, len(data), _CHUNK), desc="detecting", unit="chunk"):
        found += detect(model, data, indices=range(first, min(first + _CHUNK, len(data))))
    return average_precision(data.coco(), found), found


def main(arguments: list[str] | None = None) -> int:
    """Evaluates. Returns 1 after an error in the input, which is printed."""
    parser = command_parser("ghm_triton.detection.evaluate", __doc__)
    parser.add_argument("checkpoint", metavar="CHECKPOINT", help="checkpoint.pt of a training")
    parser.add_argument("--data", metavar="DIR", help="data set in COCO's layout; its validation split is used")
    parser.add_argument("--val-json", metavar="FILE", help="annotations to use instead of those in --data")
    parser.add_argument("--val-images", metavar="DIR", help="folder of the images of --val-json")
    parser.add_argument("--output", metavar="DIR", help="folder to write metrics.json and detections.json to")
    parser.add_argument("--device", type=device, default="auto", help="auto, cpu, cuda, cuda:N, ...")
    options = parser.parse_args(arguments)
    try:
        metrics, found = evaluate(options.checkpoint, *locate_split(options, "val"), device=options.device)
        if options.output:
            folder = pathlib.Path(options.output)
            folder.mkdir(parents=True, exist_ok=True)
            (folder / "metrics.json").write_text(json.dumps(metrics, indent=1))
            (folder / "detections.json").write_text(json.dumps(found))
    except (ImportError, OSError, ValueError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    for name, value in metrics.items():
        print(f"{name:6}{value:6.1f}" + ("  (-1: the data has no such objects)" if value == -1 else ""))
    return 0


if __name__ == "__main__":
    sys.exit(main())
