"""Where a row comes from: the versions, the commit and the time."""

import datetime
import platform
import subprocess
from pathlib import Path

import torch

import ghm_triton

COLUMNS = ["platform", "python", "torch", "triton", "ghm_triton", "commit"]
MEASURED_CODE = ["ghm_triton", "kernels", "perf/*.py"]  # git pathspecs: a `*` also matches `/`


def provenance() -> dict[str, str]:
    """Return the values of COLUMNS, the same for all rows of a run."""
    try:
        import triton

        triton_version = triton.__version__
    except ImportError:
        triton_version = ""
    return {
        "platform": f"{platform.system()} {platform.machine()}",
        "python": platform.python_version(),
        "torch": torch.__version__,
        "triton": triton_version,
        "ghm_triton": ghm_triton.__version__,
        "commit": _commit(),
    }


def now() -> str:
    """Return the time in UTC, as ISO 8601 has it."""
    return datetime.datetime.now(datetime.timezone.utc).isoformat(timespec="seconds")


def _commit() -> str:
    """Return the commit of the checkout, with a + if the measured code has changes; empty outside of a checkout."""

    def git(*arguments):
        root = Path(__file__).resolve().parent.parent
        return subprocess.run(
            ["git", "-C", root, *arguments], capture_output=True, text=True, check=True
        ).stdout.strip()

    try:
        changed = git("status", "--porcelain", "--", *MEASURED_CODE)
        return git("rev-parse", "--short", "HEAD") + ("+" if changed else "")
    except (OSError, subprocess.CalledProcessError):
        return ""
