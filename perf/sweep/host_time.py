"""The time of the host alone: Triton's kernels are counted instead of launched.

A small case takes as long as the host needs to check the arguments, to allocate, and to reach the launches. How long a
launch takes depends on Triton and the driver. Without launches, tensors on the CPU take the path of those on a GPU.
"""

import contextlib
from collections.abc import Iterator
from unittest import mock

from ghm_triton import interpreter


@contextlib.contextmanager
def without_launches() -> Iterator[list[str]]:
    """Launch no Triton kernel. Yield a list that gets the name of each kernel in place of its launch."""
    launched: list[str] = []
    try:
        from triton.runtime.jit import JITFunction
    except ImportError:
        yield launched
        return

    def run(kernel, *args, **options):
        launched.append(kernel.fn.__name__)

    # The operators of the kernels ask for the interpreter where tensors are on the CPU.
    with mock.patch.object(JITFunction, "run", run), mock.patch.object(interpreter, "interpreting", lambda: True):
        yield launched
