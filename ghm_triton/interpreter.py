"""Triton's interpreter, which runs kernels on CPU tensors."""


def interpreting() -> bool:
    """Whether the interpreter is active. Triton decides this when it is imported."""
    import triton

    return not isinstance(triton.language.sum, triton.JITFunction)  # Triton's functions are decorated like ours


def check_interpreter() -> None:
    """Check that kernels can run on CPU tensors.

    Raises:
        RuntimeError: The interpreter is not active.
    """
    if not interpreting():
        raise RuntimeError(
            "backend='triton' runs on CPU tensors only in Triton's interpreter, which is not active: set the "
            "environment variable TRITON_INTERPRET=1 before triton is first imported"
        )
