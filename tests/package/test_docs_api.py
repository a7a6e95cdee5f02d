"""The API page is what the docstrings say."""

import inspect
import runpy

from perf.docs import ROOT


def test_the_page_is_generated():
    made = runpy.run_path(str(ROOT / "docs" / "make_api.py"))
    assert made["PAGE"].read_text(encoding="utf-8") == made["page"](), "run python docs/make_api.py"


def test_docstrings_become_markdown():
    markdown = runpy.run_path(str(ROOT / "docs" / "make_api.py"))["markdown"]
    text = """Compute :math:`x` as :func:`ghm_triton.ghmc_loss` does.

    .. math:: L = x

    Args:
        x, y: Values
            in two lines.
        z (int): A number.

    Later text.

    Example:
        >>> f(1)
        2
    """
    expected = """Compute $x$ as `ghmc_loss` does.

$$L = x$$

**Args**

- `x, y`: Values
  in two lines.
- `z` (int): A number.

Later text.

**Example**

```pycon
>>> f(1)
2
```
"""
    assert markdown(inspect.cleandoc(text)) == expected
