"""Where a row comes from: the versions, the commit and the time."""

import subprocess
from pathlib import Path

from ghm_triton.check.machine import now, versions

__all__ = ["now", "provenance"]
MEASURED_CODE = ["ghm_triton", "kernels", "perf/*.py"]  # git pathspecs: a `*` also matches `/`


def provenance() -> dict[str, str]:
    """Return the values of `ghm_triton.check.columns.ORIGIN`, the same for all rows of a run."""
    return versions() | {"commit": _commit()}


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
