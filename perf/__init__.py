"""Timing and accuracy reports. Each package is a command: `python -m perf.sweep`, report, compiled and accuracy."""

import os

os.environ.setdefault("KINETO_LOG_LEVEL", "99")  # PyTorch's profiler would write over the progress bar
