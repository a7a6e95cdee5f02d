"""The kernels compiled ahead of time for GPUs that are not here: no spills, wide accesses, no atomics, few launches."""

import functools
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

triton = pytest.importorskip("triton")
if not hasattr(triton, "knobs"):
    pytest.skip("needs Triton 3.4 to compile ahead of time", allow_module_level=True)

TARGETS = [("cuda", "80"), ("cuda", "90"), ("cuda", "100"), ("hip", "gfx942")]


@functools.lru_cache(maxsize=None)
def compiled_launches(backend, architecture):
    script = Path(__file__).with_name("compile_ahead.py")
    environment = {name: value for name, value in os.environ.items() if name != "TRITON_INTERPRET"}
    done = subprocess.run(
        [sys.executable, script, backend, architecture], capture_output=True, text=True, env=environment
    )
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


@pytest.mark.parametrize("target", TARGETS, ids=" ".join)
def test_every_kernel_compiles_without_spills(target):
    """A kernel that outgrows its registers goes to memory for them, at several times the cost."""
    launches = compiled_launches(*target)
    assert {launch["kernel"] for launch in launches} == {
        f"_{loss}_{step}_kernel" for loss in ("ghmc", "ghmr") for step in ("accumulate", "gradient", "weigh")
    } | {"_fold_kernel", "_harmonize_kernel"}
    assert [launch for launch in launches if launch["spills"]] == []
    assert max(launch["registers"] for launch in launches) <= 168  # 3 programs of 128 threads a multiprocessor


@pytest.mark.parametrize("target", TARGETS, ids=" ".join)
def test_contiguous_tensors_move_16_bytes_at_a_time(target):
    """Masks and unknown alignment cut accesses to single elements; a full tile must not have them."""
    for launch in compiled_launches(*target):
        assert launch["load"] == 16, launch
        if launch["kernel"].endswith(("gradient_kernel", "weigh_kernel")):
            assert launch["store"] == 16, launch


@pytest.mark.parametrize("target", TARGETS, ids=" ".join)
def test_no_atomics_in_global_memory(target):
    """Sums by atomic additions of floats would depend on their order, and two runs would differ."""
    assert [launch for launch in compiled_launches(*target) if launch["atomics"]] == []


def test_three_launches_for_forward_and_backward():
    """accumulate, harmonize, gradient; with more than 64 programs, as in large inputs and pyramids, one fold."""
    launches = compiled_launches("cuda", "90")
    assert {launch["launches"] for launch in launches if launch["call"] in (0, 1, 2, 4)} == {3}
    assert {launch["launches"] for launch in launches if launch["call"] == 3} == {5 + 2 + 5 + 5}
