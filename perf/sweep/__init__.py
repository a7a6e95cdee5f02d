"""`python -m perf.sweep` times the losses and their alternatives."""
