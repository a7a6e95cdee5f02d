"""What the commands share in parsing their arguments."""

import argparse
import math


def command_parser(module: str, description: str) -> argparse.ArgumentParser:
    """The parser of `python -m MODULE`. Its help shows the defaults and keeps the line breaks of the description."""
    return argparse.ArgumentParser(prog=f"python -m {module}", description=description, formatter_class=_Help)


class _Help(argparse.ArgumentDefaultsHelpFormatter, argparse.RawDescriptionHelpFormatter):
    def _get_help_string(self, action):
        """Add the choices and the default. "(default: None)" and "(default: False)" would say nothing."""
        text = action.help
        if action.choices:
            text += f"; of {', '.join(map(str, action.choices))}"
        if isinstance(action.default, list):
            text += f" (default: {', '.join(map(str, action.default))})"
        elif action.default not in (None, False, argparse.SUPPRESS):
            text += " (default: %(default)s)"
        return text


def positive_int(text: str) -> int:
    """A type for argparse: a whole number of at least 1."""
    if not text.isascii() or not text.isdigit() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"must be a whole number of at least 1, got {text!r}")
    return int(text)


def minutes(text: str) -> float:
    """A type for argparse: a number of at least 0, also "inf"."""
    try:
        value = float(text)
    except ValueError:
        value = math.nan
    if not value >= 0:
        raise argparse.ArgumentTypeError(f"must be a number of at least 0, got {text!r}")
    return value
