"""The CSVs of the sweep, with the source of each row."""

from collections.abc import Sequence
from pathlib import Path

import pandas as pd

from ghm_triton.check.columns import KEY

FORWARD_BACKWARD = "forward_backward"
MODES = {
    FORWARD_BACKWARD: "forward and backward",
    "forward": "forward",
    "backward": "backward",
    "forward_no_grad": "forward without gradient",
}
TIMERS = {
    "wall": "wall time",
    "host": "time of the host without the launches of Triton's kernels",
    "events": "time between events on the device",
    "graph": "replays of a CUDA graph",
}
NUMBERS = ["p50_ms", "p20_ms", "p80_ms", "gb_per_s", "ratio", "ratio_p20", "ratio_p80", "peak_extra_bytes"]


def load(paths: Sequence[str | Path]) -> pd.DataFrame:
    """Read the rows of all files. The column "path" has the file, "source" its name.

    A file with several devices or numbers of threads has several sources, whose names tell them apart.

    Raises:
        ValueError: Two files have the same name, or a file is not one of perf.sweep.
    """
    names = [Path(path).stem for path in paths]
    if len(set(names)) < len(names):
        raise ValueError(f"the files must have different names, got {', '.join(map(str, paths))}")
    frames = []
    for path, name in zip(paths, names):
        rows = pd.read_csv(path, keep_default_na=False, na_values={name: [""] for name in NUMBERS})
        missing = [name for name in KEY if name not in rows.columns]
        if missing:
            raise ValueError(f"{path} must be a CSV of perf.sweep, got one without the column {missing[0]!r}")
        sources = rows.groupby(["device", "threads"], sort=False).ngroup()
        source = (
            name if sources.nunique() == 1 else name + ", " + rows["device"] + ", " + count_threads(rows["threads"])
        )
        frames.append(rows.assign(path=str(path), source=source))
    return pd.concat(frames, ignore_index=True)


def count_threads(threads: pd.Series) -> pd.Series:
    """Return the number with its noun."""
    return threads.astype(str) + threads.map(lambda number: " thread" if number == 1 else " threads")
