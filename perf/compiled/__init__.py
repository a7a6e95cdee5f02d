"""`python -m perf.compiled`: what the compilers make of the kernels."""
