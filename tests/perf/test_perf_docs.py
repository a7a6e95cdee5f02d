"""The documentation shows what the CSVs say, and says where each of them is from."""

import pytest

pytest.importorskip("pandas")
pytest.importorskip("torchvision")

import pandas as pd

from perf import docs


def test_tables_are_those_of_the_results():
    """No figure in a table that is not in a CSV: `python -m perf.docs` makes the tables anew."""
    made, shown = docs.tables(), set()
    for page in docs.pages():
        text = page.read_text(encoding="utf-8")
        shown |= {found["name"] for found in docs.TABLE.finditer(text)}
        assert docs.updated(text, made) == text, f"{page.name} differs: run python -m perf.docs"
    assert shown == made.keys()


def test_help_writes_nothing(monkeypatch, capsys):
    monkeypatch.setattr(docs, "pages", lambda: pytest.fail("--help made tables"))
    with pytest.raises(SystemExit, match="0"):
        docs.main(["--help"])
    assert "usage: python -m perf.docs" in capsys.readouterr().out


def test_every_result_has_its_command():
    told = (docs.RESULTS / "README.md").read_text(encoding="utf-8")
    files = [file.name for file in docs.RESULTS.glob("*.csv")]
    assert files and all(f"| `{name}` | `python -m " in told for name in files)


def test_table_of_the_host():
    """Only rows of that timer, in microseconds, the fastest first, beside the baseline of each loss."""
    columns = ["loss", "implementation", "timer", "status", "p50_ms", "ratio", "launches"]
    rows = [
        ("ghmc", "eager", "wall", "ok", 9.0, 1.0, ""),
        ("ghmc", "triton", "host", "ok", 0.1, 2.0, "3"),
        ("ghmc", "eager", "host", "ok", 0.2, 4.0, "0"),
        ("ghmc", "bce", "host", "ok", 0.05, 1.0, "0"),
        ("ghmc", "exact", "host", "ok", 0.3, 6.0, "0"),
        ("ghmr", "triton", "host", "error", None, None, ""),
    ]
    table = docs.over_host(pd.DataFrame(rows, columns=columns))
    assert table.values.tolist() == [
        ["GHM-C", "cross entropy", "50 µs", "1.00", 0],
        ["GHM-C", "this package, Triton", "100 µs", "2.00", 3],
        ["GHM-C", "this package, eager", "200 µs", "4.00", 0],
    ]
