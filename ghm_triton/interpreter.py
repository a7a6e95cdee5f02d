"""Triton's interpreter, which runs kernels on CPU tensors."""

import functools
import os
from collections.abc import Callable


def interpreting() -> bool:
    """Whether the interpreter is active. Each kernel is made for it or for a GPU when it is imported."""
    import triton

    knobs = getattr(triton, "knobs", None)  # Triton 3.4
    return knobs.runtime.interpret if knobs is not None else os.environ.get("TRITON_INTERPRET", "0") == "1"


def interpreted(launch: Callable) -> Callable:
    """`launch` for CPU tensors. It raises a RuntimeError if the interpreter is not active."""

    @functools.wraps(launch)
    def checked(*args):
        if not interpreting():
            raise RuntimeError(
                "backend='triton' runs on CPU tensors only in Triton's interpreter, which is not active: set the "
                "environment variable TRITON_INTERPRET=1 before triton is first imported"
            )
        return launch(*args)

    return checked
