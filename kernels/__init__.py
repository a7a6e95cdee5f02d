"""The Triton kernels of GHM-C and GHM-R with their launchers: the package `ghm_triton.kernels`.

The folder lies at the top of the repository, pyproject.toml installs it under that name. It is nearly a leaf: of
`ghm_triton` it imports `population`, `regions`, `options`, `distributed` and `interpreter`. Only `ghm_triton.ops` calls
it.
"""

from .launch import launch_gradient, launch_loss

__all__ = ["launch_gradient", "launch_loss"]
