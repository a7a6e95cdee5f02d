"""How long a training takes, from its first steps."""

import time
from collections.abc import Callable

_MEASURED = 10  # steps, after a first one that is slower


class Pace:
    """Says once, after a few steps, how long the others take.

    Args:
        say: Takes the text.
        name: What the steps are of.
    """

    def __init__(self, say: Callable[[str], None], name: str):
        self.say, self.name, self.steps, self.start = say, name, 0, 0.0

    def step(self, left: int) -> None:
        """Count a step, after which `left` are left."""
        self.steps += 1
        if self.steps == 1:
            self.start = time.perf_counter()
        elif self.steps == 1 + _MEASURED and left:
            seconds = (time.perf_counter() - self.start) / _MEASURED * left
            self.say(f"{self.name}: {describe_time(seconds)} for the other {left:,} steps, without evaluations")


def describe_time(seconds: float) -> str:
    """Return "about 40 seconds", "about 3 minutes", "about 2.5 hours" ..."""
    for limit, unit, size in ((90, "seconds", 1), (90 * 60, "minutes", 60)):
        if seconds < limit:
            return f"about {max(round(seconds / size), 1)} {unit}"
    return f"about {seconds / 3600:.1f} hours"
