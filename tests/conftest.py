"""Where there is no GPU, the kernels run in Triton's interpreter; unwritten outputs show as NaN everywhere.

One thread a process, also in the processes that tests start: pytest-xdist runs as many of them as there are cores.
"""

import os

os.environ.setdefault("OMP_NUM_THREADS", "1")  # before PyTorch is first imported

import torch

if not torch.cuda.is_available():
    os.environ.setdefault("TRITON_INTERPRET", "1")  # before Triton is first imported

import pytest
from hypothesis import HealthCheck, settings

from ghm_triton.backend import kernels

if kernels is not None:
    from ghm_triton.kernels import grids

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
EXAMPLES = int(os.environ.get("GHM_TRITON_EXAMPLES", "1"))  # times as many, and new ones in every run
POISON = {"empty": torch.empty, "empty_like": torch.empty_like}


def examples(number: int) -> settings:
    """Of a hypothesis test: about 2,000 are drawn in a run of all tests, always the same."""
    return settings(
        max_examples=number * EXAMPLES,
        derandomize=EXAMPLES == 1,
        deadline=None,
        suppress_health_check=list(HealthCheck),
    )


def _poisoned(make):
    def made(*args, **kwargs):
        tensor = make(*args, **kwargs)
        if tensor.is_floating_point():
            return tensor.fill_(float("nan"))
        return tensor.fill_(torch.iinfo(tensor.dtype).min) if tensor.dtype != torch.bool else tensor

    return made


@pytest.fixture(autouse=True)
def poison(monkeypatch):
    """Memory that is not written holds what no test accepts."""
    for name, make in POISON.items():
        monkeypatch.setattr(torch, name, _poisoned(make))
    monkeypatch.setattr(torch.Tensor, "new_empty", _poisoned(torch.Tensor.new_empty))


@pytest.fixture(params=["eager", "triton"])
def backend(request):
    if request.param == "triton" and kernels is None:
        pytest.skip("needs Triton")
    return request.param


@pytest.fixture
def two_programs(monkeypatch):
    """At most two programs count a level, so that a few tiles are enough for a program to take several."""
    if kernels is not None:
        monkeypatch.setattr(grids, "resident_programs", lambda device: 2)


@pytest.fixture
def two_threads():
    """PyTorch splits large tensors between threads."""
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    yield
    torch.set_num_threads(before)


@pytest.fixture
def device():
    return DEVICE
