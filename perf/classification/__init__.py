"""`python -m perf.classification` compares losses of softmax classifiers on small real images."""
