"""Signals that ask a training to stop."""

import contextlib
import signal
from collections.abc import Iterator

# Ctrl-C, kill and the time limit of a job, a closed terminal; Windows has no SIGHUP
_SIGNALS = [getattr(signal, name) for name in ("SIGINT", "SIGTERM", "SIGHUP") if hasattr(signal, name)]


class Stopped(Exception):
    """A signal asked the training to stop, and the checkpoint is written."""


class StopRequest:
    """Whether a signal has asked to stop. The training reads `asked` where it can save a checkpoint."""

    asked = False


@contextlib.contextmanager
def catch_stop_signals() -> Iterator[StopRequest]:
    """Turn signals into a request within the context. A signal that is ignored, as under `nohup`, stays ignored."""
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
    """Block the signals within the context, also in processes started there, which can then ignore them."""
    if not hasattr(signal, "pthread_sigmask"):  # Windows
        yield
        return
    before = signal.pthread_sigmask(signal.SIG_BLOCK, _SIGNALS)
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def ignore_stop_signals(worker: int) -> None:
    """Ignore signals to the whole process group in a worker. This is a `worker_init_fn` of DataLoader."""
    for number in _SIGNALS:
        signal.signal(number, signal.SIG_IGN)
