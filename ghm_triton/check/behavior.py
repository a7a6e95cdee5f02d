"""What must hold besides the values: equal bits, no synchronization, CUDA graphs, a second device, torch.compile.

Each check returns a few words, or raises Failed.
"""

import contextlib
import warnings
from collections.abc import Callable, Iterator

import torch
from torch import Tensor

from ..losses.base import HarmonizedLoss
from ..losses.cross_entropy import GHMCrossEntropyLoss
from ..losses.ghmc import GHMCLoss
from ..losses.ghmr import GHMRLoss
from .cases import NAMES, Case, Place
from .data import Data, make_data
from .values import check_values

MODULES = {"ghmc": GHMCLoss, "ghmr": GHMRLoss, "cross_entropy": GHMCrossEntropyLoss}


class Failed(Exception):
    """Something does not hold. The message says what."""


def examples(place: Place) -> list[Case]:
    """Return what the checks compute: many programs that share the rows of counts, levels, masks."""
    size = place.elements
    return [
        Case("ghmc", (size // 80, 80), levels=1 if place.interpreted else 3),
        Case("ghmc", (size // 80, 80), distribution="uniform", mask="rows"),
        Case("ghmr", (size // 4, 4), bins=10, target="dense", distribution="uniform"),
        Case("cross_entropy", (max(4, size // 100), 100), distribution="uniform"),
    ]


def make_module(case: Case, place: Place) -> HarmonizedLoss:
    """Make the module of a case, with its moving average at 0."""
    return MODULES[case.loss](bins=case.bins, backend=place.backend).to(place.device)


def step(module: HarmonizedLoss, data: Data) -> list[Tensor]:
    """Return the loss, its gradients, and the state after the call."""
    inputs = [x.detach().requires_grad_() for x in data.inputs]
    arguments = [inputs, data.targets, data.masks] if data.masks else [inputs, data.targets]
    loss = module(*(one if len(inputs) > 1 else one[0] for one in arguments))
    return [loss.detach(), *torch.autograd.grad(loss, inputs), module.running_counts.clone()]


def _require_equal(found: list[Tensor], expected: list[Tensor], case: Case, what: str) -> None:
    for name, one, other in zip(("loss", *["gradient"] * (len(found) - 2), "state"), found, expected, strict=True):
        if not torch.equal(one, other):
            off = (one.double() - other.double()).abs().max().item()
            raise Failed(f"{what}: {name} of {case} differs by up to {off:.2e}")


def check_bits(place: Place) -> str:
    """Compute each example three times: the bits must be equal."""
    for case in examples(place):
        data = make_data(case, place.device)
        first = step(make_module(case, place), data)
        for _ in range(2):
            _require_equal(step(make_module(case, place), data), first, case, "two runs")
    return "three runs of each loss"


def check_no_waits(place: Place) -> str:
    """Compute each example while PyTorch raises an error at each wait of the host for the GPU."""
    for case in examples(place):
        data, module = make_data(case, place.device), make_module(case, place)
        step(module, data)  # compiles the kernels
        try:
            with _no_waits(place.device):
                step(module, data)
        except RuntimeError as error:
            if "synchroniz" in str(error):
                raise Failed(f"{case} waits for the GPU: {error}") from error
            raise
    return 'torch.cuda.set_sync_debug_mode("error")'


@contextlib.contextmanager
def _no_waits(device: torch.device) -> Iterator[None]:
    if device.type != "cuda":
        raise ValueError(f"PyTorch reports no waits on {device}")
    before = torch.cuda.get_sync_debug_mode()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # "is a prototype feature"
        torch.cuda.set_sync_debug_mode("error")
        try:
            yield
        finally:
            torch.cuda.set_sync_debug_mode(before)


def check_graph(place: Place, capture: Callable[[Callable[[], None]], Callable[[], None]]) -> str:
    """Capture a step of training, with its moving average, and replay it on other data.

    Args:
        place: Device and backend.
        capture: From a function without arguments to one that repeats its work: see :func:`capture_cuda_graph`.
    """
    for case in examples(place):
        data, module = make_data(case, place.device), make_module(case, place)
        outputs = [torch.zeros_like(one) for one in step(module, data)]

        def run(module=module, data=data, outputs=outputs) -> None:
            for output, one in zip(outputs, step(module, data)):
                output.copy_(one)

        replay = capture(run)
        module.reset_parameters()
        twin = make_module(case, place)
        for seed in (1, 2, 3):
            new = make_data(case._replace(seed=seed), place.device)
            for old_ones, new_ones in zip(data[:3], new[:3]):
                for old, one in zip(old_ones, new_ones):
                    old.copy_(one)
            replay()
            _require_equal(outputs, step(twin, new), case, f"replay {seed} of the graph")
    return "three replays of each loss, with moving average"


def capture_cuda_graph(run: Callable[[], None]) -> Callable[[], None]:
    """Capture what `run` launches, after a call on a stream of its own as PyTorch asks for."""
    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        run()
    torch.cuda.current_stream().wait_stream(stream)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        run()
    return graph.replay


def check_other_device(place: Place, other: torch.device) -> str:
    """Compute on a device that is not the current one."""
    for case in examples(Place(other, place.backend)):
        units = check_values(case, place.backend, other).worst
        if not units <= 1:
            raise Failed(f"{case} on {other} errs by {units:.3g} times the tolerance")
    return f"{other}, while {place.device} is the current one"


def check_compile(place: Place) -> str:
    """Compile each loss to one graph and compare it with the plain call, to the bit, for two numbers of rows."""
    backend = "inductor" if place.device.type != "cpu" else "aot_eager"  # which needs no C++ compiler
    for case in examples(place)[1:]:
        plain, compiled = make_module(case, place), make_module(case, place)
        graph = torch.compile(compiled, backend=backend, fullgraph=True)
        for rows in (case.shape[0], case.shape[0] - 3):
            data = make_data(case._replace(shape=(rows, case.shape[1])), place.device)
            inputs = [x.detach().requires_grad_() for x in data.inputs]
            loss = graph(inputs[0], data.targets[0], *data.masks)
            found = [loss.detach(), *torch.autograd.grad(loss, inputs), compiled.running_counts.clone()]
            _require_equal(found, step(plain, data), case, "torch.compile")
    return f"{', '.join(NAMES.values())}; fullgraph=True, backend {backend!r}"
