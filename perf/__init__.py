"""Timings and comparisons. Each package is a command: `python -m perf.sweep`.

The others are report, compiled, accuracy, classification, and density.
"""

import os

os.environ.setdefault("KINETO_LOG_LEVEL", "99")  # PyTorch's profiler would write over the progress bar
