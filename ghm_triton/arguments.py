"""The parser of the commands, and types of their arguments.

A wrong value ends the command with exit code 2 and a message, before anything is done.
"""

import argparse
import contextlib
import math
import re
import warnings
from collections.abc import Callable, Iterator

import torch


class _Help(argparse.RawDescriptionHelpFormatter):
    """Formatter that keeps the line breaks of the description and adds choices and informative defaults."""

    def _get_help_string(self, action: argparse.Action) -> str:
        text = action.help or ""
        if action.choices and action.metavar:  # else argparse shows them in place of the value
            text += f"; one of {', '.join(map(str, action.choices))}"
        if action.default in (None, False, "none", argparse.SUPPRESS) or action.const is not None:
            return text
        if isinstance(action.default, (list, tuple)):
            return f"{text} (default: {', '.join(map(str, action.default))})"
        return f"{text} (default: %(default)s)"


def command_parser(module: str, description: str, **options) -> argparse.ArgumentParser:
    """Return the parser of `python -m MODULE`. `options` are those of :class:`argparse.ArgumentParser`.

    `description` is the docstring of the command. The indented lines in it are examples, which the help shows last.
    """
    lines, examples = [], []
    for line in description.strip().splitlines():
        (examples if line.startswith("    ") else lines).append(line)
    text = re.sub(r"\n{3,}", "\n\n", "\n".join(lines)).strip()
    epilog = "\n".join(["examples:", *(f"  {line.strip()}" for line in examples)]) if examples else None
    return argparse.ArgumentParser(
        prog=f"python -m {module}", description=text, epilog=epilog, formatter_class=_Help, **options
    )


@contextlib.contextmanager
def plain_warnings() -> Iterator[None]:
    """Show warnings as one line without the place in the source."""
    before = warnings.formatwarning
    warnings.formatwarning = lambda message, *place, **more: f"warning: {message}\n"
    try:
        yield
    finally:
        warnings.formatwarning = before


def whole(least: int, most: int | None = None) -> Callable[[str], int]:
    """Return the type of a whole number from `least` up to `most`."""
    expected = f"a whole number from {least}" + (f" up to {most}" if most is not None else "")

    def convert(text: str) -> int:
        try:
            value = int(text)
        except ValueError:
            value = None
        if value is None or value < least or (most is not None and value > most):
            raise argparse.ArgumentTypeError(f"must be {expected}, got {text!r}")
        return value

    return convert


def real(least: float = -math.inf, most: float = math.inf, *, above: float = -math.inf) -> Callable[[str], float]:
    """Return the type of a finite number from `least` up to `most`, and greater than `above`."""
    limits = [(f"above {above:g}", above), (f"from {least:g}", least), (f"up to {most:g}", most)]
    expected = " ".join(["a finite number"] + [text for text, limit in limits if math.isfinite(limit)])

    def convert(text: str) -> float:
        try:
            value = float(text)
        except ValueError:
            value = math.nan
        if not (math.isfinite(value) and least <= value <= most and value > above):
            raise argparse.ArgumentTypeError(f"must be {expected}, got {text!r}")
        return value

    return convert


def device(text: str) -> torch.device:
    """Convert to an available device: the CPU, or an accelerator that PyTorch finds. "auto" prefers the accelerator."""
    # No tensor is created: it would take memory on the first GPU in each of several processes.
    count = torch.accelerator.device_count() if torch.accelerator.is_available() else 0
    kind = torch.accelerator.current_accelerator().type if count else "cpu"
    try:
        place = torch.device(kind if text == "auto" else text)
    except RuntimeError:
        place = None
    if (
        place is None
        or place.type not in ("cpu", kind)
        or (place.index or 0) >= (count if place.type == kind != "cpu" else 1)
    ):
        there = (
            f"auto, cpu, {kind} or {kind}:N with N up to {count - 1}" if count else "auto or cpu, as there is no GPU"
        )
        raise argparse.ArgumentTypeError(f"must be {there}, got {text!r}")
    return place
