"""A CSV that is written row by row, so that an interrupted command continues where it stopped."""

import argparse
import os
from collections.abc import Sequence
from pathlib import Path

import pandas as pd


class ResumableCsv:
    """The CSV at `path`, new or to be continued.

    Args:
        path: File. Missing folders are created with the first row.
        columns: Names of the columns, in order. One of them is "commit".
        key: Columns that name what was measured. No two rows have the same values in them.

    Attributes:
        done: The keys of the rows that are there.
        commits: The commits of the rows that are there.

    Raises:
        ValueError: The file exists but does not have these columns.
    """

    def __init__(self, path: str | os.PathLike, columns: Sequence[str], key: Sequence[str]):
        self.path, self.columns, self.key = Path(path), list(columns), list(key)
        self.done: set[tuple[str, ...]] = set()
        self.commits: set[str] = set()
        if self.path.exists() and self._drop_torn_row():
            rows = self.read(dtype=str)
            self.done = set(rows[self.key].itertuples(index=False, name=None))
            self.commits = set(rows["commit"])

    def _drop_torn_row(self) -> int:
        """Remove a last row without its line end, which a killed process may leave. Return the bytes that remain."""
        content = self.path.read_bytes()
        whole = content[: content.rfind(b"\n") + 1]
        if len(whole) < len(content):
            self.path.write_bytes(whole)
        return len(whole)

    def read(self, **options) -> pd.DataFrame:
        """Read the rows that are there. `options` are those of `pandas.read_csv`."""
        if not self.path.exists() or self.path.stat().st_size == 0:
            return pd.DataFrame(columns=self.columns)
        rows = pd.read_csv(self.path, keep_default_na=False, **options)
        if list(rows.columns) != self.columns:
            raise ValueError(f"{self.path} must have the columns {self.columns}, got {list(rows.columns)}")
        return rows

    def __contains__(self, key: dict) -> bool:
        return self._key(key) in self.done

    def _key(self, row: dict) -> tuple[str, ...]:
        values = (row[name] for name in self.key)
        return tuple(f"{value:.6g}" if isinstance(value, float) else str(value) for value in values)

    def append(self, row: dict) -> None:
        """Write the row to the file. Columns that it lacks stay empty."""
        self.path.parent.mkdir(parents=True, exist_ok=True)
        header = not self.path.exists() or self.path.stat().st_size == 0
        text = pd.DataFrame([row], columns=self.columns).to_csv(header=header, index=False, float_format="%.6g")
        with self.path.open("a", encoding="utf-8", newline="") as file:
            file.write(text)
        self.done.add(self._key(row))


def continued(
    parser: argparse.ArgumentParser, options: argparse.Namespace, columns: Sequence[str], key: Sequence[str], same: str
) -> ResumableCsv:
    """Return the CSV at `options.out`, whose rows must have the values of the options named in `same`.

    A file with other columns or values ends the command with an error of its parser.
    """
    try:
        rows = ResumableCsv(options.out, columns, key)
    except ValueError as error:
        parser.error(f"argument --out: {error}")
    for name in same.split():
        given, there = getattr(options, name), rows.read()[name]
        if set(there) - {given}:
            parser.error(f"argument --{name}: must be {there.iloc[0]}, as in the rows of {options.out}, got {given}")
    return rows
