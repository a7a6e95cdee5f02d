"""Signals that ask a training to stop."""

import contextlib
import signal
from collections.abc import Iterator

# Ctrl-C, kill and the time limit of a job, a closed terminal; Windows has no SIGHUP
_SIGNALS = [getattr(signal, name) for name in ("SIGINT", "SIGTERM", "SIGHUP") if hasattr(signal, name)]


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


@contextlib.contextmanager
def hold_stop_signals() -> Iterator[None]:
    """Holds the signals back within the context, also in the processes that start there, which may then ignore them."""
    if not hasattr(signal, "pthread_sigmask"):  # Windows
        yield
        return
    before = signal.pthread_sigmask(signal.SIG_BLOCK, _SIGNALS)
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def ignore_stop_signals(worker: int) -> None:
    """A `worker_init_fn` of DataLoader: a signal to the whole process group must not end the workers."""
    for number in _SIGNALS:
        signal.signal(number, signal.SIG_IGN)
