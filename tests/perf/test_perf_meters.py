"""The meters of GPUs, on a device that is made up: what they ask of torch.cuda and torch.xpu, and in which order."""

import contextlib
import types
import warnings

import pytest
import torch

pytest.importorskip("pandas")

from perf.sweep import gpu_meters
from perf.sweep.__main__ import main
from perf.sweep.gpu_meters import CudaMeter, XpuMeter, open_meter
from perf.sweep.measure import _summary
from perf.sweep.timed_calls import TimedCall

SYNC = "called a synchronizing CUDA operation (Triggered internally at CUDAFunctions.cpp:149.)"
PROTOTYPE = "Synchronization debug mode is a prototype feature and does not yet detect all synchronizing operations"


class FakeModule:
    """torch.cuda or torch.xpu of one device: keeps a log."""

    def __init__(self):
        self.log, self.held, self.peak, self.mode = [], 0, 0, "default"

    def current_device(self):
        return 0

    def set_device(self, device):
        if device.index is None:  # as torch.cuda.set_device does
            raise ValueError("Expected a torch.device with a specified index or an integer")

    def get_device_properties(self, device):
        return types.SimpleNamespace(name="Fake")

    def synchronize(self):
        self.log.append("synchronize")

    def reset_peak_memory_stats(self):
        self.peak = self.held

    def memory_allocated(self):
        return self.held

    def max_memory_allocated(self):
        return self.peak

    def set_sync_debug_mode(self, mode):
        self.mode = mode
        warnings.warn(PROTOTYPE, stacklevel=2)


@pytest.fixture(params=[CudaMeter, XpuMeter], ids=["cuda", "xpu"])
def meter(request, monkeypatch):
    fake = FakeModule()
    monkeypatch.setattr(request.param, "module", fake)
    return request.param("cuda" if request.param is CudaMeter else "xpu")


def timed_call(meter, then=lambda: None, **options) -> TimedCall:
    log = meter.module.log

    def timed():
        log.append("timed")
        then()

    return TimedCall("forward", timed, lambda: log.append("prepare"), **options)


def test_device_without_an_index(meter):
    """A bare "cuda" is the current device; set_device wants its number."""
    assert meter.device.index == 0 and meter.name == "Fake"


@pytest.fixture
def benches(monkeypatch):
    """The arguments of do_bench and do_bench_cudagraph, which run the call twice and return three times."""
    testing = pytest.importorskip("triton.testing")
    seen = []

    def bench(name):
        def run(call, **options):
            call()
            call()
            seen.append((name, options))
            return [1.0, 2.0, 4.0]

        return run

    for name in ("do_bench", "do_bench_cudagraph"):
        monkeypatch.setattr(testing, name, bench(name))
    return seen


def test_times_are_those_of_triton(meter, benches):
    """Calls share the budget; each is prepared once; gradients are made anew; a failure is of its call alone."""
    leaf, fails = torch.zeros(1), RuntimeError("broken")

    def fail():
        raise fails

    calls = {"a": timed_call(meter, leaves=(leaf,)), "b": timed_call(meter, then=fail), "c": timed_call(meter)}
    options = {"budget_s": 3.0, "repetitions": (1, 2)}
    times = meter.times(calls, "events", **options)
    assert times == {"a": {0: 1.0, 1: 2.0, 2: 4.0}, "b": fails, "c": {0: 1.0, 1: 2.0, 2: 4.0}}
    assert meter.module.log == ["prepare", "timed", "timed", "prepare", "timed", "prepare", "timed", "timed"]
    assert [name for name, _ in benches] == ["do_bench"] * 2
    assert benches[0][1] == {"rep": 1000.0, "grad_to_none": (leaf,), "return_mode": "all"}
    assert benches[1][1]["grad_to_none"] is None
    if "graph" in meter.timers:
        meter.times({"a": calls["a"]}, "graph", **options)
        assert benches[2] == ("do_bench_cudagraph", {"grad_to_none": (leaf,), "return_mode": "all"})


def test_ratio_without_rounds():
    """Calls that are timed one after the other are compared by their medians."""
    own, baseline = {0: 2.0, 1: 8.0, 2: 4.0}, {0: 1.0, 1: 2.0, 2: 5.0, 3: 2.0}
    summary = _summary(own, baseline, interleaved=False)
    assert summary["ratio"] == 4.0 / 2.0 and "ratio_p20" not in summary
    assert _summary(own, baseline, interleaved=True)["ratio"] == 2.0  # the median of 2, 4 and 0.8
    assert "ratio" not in _summary(own, RuntimeError(), interleaved=False)


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
