"""Numbers and lists in messages."""

from collections.abc import Sequence

_NAMED = 5


def counted(number: int, noun: str) -> str:
    """Return "1 image", "1,500 images", "2 boxes" ..."""
    plural = noun + ("es" if noun.endswith(("s", "x")) else "s")
    return f"{number:,} {noun if number == 1 else plural}"


def listed(values: Sequence[object]) -> str:
    """Return up to five values, and the number of those left out."""
    shown = ", ".join(map(str, values[:_NAMED]))
    return shown if len(values) <= _NAMED else f"{shown}, and {len(values) - _NAMED:,} more"
