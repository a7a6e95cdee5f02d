"""The modes of a loss: what runs, what of it is timed, and which results are checked."""

import time
from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor

from .cases import Case
from .data import Data
from .implementations import Implementation

MODES = ("forward", "backward", "forward_backward", "forward_no_grad")


class Outcome(NamedTuple):
    """The results of a call; None where its mode computes none."""

    loss: Tensor | None
    gradient: Tensor | None


class TimedCall:
    """prepare(), which is not timed, then timed().

    Attributes:
        mode: One of MODES, or a name.
        leaves: Tensors whose gradient timed() makes anew.
        seconds: How long the last check() took.
    """

    def __init__(self, mode: str, timed: Callable, prepare: Callable = lambda: None, leaves: tuple[Tensor, ...] = ()):
        self.mode, self.timed, self.prepare, self.leaves = mode, timed, prepare, leaves
        self.seconds = 0.0

    def check(self) -> Outcome:
        """Make one call, and return what it computes."""
        start = time.perf_counter()
        self.prepare()
        outcome = self.timed()
        self.seconds = time.perf_counter() - start
        return outcome

    def release(self) -> None:
        """Release the tensors that prepare() made."""


class LossCall(TimedCall):
    """`implementation` on `data` in `mode`. The gradient is new in each call, as after zero_grad()."""

    def __init__(self, implementation: Implementation, case: Case, data: Data, mode: str):
        super().__init__(mode, getattr(self, f"_{mode}"), self._prepare, (data.input,))
        self._call = lambda: implementation.call(case, data)
        self._data = data
        self._repeats = data.input.device.type != "cpu"  # do_bench calls timed() again without prepare()
        self._loss = None

    def _prepare(self) -> None:
        self.release()
        self._loss = self._call() if self.mode == "backward" else None

    def release(self) -> None:
        """Release the gradient and the graph."""
        self._data.input.grad = self._loss = None

    def _forward(self) -> Outcome:
        return Outcome(self._call(), None)

    def _forward_no_grad(self) -> Outcome:
        with torch.no_grad():
            return Outcome(self._call(), None)

    def _backward(self) -> Outcome:
        self._loss.backward(self._data.scale, retain_graph=self._repeats)
        return Outcome(None, self._data.input.grad)

    def _forward_backward(self) -> Outcome:
        loss = self._call()
        loss.backward(self._data.scale)
        return Outcome(loss, self._data.input.grad)
