"""Timing reports: `python -m perf.sweep` measures into a CSV, `python -m perf.report` draws it."""

import os

os.environ.setdefault("KINETO_LOG_LEVEL", "99")  # PyTorch's profiler would write over the progress bar
