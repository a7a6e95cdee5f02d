"""The modes of a loss: what runs, what of it is timed, and which results are checked."""

from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor

from .cases import Case
from .data import Data
from .implementations import Implementation

MODES = ("forward", "backward", "forward_backward", "forward_no_grad")


class Outcome(NamedTuple):
    loss: Tensor | None
    gradient: Tensor | None


class TimedCall:
    """prepare(), which is not timed, then timed()."""

    def __init__(self, mode: str, timed: Callable, prepare: Callable = lambda: None):
        self.mode, self.timed, self.prepare = mode, timed, prepare

    def check(self) -> Outcome:
        """One call without timing. Return what it computes."""
        self.prepare()
        return self.timed()


class LossCall(TimedCall):
    """`implementation` on `data` in `mode`. The gradient is new in each call, as after zero_grad()."""

    def __init__(self, implementation: Implementation, case: Case, data: Data, mode: str):
        super().__init__(mode, getattr(self, f"_{mode}"), self._prepare)
        self._call = lambda: implementation.call(case, data)
        self._data = data
        self._loss = None

    def _prepare(self) -> None:
        self._data.input.grad = None
        self._loss = self._call() if self.mode == "backward" else None

    def _forward(self) -> Outcome:
        return Outcome(self._call(), None)

    def _forward_no_grad(self) -> Outcome:
        with torch.no_grad():
            return Outcome(self._call(), None)

    def _backward(self) -> Outcome:
        self._loss.backward(self._data.scale)
        return Outcome(None, self._data.input.grad)

    def _forward_backward(self) -> Outcome:
        loss = self._call()
        loss.backward(self._data.scale)
        return Outcome(loss, self._data.input.grad)


class GraphReplay(TimedCall):
    """Replays of `call`, captured in a CUDA graph."""

    def __init__(self, call: TimedCall):
        super().__init__(call.mode, self._replay)
        stream = torch.cuda.Stream()
        stream.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(stream):
            for _ in range(3):
                call.check()
        torch.cuda.current_stream().wait_stream(stream)
        call.prepare()
        self._graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(self._graph):
            outcome = call.timed()
            # Detached: the autograd graph would keep the leaf's accumulation on this stream for later captures
            self._outcome = Outcome(*(None if tensor is None else tensor.detach() for tensor in outcome))

    def _replay(self) -> Outcome:
        self._graph.replay()
        return self._outcome
