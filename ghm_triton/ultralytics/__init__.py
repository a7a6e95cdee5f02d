"""GHM-C as the classification loss of Ultralytics YOLO detectors.

    trainer.py     GHMDetectionTrainer
    criterion.py   GHM-C in the criterion of a model, and its state
    __main__.py    the command line
"""

try:
    import ultralytics  # noqa: F401
except ImportError as error:
    raise ImportError(
        "ghm_triton.ultralytics needs the package ultralytics, which cannot be imported: "
        "install it with pip install 'ghm-triton[ultralytics]'"
    ) from error

from .trainer import GHMDetectionTrainer

__all__ = ["GHMDetectionTrainer"]
