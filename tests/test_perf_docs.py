"""The documentation shows what the CSVs say, and says where each of them is from."""

import pytest

pytest.importorskip("pandas")
pytest.importorskip("torchvision")

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
