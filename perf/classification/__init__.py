"""`python -m perf.classification`: a comparison of losses of softmax classifiers on small real images."""
