"""Write docs/api.md from the docstrings: `python docs/make_api.py`. A test compares the page with the result."""

import importlib
import inspect
import re
from pathlib import Path

PAGE = Path(__file__).with_name("api.md")
SYMBOLS = {  # by module, in the order of the page
    "ghm_triton": (
        "GHMCLoss",
        "GHMRLoss",
        "GHMCrossEntropyLoss",
        "HarmonizedBCELoss",
        "ghmc_loss",
        "ghmr_loss",
        "ghm_cross_entropy",
    ),
    "ghm_triton.density": ("Density",),
    "ghm_triton.mmdet": ("GHMC", "GHMR", "register_mmdet"),
    "ghm_triton.detection": ("harmonize", "unharmonize"),
}
HEADER = """# API

`python docs/make_api.py` writes this page from the docstrings. The terms are those of the [glossary](glossary.md).
"""
METHODS = ("forward", "density", "reset_parameters", "plot")  # that a user calls
SECTION = re.compile(r"^(Args|Attributes|Returns|Raises|Shape|Example):$")
ITEM = re.compile(r"^(?:- )?(\*{0,2}\w[\w, .]*?)( \([^)]*\))?:\s+(.*)$")
LISTS = ("Args", "Attributes", "Raises", "Shape")


def page() -> str:
    """Return the text of the page."""
    parts = [HEADER]
    for module, names in SYMBOLS.items():
        parts.append(f"## `{module}`\n")
        for name in names:
            parts.append(symbol(getattr(importlib.import_module(module), name), f"{module}.{name}"))
    return "\n".join(parts)


def symbol(value, name: str) -> str:
    """Return the entry of a function, or of a class with its METHODS."""
    parts = [f"### `{name.rsplit('.', 1)[-1]}`\n", signature(value, name), markdown(inspect.getdoc(value) or "")]
    if inspect.isclass(value):
        for method, function in inspect.getmembers(value, inspect.isfunction):
            if method in METHODS and function.__module__.startswith("ghm_triton"):
                parts += [f"#### `{method}`\n", signature(function, method), markdown(inspect.getdoc(function))]
    return "\n".join(parts)


def signature(value, name: str) -> str:
    """Return the call in a block of code, with one line per argument where it is long."""
    shown = inspect.signature(value)
    arguments = [str(one.replace(annotation=inspect.Parameter.empty)) for one in shown.parameters.values()]
    kinds = [one.kind for one in shown.parameters.values()]
    if inspect.Parameter.KEYWORD_ONLY in kinds and inspect.Parameter.VAR_POSITIONAL not in kinds:
        arguments.insert(kinds.index(inspect.Parameter.KEYWORD_ONLY), "*")
    arguments = [one for one in arguments if one != "self"]
    line = f"{name}({', '.join(arguments)})"
    if len(line) > 100:
        line = f"{name}(\n    " + ",\n    ".join(arguments) + ",\n)"
    return f"```text\n{line}\n```\n"


def markdown(docstring: str) -> str:
    """Return a docstring in Google's style as Markdown."""
    text = re.sub(r":(?:func|class|meth|mod):`~?(?:[\w.]+\.)?(\w+)`", r"`\1`", docstring)
    text = re.sub(r":math:`([^`]+)`", r"$\1$", text)
    out, section, formula = [], None, None
    for line in text.splitlines():
        stripped = line.strip()
        if formula is not None:
            if stripped:
                formula.append(stripped)
                continue
            out += ["$$" + " ".join(formula) + "$$", ""]
            formula = None
        elif stripped.startswith(".. math::"):
            formula = [stripped.removeprefix(".. math::").strip()]
        elif SECTION.match(line):
            section = line[:-1]
            out += [f"**{section}**", "", *(["```pycon"] if section == "Example" else [])]
        elif section == "Example":
            out += [line[4:]] if stripped else []
        elif stripped and not line.startswith(" "):
            section = None
            out.append(line)
        elif section in LISTS and stripped:
            item = ITEM.match(stripped) if line[4:5] != " " else None
            out.append(f"- `{item[1]}`{item[2] or ''}: {item[3]}" if item else f"  {stripped}")
        else:
            out.append(stripped)
    if formula:
        out += ["$$" + " ".join(formula) + "$$"]
    if section == "Example":
        out.append("```")
    return "\n".join(out).rstrip() + "\n"


if __name__ == "__main__":
    PAGE.write_text(page(), encoding="utf-8")
