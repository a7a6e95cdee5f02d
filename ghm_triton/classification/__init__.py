"""Image classification with :func:`ghm_triton.ghm_cross_entropy`: a comparison of losses on small real images."""
