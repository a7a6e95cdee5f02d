"""`python -m perf.volumes` compares classification losses of MONAI's RetinaNet in 3D, with and without a sampler."""
