"""The modes: what of a loss is run, what of that is timed, and what comes out of it to be checked."""

from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor

from .cases import Case, Data
from .implementations import Implementation

MODES = ("forward", "backward", "forward_backward", "forward_no_grad")


class Outcome(NamedTuple):
    loss: Tensor | None
    gradient: Tensor | None


class Run:
    """prepare(), which is not timed, and then timed()."""

    def __init__(self, mode: str, timed: Callable, prepare: Callable = lambda: None):
        self.mode, self.timed, self.prepare = mode, timed, prepare

    def check(self) -> Outcome:
        """One untimed run: what it computes."""
        self.prepare()
        return self.timed()


class LossRun(Run):
    """`implementation` on `data` in `mode`. The gradient is new in each run, as after zero_grad()."""

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


class GraphRun(Run):
    """Replays of `run`, captured in a CUDA graph."""

    def __init__(self, run: Run):
        super().__init__(run.mode, self._replay)
        stream = torch.cuda.Stream()
        stream.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(stream):
            for _ in range(3):
                run.check()
        torch.cuda.current_stream().wait_stream(stream)
        run.prepare()
        self._graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(self._graph):
            outcome = run.timed()
            # Its autograd graph would keep the leaf's accumulation on this stream, for captures to come
            self._outcome = Outcome(*(None if tensor is None else tensor.detach() for tensor in outcome))

    def _replay(self) -> Outcome:
        self._graph.replay()
        return self._outcome
