"""The CSV: one row a measurement, written one by one, so that an interrupted sweep goes on where it stopped."""

import datetime
import os
import platform
import subprocess
from collections.abc import Sequence
from pathlib import Path

import pandas as pd
import torch

import ghm_triton

KEY = [  # what was measured; no two rows have the same
    "loss",
    "implementation",
    "mode",
    "timer",  # "wall", "events" or "graph": perf.meters
    "size",
    "rows",
    "columns",
    "dtype",
    "bins",
    "target",
    "distribution",
    "device",
    "threads",
]
VALUES = [
    "elements",
    "status",  # "ok", "wrong", "out of memory", "error"; only "ok" has times
    "detail",
    "repetitions",
    "p50_ms",
    "p20_ms",
    "p80_ms",
    "min_bytes",  # arguments read once a pass, gradient written once
    "gb_per_s",  # min_bytes in p50_ms
    "copy_gb_per_s",  # of a copy on this device, measured with this case
    "copy_percent",
    "ratio_to_bce",  # median over the repetitions of the ratio to binary cross entropy in the same repetition
    "ratio_p20",
    "ratio_p80",
    "peak_extra_bytes",
    "launches",  # kernels, copies and fills on the device
    "host_syncs",
    "loss_error",  # relative; perf.reference
    "gradient_error",
]
ORIGIN = ["platform", "python", "torch", "triton", "ghm_triton", "commit", "measured_at"]
COLUMNS = KEY + VALUES + ORIGIN


class Table:
    """The CSV at `path`, new or to be continued. No two rows have the same `key`.

    Raises:
        ValueError: The file is there, and it is not a CSV with these columns.
    """

    def __init__(self, path: str | os.PathLike, columns: Sequence[str] = COLUMNS, key: Sequence[str] = KEY):
        self.path, self.columns, self.key = Path(path), list(columns), list(key)
        self.path.parent.mkdir(parents=True, exist_ok=True)
        self.done = set()
        self.commits = set()
        if self.path.exists() and self._drop_torn_row():
            rows = self.read(dtype=str)
            self.done = set(rows[self.key].itertuples(index=False, name=None))
            self.commits = set(rows["commit"])

    def _drop_torn_row(self) -> int:
        """Cuts off a last row without its line end, which a kill may leave. Returns the size that is left."""
        content = self.path.read_bytes()
        whole = content[: content.rfind(b"\n") + 1]
        if len(whole) < len(content):
            self.path.write_bytes(whole)
        return len(whole)

    def read(self, **options) -> pd.DataFrame:
        """The rows that are there; options of pandas.read_csv."""
        if not self.path.exists() or self.path.stat().st_size == 0:
            return pd.DataFrame(columns=self.columns)
        rows = pd.read_csv(self.path, keep_default_na=False, **options)
        if list(rows.columns) != self.columns:
            raise ValueError(f"{self.path} must have the columns {self.columns}, got {list(rows.columns)}")
        return rows

    def __contains__(self, key: dict) -> bool:
        return self._key(key) in self.done

    def _key(self, row: dict) -> tuple[str, ...]:
        return tuple(str(row[name]) for name in self.key)

    def append(self, row: dict) -> None:
        """Writes the row to the disk; columns that it lacks stay empty."""
        header = not self.path.exists() or self.path.stat().st_size == 0
        text = pd.DataFrame([row], columns=self.columns).to_csv(header=header, index=False, float_format="%.6g")
        with self.path.open("a", encoding="utf-8", newline="") as file:
            file.write(text)
        self.done.add(self._key(row))


def origin() -> dict[str, str]:
    """The versions, for every row."""
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
    return datetime.datetime.now(datetime.timezone.utc).isoformat(timespec="seconds")


def _commit() -> str:
    """The commit of the checkout, with a + where the measured code has changes; empty outside a checkout."""

    def git(*arguments):
        root = Path(__file__).resolve().parent.parent
        return subprocess.run(
            ["git", "-C", root, *arguments], capture_output=True, text=True, check=True
        ).stdout.strip()

    try:
        changed = git("status", "--porcelain", "--", "ghm_triton", "kernels", "perf/*.py")
        return git("rev-parse", "--short", "HEAD") + ("+" if changed else "")
    except (OSError, subprocess.CalledProcessError):
        return ""
