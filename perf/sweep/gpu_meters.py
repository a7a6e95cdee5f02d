"""The meters of CUDA, ROCm and XPU."""

import warnings
from types import ModuleType

import torch
from torch.profiler import ProfilerActivity, profile

from .meters import CpuMeter, Meter
from .timed_calls import TimedCall

FLUSH_BYTES = 1 << 29  # at least: AMD's Infinity Cache of 256 MB is not in L2_cache_size
SYNC_WARNING = "called a synchronizing CUDA operation"  # not "... does not yet detect all synchronizing operations"


def open_meter(device: str) -> Meter:
    """The meter of "cpu", "cuda" (also ROCm), "xpu", a GPU with an index, or "auto": the first GPU, else the CPU.

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
    """Times between two events on the current stream. A large buffer is read first, so that no input is in a cache.

    Reading the buffer takes longer on the device than the next launches take on the host. Short calls queue behind it,
    and their times leave out some of the host's time.
    """

    module: ModuleType  # torch.cuda or torch.xpu
    activity: ProfilerActivity
    device_type: torch.autograd.DeviceType
    cache_property: str  # of the device's properties: bytes of its last cache
    timers = ("events",)

    def __init__(self, device: str):
        index = torch.device(device).index
        self.device = torch.device(torch.device(device).type, self.module.current_device() if index is None else index)
        self.module.set_device(self.device)
        properties = self.module.get_device_properties(self.device)
        self.name = properties.name
        cache = getattr(properties, self.cache_property, 0)
        self._flush = torch.ones(max(4 * cache, FLUSH_BYTES) // 4, device=self.device)
        self._start, self._stop = (self.module.Event(enable_timing=True) for _ in range(2))

    def milliseconds(self, call: TimedCall, timer: str) -> float:
        call.prepare()
        self._flush.sum()
        self._start.record()
        result = call.timed()
        self._stop.record()
        self.module.synchronize()
        del result
        return self._start.elapsed_time(self._stop)

    def peak_bytes(self, call: TimedCall) -> int:
        call.prepare()
        self.module.synchronize()
        self.module.reset_peak_memory_stats()
        before = self.module.memory_allocated()
        result = call.timed()
        del result
        return self.module.max_memory_allocated() - before

    def launches_and_waits(self, call: TimedCall) -> tuple[int, int | None]:
        waits = self._waits(call)
        call.prepare()
        self.module.synchronize()
        with profile(activities=[ProfilerActivity.CPU, self.activity]) as profiler:
            call.timed()
            self.module.synchronize()
        ours = [event for event in profiler.events() if event.device_type == self.device_type]
        return sum(not event.is_user_annotation for event in ours), waits

    def _waits(self, call: TimedCall) -> int | None:
        """Waits of the host in one call; None if PyTorch cannot tell."""
        return None


class CudaMeter(GpuMeter):
    """Also times replays of a CUDA graph ("graph"), which leave out the host."""

    module = torch.cuda
    activity = ProfilerActivity.CUDA
    device_type = torch.autograd.DeviceType.CUDA
    cache_property = "L2_cache_size"
    timers = ("events", "graph")

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
    cache_property = "last_level_cache_size"
