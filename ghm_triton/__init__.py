"""Gradient harmonizing losses (Li, Liu, Wang, AAAI 2019) as Triton kernels, with an eager path for the CPU."""

from .losses.cross_entropy import GHMCrossEntropyLoss, ghm_cross_entropy
from .losses.ghmc import GHMCLoss, ghmc_loss
from .losses.ghmr import GHMRLoss, ghmr_loss
from .losses.harmonized_bce import HarmonizedBCELoss

__version__ = "0.1.0"
__all__ = [
    "GHMCLoss",
    "GHMCrossEntropyLoss",
    "GHMRLoss",
    "HarmonizedBCELoss",
    "ghm_cross_entropy",
    "ghmc_loss",
    "ghmr_loss",
]
