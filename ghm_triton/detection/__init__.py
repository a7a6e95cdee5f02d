"""Single-stage detectors of torchvision trained with GHM-C and GHM-R; needs the extra `detection`."""

from .retinanet import harmonize

__all__ = ["harmonize"]
