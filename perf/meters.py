"""How a run is measured on the CPU and on a GPU.

Both meters have

    device, name, timers         the torch.device, what it is called, the kinds of timing it knows
    milliseconds(run, timer)     one timing
    peak_bytes(run)              the most memory held at once beyond what was held before; None where unknown
    launches_and_waits(run)      device activities, and waits of the host for the device; None where unknown
    copy_gb_per_s()              bytes read and written a second by a copy of a large tensor, now
"""

import json
import os
import platform
import statistics
import tempfile
import time
import warnings

import torch
from torch.profiler import ProfilerActivity, profile

from .runs import Run

COPY_BYTES = {"cpu": 1 << 26, "cuda": 1 << 29}  # well past the caches
COPIES = 7


def open_meter(device: str) -> "CpuMeter | CudaMeter":
    """The meter of "cpu", "cuda" (also ROCm) or "auto".

    Raises:
        ValueError: `device` is none of these.
    """
    if device == "auto":
        device = "cuda" if torch.cuda.is_available() else "cpu"
    if torch.device(device).type not in COPY_BYTES:
        raise ValueError(f"device must be 'auto', 'cpu' or 'cuda', got {device!r}")
    return CpuMeter() if device == "cpu" else CudaMeter(device)


class _Meter:
    device: torch.device

    def copy_gb_per_s(self) -> float:
        source = torch.ones(COPY_BYTES[self.device.type], dtype=torch.uint8, device=self.device)
        target = torch.empty_like(source)
        run = Run("copy", lambda: target.copy_(source))
        self.milliseconds(run, self.timers[0])
        times = [self.milliseconds(run, self.timers[0]) for _ in range(COPIES)]
        return 2 * source.numel() / statistics.median(times) / 1e6


class CpuMeter(_Meter):
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


class CudaMeter(_Meter):
    """Times between two events, of calls ("events": with the host's time where that is longer) and of replays of a
    CUDA graph ("graph": the device alone). A large buffer is read before each, so that no input is in the L2 cache.
    """

    timers = ("events", "graph")

    def __init__(self, device: str):
        self.device = torch.device(device)
        torch.cuda.set_device(self.device)
        properties = torch.cuda.get_device_properties(self.device)
        self.name = properties.name
        self._filler = torch.ones(max(4 * properties.L2_cache_size, 1 << 26) // 4, device=self.device)
        self._start, self._stop = (torch.cuda.Event(enable_timing=True) for _ in range(2))

    def milliseconds(self, run: Run, timer: str) -> float:
        run.prepare()
        self._filler.sum()
        self._start.record()
        result = run.timed()
        self._stop.record()
        torch.cuda.synchronize()
        del result
        return self._start.elapsed_time(self._stop)

    def peak_bytes(self, run: Run) -> int:
        run.prepare()
        torch.cuda.synchronize()
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
        result = run.timed()
        del result
        return torch.cuda.max_memory_allocated() - before

    def launches_and_waits(self, run: Run) -> tuple[int, int]:
        run.prepare()
        torch.cuda.synchronize()
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            torch.cuda.set_sync_debug_mode("warn")
            try:
                run.timed()
            finally:
                torch.cuda.set_sync_debug_mode("default")
        waits = sum("synchroniz" in str(warning.message) for warning in caught)
        run.prepare()
        torch.cuda.synchronize()
        with profile(activities=[ProfilerActivity.CPU, ProfilerActivity.CUDA]) as profiler:
            run.timed()
            torch.cuda.synchronize()
        return sum(event.device_type == torch.autograd.DeviceType.CUDA for event in profiler.events()), waits


def _cpu_name() -> str:
    try:
        with open("/proc/cpuinfo") as file:
            names = [line.split(":", 1)[1].strip() for line in file if line.startswith("model name")]
    except OSError:
        names = []
    return names[0] if names else platform.processor() or platform.machine()
