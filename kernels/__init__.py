"""Triton kernels of GHM-C and GHM-R, and the functions that launch them. Nothing here checks arguments."""

from .launch import (
    launch_ghmc_backward,
    launch_ghmc_forward,
    launch_ghmc_weigh,
    launch_ghmr_backward,
    launch_ghmr_forward,
    launch_ghmr_weigh,
)

__all__ = [
    "launch_ghmc_backward",
    "launch_ghmc_forward",
    "launch_ghmc_weigh",
    "launch_ghmr_backward",
    "launch_ghmr_forward",
    "launch_ghmr_weigh",
]
