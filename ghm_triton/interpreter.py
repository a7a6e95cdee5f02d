"""Triton's interpreter, which runs kernels on CPU tensors."""

import os


def interpreting() -> bool:
    """Whether it is active now. Kernels are made for it, or for a GPU, when they are imported."""
    import triton

    knobs = getattr(triton, "knobs", None)  # Triton 3.4
    return knobs.runtime.interpret if knobs is not None else os.environ.get("TRITON_INTERPRET", "0") == "1"
