"""Triton's interpreter, which runs kernels on CPU tensors."""

import functools
from collections.abc import Callable


def interpreting() -> bool:
    """Whether the interpreter is active. Triton decides this when it is imported."""
    import triton

    return not isinstance(triton.language.sum, triton.JITFunction)  # Triton's functions are decorated like ours


def interpreted(launch: Callable) -> Callable:
    """Wrap `launch` for CPU tensors: it raises a RuntimeError if the interpreter is not active."""

    @functools.wraps(launch)
    def checked(*args):
        if not interpreting():
            raise RuntimeError(
                "backend='triton' runs on CPU tensors only in Triton's interpreter, which is not active: set the "
                "environment variable TRITON_INTERPRET=1 before triton is first imported"
            )
        return launch(*args)

    return checked
