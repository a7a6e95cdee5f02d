"""The operators as PyTorch sees them: schemas, fakes and dispatch."""

import subprocess
import sys

import pytest
import torch
from torch._subclasses.fake_tensor import FakeTensorMode

import ghm_triton  # noqa: F401  (registers the operators)
from ghm_triton.backend import kernels
from ghm_triton.interpreter import interpreting
from ghm_triton.options import Options

needs_kernels = pytest.mark.skipif(
    kernels is None or not (torch.cuda.is_available() or interpreting()), reason="needs a GPU or Triton's interpreter"
)
DEVICE = "cuda" if torch.cuda.is_available() else "cpu"


def arguments(name, loss, reduction="mean"):
    """A small valid call of an operator, with state where it takes one."""
    x = torch.randn(10, 4, device=DEVICE)
    target = torch.randint(-1, 4, (10,), device=DEVICE) if loss == "ghmc" else x * 0.9
    population = [x], [target], [torch.ones(10, device=DEVICE)]
    options = Options(loss=loss, mu=0.02, bins=10, exponent=0.5, momentum=0.5, reduction=reduction, grad=True)
    if name == "triton_gradient":
        grad = torch.ones_like(x) if reduction == "none" else torch.ones((), device=DEVICE)
        return [grad], *population, [torch.rand(16, device=DEVICE)], *options
    return *population, torch.zeros(11, device=DEVICE), *options


@needs_kernels
@pytest.mark.parametrize("reduction", ["mean", "none"])
@pytest.mark.parametrize("loss", ["ghmc", "ghmr"])
@pytest.mark.parametrize("name", ["eager_loss", "triton_loss", "triton_gradient"])
def test_opcheck(name, loss, reduction):
    """A schema that hides a mutation, or a fake with other shapes than the kernel's, breaks torch.compile."""
    torch.library.opcheck(getattr(torch.ops.ghm_triton, name).default, arguments(name, loss, reduction))


@needs_kernels
@pytest.mark.parametrize("name", ["eager_loss", "triton_loss"])
def test_opcheck_with_gradients(name):
    """The derivative that compiled and exported graphs take."""
    (x,), *others = arguments(name, "ghmc")
    torch.library.opcheck(getattr(torch.ops.ghm_triton, name).default, ([x.requires_grad_()], *others))


@needs_kernels
def test_coefficients_have_the_size_that_the_fake_says():
    """The fake must promise what the launcher returns: a power of two, which `tl.histogram` needs."""
    for bins in (1, 2, 3, 10, 14, 15, 30, 31, 62, 63, 100):
        x, target = torch.randn(3, 4, device=DEVICE), torch.zeros(3, dtype=torch.int64, device=DEVICE)
        options = Options(loss="ghmc", bins=bins, exponent=1.0)
        _, coefficients = torch.ops.ghm_triton.triton_loss([x], [target], [], None, *options)
        with FakeTensorMode() as mode:
            fakes = [x], [target], []
            fakes = [[mode.from_tensor(tensor) for tensor in tensors] for tensors in fakes]
            _, fake = torch.ops.ghm_triton.triton_loss(*fakes, None, *options)
        assert coefficients.shape == fake.shape and len(coefficients) >= bins + 2


@pytest.mark.slow
def test_package_works_without_triton():
    """Triton exists for Linux only: without it the package imports and runs eagerly, and says so when asked for it."""
    code = """
import sys
sys.modules["triton"] = None
import torch, ghm_triton
x = torch.randn(5, 3, requires_grad=True)
ghm_triton.ghmc_loss(x, torch.zeros(5, dtype=torch.int64)).backward()
assert x.grad.abs().sum() > 0
try:
    ghm_triton.ghmc_loss(x, torch.zeros(5, dtype=torch.int64), backend="triton")
except RuntimeError as error:
    assert "triton" in str(error) and "not installed" in str(error)
else:
    raise AssertionError("backend='triton' ran without Triton")
"""
    subprocess.run([sys.executable, "-c", code], check=True)


@pytest.mark.slow
def test_triton_by_name_on_cpu_needs_the_interpreter():
    """Asked for by name, the kernels never fall back silently."""
    code = """
import torch, ghm_triton
try:
    ghm_triton.ghmc_loss(torch.randn(5, 3), torch.zeros(5, dtype=torch.int64), backend="triton")
except RuntimeError as error:
    assert "backend" in str(error) and "TRITON_INTERPRET" in str(error)
else:
    raise AssertionError("backend='triton' ran on CPU tensors")
"""
    subprocess.run([sys.executable, "-c", code], check=True, env={"TRITON_INTERPRET": "0", "PATH": ""})


@pytest.mark.slow
@pytest.mark.parametrize("first", ["triton", "ghm_triton"])
def test_the_interpreter_asked_for_too_late(first):
    """After an import of triton, its own functions are no longer made for the interpreter."""
    pytest.importorskip("triton")
    code = f"""
import os
import {first}
os.environ["TRITON_INTERPRET"] = "1"
import torch, ghm_triton
try:
    ghm_triton.ghmc_loss(torch.randn(5, 3), torch.zeros(5, dtype=torch.int64), backend="triton")
except RuntimeError as error:
    assert "set the environment variable TRITON_INTERPRET=1 before triton is first imported" in str(error), error
else:
    raise AssertionError("backend='triton' ran on CPU tensors")
"""
    subprocess.run([sys.executable, "-c", code], check=True, env={"PATH": ""})
