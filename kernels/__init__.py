"""Triton kernels of GHM-C and GHM-R, and the functions that launch them. Nothing here checks arguments."""

from .launch import launch_backward, launch_forward

__all__ = ["launch_backward", "launch_forward"]
