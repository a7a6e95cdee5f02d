"""The public types, by mypy."""

import pathlib
import subprocess
import sys

import pytest

pytest.importorskip("mypy")
TESTS = pathlib.Path(__file__).parents[1]


@pytest.mark.slow
def test_user_code_passes_mypy():
    """Overloads for one tensor and for levels, literal options, attributes of modules.

    Tensor.backward has no types in PyTorch, so --strict alone refuses each call of it.
    """
    command = [sys.executable, "-m", "mypy", "--config-file=", "--strict", "--allow-untyped-calls"]
    command += ["--follow-imports=silent", str(TESTS / "typed_usage.py")]
    done = subprocess.run(command, cwd=TESTS.parent, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
