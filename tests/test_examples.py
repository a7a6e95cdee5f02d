"""The examples of the README and of the docstrings run as they stand."""

import doctest
import re
import sys
import types
from pathlib import Path

import pytest
import torch

import ghm_triton

README = Path(__file__).parents[1] / "README.md"
PUBLIC = [getattr(ghm_triton, name) for name in ghm_triton.__all__]


def code_under(heading: str) -> str:
    """The Python block of a section of the README."""
    section = README.read_text().split(f"## {heading}\n")[1].split("\n## ")[0]
    return re.search(r"```python\n(.*?)```", section, re.DOTALL).group(1)


@pytest.fixture
def registered(monkeypatch):
    """A stand-in for mmdetection's registry; what gets registered, by name."""
    found = {}
    registry = types.ModuleType("mmdet.registry")
    registry.MODELS = types.SimpleNamespace(register_module=lambda name, module, force: found.update({name: module}))
    monkeypatch.setitem(sys.modules, "mmdet", types.ModuleType("mmdet"))
    monkeypatch.setitem(sys.modules, "mmdet.registry", registry)
    return found


def test_readme_plain_pytorch():
    names = {}
    exec(code_under("In plain PyTorch"), names)
    assert names["logits"].grad.abs().sum() > 0 and names["deltas"].grad.abs().sum() > 0


def test_readme_mmdetection(registered):
    names = {}
    exec(code_under("In mmdetection 3.x"), names)
    assert registered == {"GHMC": ghm_triton.GHMC, "GHMR": ghm_triton.GHMR}
    assert names["scores"].grad.abs().sum() > 0


def test_readme_torchvision():
    pytest.importorskip("torchvision")
    box = torch.tensor([[20.0, 20.0, 60.0, 60.0]])
    names = {"images": [torch.rand(3, 128, 128)], "targets": [{"boxes": box, "labels": torch.tensor([3])}]}
    exec(code_under("In torchvision"), names)
    assert all(loss.isfinite() and loss > 0 for loss in names["losses"].values())


@pytest.mark.parametrize("symbol", [s for s in PUBLIC if s is not ghm_triton.register_mmdet], ids=lambda s: s.__name__)
def test_docstring_examples(symbol):
    """Every public symbol shows how it is called, and the call works."""
    finder = doctest.DocTestFinder(recurse=False)
    (example,) = finder.find(symbol, globs={"torch": torch, **vars(ghm_triton)})
    assert example.examples
    assert doctest.DocTestRunner().run(example).failed == 0
