"""Signals that ask a training to stop."""

import contextlib
import signal
from collections.abc import Iterator

_SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)  # Ctrl-C, kill and a job's time limit, a closed terminal


class Stopped(Exception):
    """A signal asked for the end of the training, and its checkpoint is written."""


class StopRequest:
    """Whether a signal has asked to stop. The training looks at `asked` where it can save itself."""

    asked = False


@contextlib.contextmanager
def catch_stop_signals() -> Iterator[StopRequest]:
    """Turns signals into a request, within the context. A signal that is ignored, as under `nohup`, stays ignored."""
    request = StopRequest()

    def ask(*_):
        request.asked = True

    before = {number: signal.getsignal(number) for number in _SIGNALS}
    for number, handler in before.items():
        if handler is not signal.SIG_IGN:
            signal.signal(number, ask)
    try:
        yield request
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def ignore_stop_signals(worker: int) -> None:
    """A `worker_init_fn` of DataLoader: a signal to the whole process group must not end the workers."""
    for number in _SIGNALS:
        signal.signal(number, signal.SIG_IGN)
