"""Without a GPU the kernels run in Triton's interpreter. Unwritten outputs hold NaN.

Each process has one thread, also those that tests start: pytest-xdist runs one process per core.
"""

import functools
import inspect
import os
import random

os.environ.setdefault("OMP_NUM_THREADS", "1")  # before PyTorch is first imported

import torch

if not torch.cuda.is_available():
    os.environ.setdefault("TRITON_INTERPRET", "1")  # before Triton is first imported

import numpy
import pytest
from hypothesis import HealthCheck, settings

from ghm_triton.backend import kernels

if kernels is not None:
    from ghm_triton.kernels import grids
    from triton.language.core import is_builtin
    from triton.runtime import interpreter

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
EXAMPLES = int(os.environ.get("GHM_TRITON_EXAMPLES", "1"))  # a factor; above 1 each run draws new ones
POISON = {"empty": torch.empty, "empty_like": torch.empty_like}


def examples(number: int) -> settings:
    """Settings of a hypothesis test. A run of all tests draws about 1,100 examples, always the same ones."""
    return settings(
        max_examples=number * EXAMPLES,
        derandomize=EXAMPLES == 1,
        deadline=None,
        suppress_health_check=list(HealthCheck),
    )


@functools.cache
def _builtins(package):
    """The names that Triton's interpreter replaces, found before it has replaced them."""
    return [name for name, member in inspect.getmembers(package) if is_builtin(member)]


def _patch_builtin(package, *rest):
    """As Triton's, which looks through all members at each call of a helper of a kernel: 40% of a test's time."""
    for name in _builtins(package):
        if is_builtin(member := getattr(package, name)):
            interpreter._patch_attr(package, name, member, *rest)


if kernels is not None:
    interpreter._patch_builtin = _patch_builtin


def _poisoned(make):
    def made(*args, **kwargs):
        tensor = make(*args, **kwargs)
        if tensor.is_floating_point():
            tensor.detach().fill_(float("nan"))  # checkpointing makes one that requires grad
            return tensor
        return tensor.fill_(torch.iinfo(tensor.dtype).min) if tensor.dtype != torch.bool else tensor

    return made


@pytest.fixture(autouse=True)
def seed():
    """A test draws the same data in each order of the tests."""
    random.seed(0)
    numpy.random.seed(0)
    torch.manual_seed(0)


@pytest.fixture(autouse=True)
def poison(monkeypatch):
    """Memory that is not written holds NaN, or the smallest integer."""
    for name, make in POISON.items():
        monkeypatch.setattr(torch, name, _poisoned(make))
    monkeypatch.setattr(torch.Tensor, "new_empty", _poisoned(torch.Tensor.new_empty))


@pytest.fixture(params=["eager", pytest.param("triton", marks=pytest.mark.slow)])
def backend(request):
    """Each backend. `make check` leaves the kernels in the interpreter to test_kernels.py."""
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
