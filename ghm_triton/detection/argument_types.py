"""Types of the commands' arguments. A wrong value ends the command with a message before anything is done."""

import argparse
import math
from collections.abc import Callable

import torch


def whole(least: int) -> Callable[[str], int]:
    """A whole number from `least`, as a type for argparse."""

    def convert(text: str) -> int:
        try:
            value = int(text)
        except ValueError:
            value = None
        if value is None or value < least:
            raise argparse.ArgumentTypeError(f"must be a whole number from {least}, got {text!r}")
        return value

    return convert


def real(least: float = -math.inf, most: float = math.inf, *, above: float = -math.inf) -> Callable[[str], float]:
    """A finite number from `least` to `most`, greater than `above`, as a type for argparse."""
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
    """A device that is there, as a type for argparse; "auto": the first GPU, or else the CPU."""
    try:
        place = torch.device(("cuda" if torch.cuda.is_available() else "cpu") if text == "auto" else text)
    except RuntimeError:
        place = None
    # Asked without a tensor, which would take memory of the first GPU in each of several processes.
    if place is None or (place.type == "cuda" and (place.index or 0) >= torch.cuda.device_count()):
        there = torch.cuda.device_count()
        raise argparse.ArgumentTypeError(f"must be auto, cpu, cuda or cuda:N ({there} GPUs here), got {text!r}")
    return place
