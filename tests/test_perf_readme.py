"""The README shows what the CSVs say, and says where each is from."""

from pathlib import Path

import pytest

pytest.importorskip("pandas")

from perf import readme

ROOT = Path(__file__).resolve().parent.parent


def test_tables_are_those_of_the_results():
    """No figure that is not in a CSV: `python -m perf.readme` makes the tables anew."""
    shown = (ROOT / "README.md").read_text(encoding="utf-8")
    for table in readme.tables():
        assert table in shown


def test_every_result_has_its_command():
    told = (readme.RESULTS / "README.md").read_text(encoding="utf-8")
    files = [file.name for file in readme.RESULTS.glob("*.csv")]
    assert files and all(f"| `{name}` | `python -m perf." in told for name in files)
