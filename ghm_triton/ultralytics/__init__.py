"""GHM as the classification loss of Ultralytics' YOLO and RT-DETR.

    trainer.py     the trainers
    criterion.py   GHM-C in the criterion of a model
    __main__.py    the command line

Ultralytics is AGPL-3.0. None of its code is here.
"""

try:
    import ultralytics  # noqa: F401
except ImportError as error:
    raise ImportError(
        "ghm_triton.ultralytics needs the package ultralytics, which cannot be imported: "
        "run pip install -e '.[ultralytics]' in the clone of ghm-triton"
    ) from error

from .trainer import (
    GHMClassificationTrainer,
    GHMDetectionTrainer,
    GHMOBBTrainer,
    GHMPoseTrainer,
    GHMRTDETRTrainer,
    GHMSegmentationTrainer,
    GHMSemanticSegmentationTrainer,
)

__all__ = [
    "GHMClassificationTrainer",
    "GHMDetectionTrainer",
    "GHMOBBTrainer",
    "GHMPoseTrainer",
    "GHMRTDETRTrainer",
    "GHMSegmentationTrainer",
    "GHMSemanticSegmentationTrainer",
]
