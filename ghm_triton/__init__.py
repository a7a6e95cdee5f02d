"""Gradient harmonizing losses (Li, Liu, Wang, AAAI 2019) as Triton kernels, with an eager path for the CPU."""

from .cross_entropy import GHMCrossEntropyLoss, ghm_cross_entropy
from .functional import ghmc_loss, ghmr_loss
from .mmdet import GHMC, GHMR, register_mmdet
from .modules import GHMCLoss, GHMRLoss

__version__ = "0.1.0"
__all__ = [
    "GHMC",
    "GHMR",
    "GHMCLoss",
    "GHMCrossEntropyLoss",
    "GHMRLoss",
    "ghm_cross_entropy",
    "ghmc_loss",
    "ghmr_loss",
    "register_mmdet",
]
