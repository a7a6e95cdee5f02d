"""The examples of the README, of the documentation, and of the docstrings run as they stand."""

import doctest
import re
import sys
from pathlib import Path

import pytest
import torch

import ghm_triton
from ghm_triton import mmdet

ROOT = Path(__file__).parents[2]
RECIPES = ROOT / "docs" / "recipes.md"  # its blocks need a model: test_recipes.py runs them
PAGES = [ROOT / "README.md", *(page for page in sorted((ROOT / "docs").glob("*.md")) if page != RECIPES)]
PUBLIC = [getattr(ghm_triton, name) for name in ghm_triton.__all__]
NEEDS = {
    "torchvision": "torchvision",
    "transformers": "transformers",
    "ultralytics": "ultralytics",
    "torch.utils.tensorboard": "tensorboard",
    "lightning": "lightning",
}


def blocks():
    """The Python blocks of all pages, by page and number."""
    for page in PAGES:
        found = re.findall(r"^```python\n(.*?)^```", page.read_text(encoding="utf-8"), re.DOTALL | re.MULTILINE)
        for number, code in enumerate(found, start=1):
            yield pytest.param(code, id=f"{page.stem}-{number}")


@pytest.mark.slow
@pytest.mark.parametrize("code", list(blocks()))
def test_pages(code, capsys, tmp_path, monkeypatch):
    """Each block runs in a fresh namespace, as pasted, and prints something."""
    for word, package in NEEDS.items():
        if word in code:
            pytest.importorskip(package)
    monkeypatch.chdir(tmp_path)
    # The folder `kernels` of the repository must not be found as a package of that name, which transformers imports.
    monkeypatch.setattr(sys, "path", [place for place in sys.path if place and Path(place).resolve() != ROOT])
    exec(code, {"__name__": "__main__"})
    assert capsys.readouterr().out.strip()


@pytest.mark.parametrize("symbol", PUBLIC, ids=lambda s: s.__name__)
def test_docstring_examples(symbol):
    """Every public symbol shows how it is called, and the call works."""
    finder = doctest.DocTestFinder(recurse=False)
    (example,) = finder.find(symbol, globs={"torch": torch, **vars(ghm_triton), **vars(mmdet)})
    assert example.examples
    assert doctest.DocTestRunner().run(example).failed == 0
