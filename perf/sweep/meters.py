"""How calls are measured: the interface of all meters, and the meter of the CPU. Those of GPUs are in gpu_meters.py."""

import abc
import json
import os
import random
import statistics
import tempfile
import time

import torch
from torch.profiler import ProfilerActivity, profile

from ghm_triton.check.machine import device_name

from .timed_calls import TimedCall

COPY_BYTES = {"cpu": 1 << 26, "cuda": 1 << 29, "xpu": 1 << 29}  # well past the caches
COPIES = 7
SLOW_S = 1.0  # a call that takes longer is repeated three times, and has no warm-up of its own
INTERLEAVED = ("wall", "host")  # timers whose repetition i is of one round for all calls: ratios are free of drift
Times = dict[int, float] | Exception  # milliseconds by repetition, or why there are none


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
    def times(
        self,
        calls: dict[str, TimedCall],
        timer: str,
        *,
        budget_s: float,
        repetitions: tuple[int, int],
        baseline: str | None = None,
    ) -> dict[str, Times]:
        """Time the calls, after a check() of each.

        Args:
            calls: By name.
            timer: One of `timers`.
            budget_s: Seconds for all repetitions of all calls, divided equally.
            repetitions: Per call, at least and at most, whatever its share.
            baseline: The name of the call that the others are compared with.
        """

    @abc.abstractmethod
    def peak_bytes(self, call: TimedCall) -> int | None:
        """Return the peak memory minus the memory held before, or None if unknown."""

    @abc.abstractmethod
    def launches_and_waits(self, call: TimedCall) -> tuple[int | None, int | None]:
        """Count activities of the device, and waits of the host for the device; None if unknown."""

    def copy_gb_per_s(self) -> float:
        """Return the bytes read and written per second by a copy of a large tensor."""
        source = torch.ones(COPY_BYTES[self.device.type], dtype=torch.uint8, device=self.device)
        target = torch.empty_like(source)
        call = TimedCall("copy", lambda: target.copy_(source))
        call.check()
        times = self.times({"copy": call}, self.timers[0], budget_s=0.05, repetitions=(COPIES, COPIES))["copy"]
        if isinstance(times, Exception):
            raise times
        return 2 * source.numel() / statistics.median(times.values()) / 1e6


class CpuMeter(Meter):
    """Wall time. Small inputs are in the cache, as they are after the previous layer."""

    timers = ("wall", "host")

    def __init__(self):
        self.device = torch.device("cpu")
        self.name = device_name(self.device)

    def times(self, calls, timer, *, budget_s, repetitions, baseline=None):
        """Time the calls in rounds."""
        return interleave(calls, budget_s, repetitions, baseline)

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
        """Return None: there is no device."""
        return None, None


def interleave(
    calls: dict[str, TimedCall], budget_s: float, repetitions: tuple[int, int], baseline: str | None
) -> dict[str, Times]:
    """Time the calls with the clock of the host, in rounds. The arguments are those of :meth:`Meter.times`.

    Each round has all calls in a random order, so that drift and the state of the caches affect all in the same
    way. A slow call skips rounds at even distances; the baseline is in every round.
    """
    times, planned, (least, most) = {name: {} for name in calls}, {}, repetitions
    for name, call in calls.items():
        seconds = call.seconds
        if seconds < SLOW_S:
            try:
                seconds = _milliseconds(call) / 1e3
            except Exception as error:
                times[name] = error
                continue
        floor = least if seconds < SLOW_S else min(3, least)
        planned[name] = min(most, max(floor, int(budget_s / len(calls) / max(seconds, 1e-9))))
    rounds = max(planned.values(), default=0)
    if baseline in planned:
        planned[baseline] = rounds
    shuffle = random.Random(0)
    for index in range(rounds):
        order = [name for name in planned if index * planned[name] // rounds != (index - 1) * planned[name] // rounds]
        shuffle.shuffle(order)
        for name in order:
            try:
                times[name][index] = _milliseconds(calls[name])
            except Exception as error:
                times[name] = error
                del planned[name]
    return times


def _milliseconds(call: TimedCall) -> float:
    call.prepare()
    start = time.perf_counter()
    result = call.timed()
    stop = time.perf_counter()
    del result
    return (stop - start) * 1e3
