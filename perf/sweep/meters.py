"""How a call is measured: the interface of all meters, and the meter of the CPU. Those of GPUs are in gpu_meters.py."""

import abc
import json
import os
import platform
import statistics
import tempfile
import time

import torch
from torch.profiler import ProfilerActivity, profile

from .timed_calls import TimedCall

COPY_BYTES = {"cpu": 1 << 26, "cuda": 1 << 29, "xpu": 1 << 29}  # well past the caches
COPIES = 7


class Meter(abc.ABC):
    """Measures calls on one device.

    Attributes:
        device: The device.
        name: Name of its hardware.
        timers: The kinds of timing that this meter has.
    """

    device: torch.device
    name: str
    timers: tuple[str, ...]

    @abc.abstractmethod
    def milliseconds(self, call: TimedCall, timer: str) -> float:
        """One timing."""

    @abc.abstractmethod
    def peak_bytes(self, call: TimedCall) -> int | None:
        """The most memory held at once, less what was held before; None if unknown."""

    @abc.abstractmethod
    def launches_and_waits(self, call: TimedCall) -> tuple[int | None, int | None]:
        """Activities of the device, and waits of the host for the device; None if unknown."""

    def copy_gb_per_s(self) -> float:
        """Bytes read and written per second by a copy of a large tensor."""
        source = torch.ones(COPY_BYTES[self.device.type], dtype=torch.uint8, device=self.device)
        target = torch.empty_like(source)
        call = TimedCall("copy", lambda: target.copy_(source))
        self.milliseconds(call, self.timers[0])
        times = [self.milliseconds(call, self.timers[0]) for _ in range(COPIES)]
        return 2 * source.numel() / statistics.median(times) / 1e6


class CpuMeter(Meter):
    """Wall time. Small inputs are in the cache, as they are after the layer before."""

    timers = ("wall",)

    def __init__(self):
        self.device = torch.device("cpu")
        self.name = _cpu_name()

    def milliseconds(self, call: TimedCall, timer: str) -> float:
        call.prepare()
        start = time.perf_counter()
        result = call.timed()
        stop = time.perf_counter()
        del result
        return (stop - start) * 1e3

    def peak_bytes(self, call: TimedCall) -> int | None:
        """Follow every allocation of PyTorch's CPU allocator. The resident size would miss memory that the heap reuses.

        The profiler does not see memory allocated earlier, so the peak of a backward alone is unknown.
        """
        if call.mode == "backward":
            return None
        call.prepare()
        with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as profiler:
            result = call.timed()
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

    def launches_and_waits(self, call: TimedCall) -> tuple[None, None]:
        return None, None


def _cpu_name() -> str:
    try:
        with open("/proc/cpuinfo") as file:
            names = [line.split(":", 1)[1].strip() for line in file if line.startswith("model name")]
    except OSError:
        names = []
    return names[0] if names else platform.processor() or platform.machine()
