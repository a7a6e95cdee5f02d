"""`python -m perf.report` draws what the sweep measured."""
