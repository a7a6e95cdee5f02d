"""An estimate of how long a training takes, from its first steps."""

import time
from collections.abc import Callable

from ..text import counted

_MEASURED = 10  # steps, after a first one that is slower


class Pace:
    """Report once, after a few steps, how long the others will take.

    Args:
        say: Called with the text.
        name: The name of the process that the steps belong to.
        more: What else takes time, for example ", plus the evaluations".
    """

    def __init__(self, say: Callable[[str], None], name: str, more: str = ""):
        self.say, self.name, self.more, self.steps, self.start = say, name, more, 0, 0.0

    def step(self, left: int) -> None:
        """Count a step. `left` is the number of remaining steps."""
        self.steps += 1
        if self.steps == 1:
            self.start = time.perf_counter()
        elif self.steps == 1 + _MEASURED and left:
            seconds = (time.perf_counter() - self.start) / _MEASURED * left
            self.say(f"{self.name}: {describe_time(seconds)} for the other {left:,} steps{self.more}")


def describe_time(seconds: float) -> str:
    """Return "about 40 seconds", "about 3 minutes", "about 2.5 hours" ..."""
    for limit, unit, size in ((90, "second", 1), (90 * 60, "minute", 60)):
        if seconds < limit:
            return f"about {counted(max(round(seconds / size), 1), unit)}"
    return f"about {seconds / 3600:.1f} hours"
