"""The meters of CUDA, ROCm and XPU."""

import warnings
from types import ModuleType

import torch
from torch.profiler import ProfilerActivity, profile

from .meters import CpuMeter, Meter, Times, interleave
from .timed_calls import TimedCall

SYNC_WARNING = "called a synchronizing CUDA operation"  # not "... does not yet detect all synchronizing operations"


def open_meter(device: str) -> Meter:
    """Open the meter of "cpu", "cuda" (also ROCm), "xpu", a GPU with an index, or "auto": the first GPU, else the CPU.

    Raises:
        ValueError: `device` is not one of these, or this machine does not have it.
    """
    meters = {"cuda": CudaMeter, "xpu": XpuMeter}
    if device == "auto":
        device = next((name for name, meter in meters.items() if meter.module.is_available()), "cpu")
    try:
        place = torch.device(device)
    except RuntimeError:
        place = None
    if place is None or place.type not in ("cpu", *meters):
        raise ValueError(f"device must be 'auto', 'cpu', 'cuda', 'cuda:N', 'xpu' or 'xpu:N', got {device!r}")
    if place.type == "cpu":
        return CpuMeter()
    module = meters[place.type].module
    count = module.device_count() if module.is_available() else 0
    if (place.index or 0) >= count:
        raise ValueError(f"device must be one that PyTorch finds, got {device!r} with {count} devices of this type")
    return meters[place.type](device)


class GpuMeter(Meter):
    """Times by :func:`triton.testing.do_bench`: between two events, with the cache cleared before each call."""

    module: ModuleType  # torch.cuda or torch.xpu
    activity: ProfilerActivity
    device_type: torch.autograd.DeviceType
    timers = ("events", "host")

    def __init__(self, device: str):
        index = torch.device(device).index
        self.device = torch.device(torch.device(device).type, self.module.current_device() if index is None else index)
        self.module.set_device(self.device)
        self.name = self.module.get_device_properties(self.device).name

    def times(self, calls, timer, *, budget_s, repetitions, baseline=None):
        """Time one call after another, each for an equal part of the time. For "host" see `interleave`."""
        if timer == "host":
            return interleave(calls, budget_s, repetitions, baseline)
        from triton import testing

        times: dict[str, Times] = {}
        for name, call in calls.items():
            options = {"grad_to_none": call.leaves or None, "return_mode": "all"}
            try:
                call.prepare()
                if timer == "graph":
                    found = testing.do_bench_cudagraph(call.timed, **options)
                else:
                    found = testing.do_bench(call.timed, rep=1e3 * budget_s / len(calls), **options)
                times[name] = dict(enumerate(found))
            except Exception as error:
                times[name] = error
            call.release()
        return times

    def peak_bytes(self, call: TimedCall) -> int:
        """Return what PyTorch's allocator counts."""
        call.prepare()
        self.module.synchronize()
        self.module.reset_peak_memory_stats()
        before = self.module.memory_allocated()
        result = call.timed()
        del result
        return self.module.max_memory_allocated() - before

    def launches_and_waits(self, call: TimedCall) -> tuple[int, int | None]:
        """Count the activities that the profiler sees on the device, and the waits that PyTorch warns about."""
        waits = self._waits(call)
        call.prepare()
        self.module.synchronize()
        with profile(activities=[ProfilerActivity.CPU, self.activity]) as profiler:
            call.timed()
            self.module.synchronize()
        ours = [event for event in profiler.events() if event.device_type == self.device_type]
        return sum(not event.is_user_annotation for event in ours), waits

    def _waits(self, call: TimedCall) -> int | None:
        """Count the waits of the host in one call; None if PyTorch cannot tell."""
        return None


class CudaMeter(GpuMeter):
    """Also times CUDA graphs ("graph"), which leave out the host, by `do_bench_cudagraph`."""

    module = torch.cuda
    activity = ProfilerActivity.CUDA
    device_type = torch.autograd.DeviceType.CUDA
    timers = ("events", "graph", "host")

    def _waits(self, call: TimedCall) -> int:
        call.prepare()
        self.module.synchronize()
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            self.module.set_sync_debug_mode("warn")
            try:
                call.timed()
            finally:
                self.module.set_sync_debug_mode("default")
        return sum(SYNC_WARNING in str(warning.message) for warning in caught)


class XpuMeter(GpuMeter):
    """PyTorch does not report waits for an XPU."""

    module = torch.xpu
    activity = ProfilerActivity.XPU
    device_type = torch.autograd.DeviceType.XPU
