"""Single-stage detectors of torchvision trained with GHM-C and GHM-R. Needs the extra `detection`.

The commands are modules of this package: `digits`, `pretrain`, `train`, `evaluate`, `predict` and `demo`. The folders
hold what they share: `data`, `models`, `heads` and `training`.
"""

try:
    import torchvision  # noqa: F401
except ModuleNotFoundError as error:
    raise ImportError(
        "ghm_triton.detection needs torchvision, which is not installed: run "
        f'pip install -e ".[detection]" in the clone of ghm-triton ({error})'
    ) from error

from .heads import harmonize
from .heads.plain import unharmonize

__all__ = ["harmonize", "unharmonize"]
