"""How a run is measured: what all meters have in common, and the one of the CPU. GPUs are in perf.gpu_meters.

Every meter has

    device, name, timers         the torch.device, what it is called, the kinds of timing it knows
    milliseconds(run, timer)     one timing
    peak_bytes(run)              the most memory held at once beyond what was held before; None where unknown
    launches_and_waits(run)      device activities, and waits of the host for the device; None where unknown
    copy_gb_per_s()              bytes read and written a second by a copy of a large tensor, now
"""

import abc
import json
import os
import platform
import statistics
import tempfile
import time

import torch
from torch.profiler import ProfilerActivity, profile

from .runs import Run

COPY_BYTES = {"cpu": 1 << 26, "cuda": 1 << 29, "xpu": 1 << 29}  # well past the caches
COPIES = 7


class Meter(abc.ABC):
    """See the top of the file."""

    device: torch.device
    name: str
    timers: tuple[str, ...]

    @abc.abstractmethod
    def milliseconds(self, run: Run, timer: str) -> float: ...

    @abc.abstractmethod
    def peak_bytes(self, run: Run) -> int | None: ...

    @abc.abstractmethod
    def launches_and_waits(self, run: Run) -> tuple[int | None, int | None]: ...

    def copy_gb_per_s(self) -> float:
        source = torch.ones(COPY_BYTES[self.device.type], dtype=torch.uint8, device=self.device)
        target = torch.empty_like(source)
        run = Run("copy", lambda: target.copy_(source))
        self.milliseconds(run, self.timers[0])
        times = [self.milliseconds(run, self.timers[0]) for _ in range(COPIES)]
        return 2 * source.numel() / statistics.median(times) / 1e6


class CpuMeter(Meter):
    """Wall time. Small inputs are in the cache, as they are after the layer before."""

    timers = ("wall",)

    def __init__(self):
        self.device = torch.device("cpu")
        self.name = _cpu_name()

    def milliseconds(self, run: Run, timer: str) -> float:
        run.prepare()
        start = time.perf_counter()
        result = run.timed()
        stop = time.perf_counter()
        del result
        return (stop - start) * 1e3

    def peak_bytes(self, run: Run) -> int | None:
        """Follows every allocation of PyTorch's CPU allocator; the resident size would miss what the heap reuses.

        It does not follow what was allocated before, so that it cannot tell for a backward alone.
        """
        if run.mode == "backward":
            return None
        run.prepare()
        with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as profiler:
            result = run.timed()
        del result
        with tempfile.TemporaryDirectory() as folder:
            path = os.path.join(folder, "trace.json")
            profiler.export_chrome_trace(path)
            with open(path) as file:
                events = [event for event in json.load(file)["traceEvents"] if event.get("name") == "[memory]"]
        held = peak = 0
        for event in sorted(events, key=lambda event: event["ts"]):
            held += event["args"]["Bytes"]
            peak = max(peak, held)
        return peak

    def launches_and_waits(self, run: Run) -> tuple[None, None]:
        return None, None


def _cpu_name() -> str:
    try:
        with open("/proc/cpuinfo") as file:
            names = [line.split(":", 1)[1].strip() for line in file if line.startswith("model name")]
    except OSError:
        names = []
    return names[0] if names else platform.processor() or platform.machine()
