"""Which implementation runs: the Triton kernels or eager PyTorch."""

import functools
import os
from typing import get_args

import torch

from .checks import check_choice
from .types import Backend

try:
    from . import kernels  # the folder kernels/ at the top of the repository, which pyproject.toml installs here
except ImportError as error:  # without Triton everything runs eagerly
    if (error.name or "").split(".")[0] != "triton":
        raise
    kernels = None

BACKENDS = get_args(Backend)
VARIABLE = "GHM_TRITON_BACKEND"
CHECK_VARIABLE = "GHM_TRITON_CHECK"
HAVE_FLOAT64 = ("cpu", "cuda", "meta")


def check_backend(backend: str | None) -> str | None:
    """Return the backend that the argument or the environment names, or None for the default of the device."""
    if backend is not None:
        check_choice("backend", backend, BACKENDS)
        return backend
    name = os.environ.get(VARIABLE) or None
    if name is not None:
        check_choice(f"the environment variable {VARIABLE}", name, BACKENDS)
    return name


def checks_targets() -> bool:
    """Whether the environment asks to check the targets before the kernels run, which waits for the GPU."""
    value = os.environ.get(CHECK_VARIABLE) or "0"
    check_choice(f"the environment variable {CHECK_VARIABLE}", value, ("0", "1"))
    return value == "1"


def check_float64(device: torch.device) -> None:
    """Check that the device has float64, in which the eager backend sums.

    Raises:
        RuntimeError: The device has no float64, such as Apple's MPS.
    """
    if device.type not in HAVE_FLOAT64 and not _has_float64(device):
        raise RuntimeError(
            f"input must be on a device that has float64, in which the eager backend sums, got {device}: "
            "pass input.cpu() and target.cpu()"
        )


@functools.cache
def _has_float64(device: torch.device) -> bool:
    try:
        torch.zeros((), dtype=torch.float64, device=device)
    except (RuntimeError, TypeError):
        return False
    return True


def use_triton(backend: str | None, input: torch.Tensor) -> bool:
    """Whether the kernels run for tensors of the device and dtype of `input`. float64 always runs eagerly.

    Raises:
        ValueError: `backend` is unknown.
        RuntimeError: The argument or the environment names "triton" where it cannot run. On CPU tensors the operators
            check that the interpreter is active.
    """
    name = check_backend(backend)
    if name == "eager" or input.dtype == torch.float64 or (name is None and input.is_cpu):
        return False
    device = input.device
    if name is None:
        return device.type in ("cuda", "xpu") and kernels is not None
    if kernels is None:
        raise RuntimeError("backend must be 'eager' or None where the package triton is not installed, got 'triton'")
    if device.type not in ("cpu", "cuda", "xpu"):
        raise RuntimeError(f"backend must be 'eager' or None for tensors on {device}, got 'triton'")
    return True
