"""The meters of GPUs, on a device that is made up: what they ask of torch.cuda and torch.xpu, and in which order."""

import contextlib
import types
import warnings

import pytest
import torch

pytest.importorskip("pandas")

from perf.sweep import gpu_meters
from perf.sweep.__main__ import main
from perf.sweep.gpu_meters import FLUSH_BYTES, CudaMeter, XpuMeter, open_meter
from perf.sweep.timed_calls import TimedCall

SYNC = "called a synchronizing CUDA operation (Triggered internally at CUDAFunctions.cpp:149.)"
PROTOTYPE = "Synchronization debug mode is a prototype feature and does not yet detect all synchronizing operations"


class FakeModule:
    """torch.cuda or torch.xpu of one device with 100 MB of cache: keeps a log, and a clock that events read."""

    def __init__(self):
        self.log, self.clock, self.held, self.peak, self.mode = [], 0.0, 0, 0, "default"
        fake = self

        class Event:
            def __init__(self, enable_timing=False):
                assert enable_timing

            def record(self):
                fake.log.append("record")
                self.at, self.done = fake.clock, False
                fake.events.append(self)

            def elapsed_time(self, other):
                assert self.done and other.done, "read before the device got there"
                return other.at - self.at

        self.Event, self.events = Event, []

    def current_device(self):
        return 0

    def set_device(self, device):
        if device.index is None:  # as torch.cuda.set_device does
            raise ValueError("Expected a torch.device with a specified index or an integer")

    def get_device_properties(self, device):
        return types.SimpleNamespace(name="Fake", L2_cache_size=10**8, last_level_cache_size=10**8)

    def synchronize(self):
        self.log.append("synchronize")
        for event in self.events:
            event.done = True

    def reset_peak_memory_stats(self):
        self.peak = self.held

    def memory_allocated(self):
        return self.held

    def max_memory_allocated(self):
        return self.peak

    def set_sync_debug_mode(self, mode):
        self.mode = mode
        warnings.warn(PROTOTYPE, stacklevel=2)


class FakeFlush:
    def __init__(self, fake, elements):
        self.fake, self.elements = fake, elements

    def sum(self):
        self.fake.log.append("flush")
        self.fake.clock += 5


@pytest.fixture(params=[CudaMeter, XpuMeter], ids=["cuda", "xpu"])
def meter(request, monkeypatch):
    fake = FakeModule()
    monkeypatch.setattr(request.param, "module", fake)
    monkeypatch.setattr(torch, "ones", lambda elements, device: FakeFlush(fake, elements))
    made = request.param("cuda" if request.param is CudaMeter else "xpu")
    fake.log.clear()
    return made


def timed_call(meter, milliseconds=3.0, then=lambda: None) -> TimedCall:
    fake = meter.module

    def timed():
        fake.log.append("timed")
        fake.clock += milliseconds
        then()

    return TimedCall("forward", timed, lambda: fake.log.append("prepare"))


def test_device_without_an_index(meter):
    """A bare "cuda" is the current device; set_device wants its number."""
    assert meter.device.index == 0 and meter.name == "Fake"
    assert meter._flush.elements * 4 >= max(FLUSH_BYTES, 4 * 10**8)


def test_time_is_of_the_run_alone(meter):
    """Neither preparing nor the flush of the cache are timed, and the host waits before it reads the events."""
    assert meter.milliseconds(timed_call(meter), meter.timers[0]) == 3.0
    assert meter.module.log == ["prepare", "flush", "record", "timed", "record", "synchronize"]


def test_peak_is_beyond_what_was_held(meter):
    fake = meter.module
    fake.held = fake.peak = 1000

    def allocate():
        fake.peak = max(fake.peak, fake.held + 70)

    assert meter.peak_bytes(timed_call(meter, then=allocate)) == 70


@pytest.mark.parametrize("fails", [False, True], ids=["runs", "fails"])
def test_launches_and_waits(meter, monkeypatch, fails):
    """PyTorch's warning about the debug mode itself is no wait, and the mode is switched off also after an error."""
    fake = meter.module

    def waits_twice():
        if fake.mode == "warn":
            warnings.warn(SYNC, stacklevel=2)
            warnings.warn(SYNC, stacklevel=2)
        if fails:
            raise RuntimeError("broken")

    kinds = torch.autograd.DeviceType
    found = [(kinds.CPU, False), (meter.device_type, False), (meter.device_type, False), (meter.device_type, True)]
    events = [types.SimpleNamespace(device_type=kind, is_user_annotation=annotation) for kind, annotation in found]
    profiler = types.SimpleNamespace(events=lambda: events)
    monkeypatch.setattr(gpu_meters, "profile", lambda activities: contextlib.nullcontext(profiler))
    if fails:
        with pytest.raises(RuntimeError, match="broken"):
            meter.launches_and_waits(timed_call(meter, then=waits_twice))
    else:
        expected = (2, 2 if isinstance(meter, CudaMeter) else None)
        assert meter.launches_and_waits(timed_call(meter, then=waits_twice)) == expected
    assert fake.mode == "default"


def present(count: int) -> types.SimpleNamespace:
    return types.SimpleNamespace(is_available=lambda: count > 0, device_count=lambda: count)


def test_open_meter(monkeypatch):
    """ "auto" takes the first kind of GPU that is present, else the CPU."""
    for meter in (CudaMeter, XpuMeter):
        monkeypatch.setattr(meter, "module", present(0))
        monkeypatch.setattr(meter, "__init__", lambda self, device: setattr(self, "asked", device))
    assert open_meter("auto").device.type == "cpu"
    monkeypatch.setattr(XpuMeter, "module", present(2))
    assert open_meter("auto").asked == "xpu" and open_meter("xpu:1").asked == "xpu:1"


@pytest.mark.parametrize("device", ["nonsense", "meta", "mps", "xpu", "cuda", "cuda:1", "xpu:2", "cpu:x", ""])
def test_unknown_and_absent_devices_end_the_command(device, monkeypatch, capsys):
    """Exit code 2 and a message that names the argument, instead of a traceback."""
    monkeypatch.setattr(CudaMeter, "module", present(0 if device == "cuda" else 1))
    monkeypatch.setattr(XpuMeter, "module", present(0 if device == "xpu" else 2))
    with pytest.raises(SystemExit) as end:
        main(["--device", device])
    assert end.value.code == 2
    message = capsys.readouterr().err.splitlines()[-1]
    assert "error: device must be" in message and f"got {device!r}" in message
