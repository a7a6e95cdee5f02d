"""Compiled, exported and captured: one graph, the numbers and the state of the plain call, no synchronization."""

import contextlib
import io

import pytest
import torch
from torch._subclasses.fake_tensor import DataDependentOutputException, FakeTensorMode

from calls import ghmc_loss, ghmr_loss
from compare import LayerWithLoss, logits
from ghm_triton import GHMCLoss, GHMRLoss
from ghm_triton.backend import kernels
from ghm_triton.check.behavior import capture_cuda_graph, check_graph
from ghm_triton.check.cases import Place
from ghm_triton.mmdet import GHMC
from ghm_triton.options import Options
from ghm_triton.population import Population
from ghm_triton.regions import floor_misses_edges
from tolerances import assert_close

on_cuda = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA or ROCm GPU")


pytestmark = pytest.mark.slow


@pytest.fixture(autouse=True)
def fresh():
    torch._dynamo.reset()


def steps(module, device, kind="c"):
    """Losses, gradients and states of calls with growing inputs, in train and eval mode, with and without gradient."""
    results = []
    for n in (40, 50, 60):
        x = logits(n, 4, seed=n).to(device).requires_grad_()
        aim = torch.randint(-1, 4, (n,), generator=torch.Generator().manual_seed(n)) if kind == "c" else logits(n, 4)
        weight = torch.arange(n) % 7 > 0
        loss = module(x, aim.to(device), weight.to(device))
        loss.backward()
        results += [loss.detach(), x.grad, *(buffer.clone() for buffer in module.buffers())]
    with torch.no_grad():
        results += [module(x, aim.to(device), weight.to(device)), *(buffer.clone() for buffer in module.buffers())]
    module.eval()
    results += [module(x, aim.to(device), weight.to(device)).detach(), *(buffer.clone() for buffer in module.buffers())]
    return results


class OfMmdetection(torch.nn.Module):
    """GHM-C by mmdetection's formulas, on a backend of choice, which the drop-in does not take."""

    def __init__(self, backend):
        super().__init__()
        self.backend = backend
        self.register_buffer("state", torch.zeros(30))

    def forward(self, x, target, weight):
        options = dict(variant="mmdet", momentum=0.5, running_counts=self.state, backend=self.backend)
        return ghmc_loss(x, target, weight, **options)


MODULES = {
    "ghmc": lambda backend: GHMCLoss(backend=backend),
    "ghmc mmdet": lambda backend: OfMmdetection(backend),
    "ghmc without state": lambda backend: GHMCLoss(momentum=0.0, backend=backend),
    "ghmr": lambda backend: GHMRLoss(backend=backend),
}


@pytest.mark.parametrize("dynamic", [False, True])
@pytest.mark.parametrize("name", MODULES)
def test_compiled_modules(name, dynamic, backend, device):
    """The same operators give the same bits. The state is updated in place, once per call, also without gradient."""
    kind = "r" if name == "ghmr" else "c"
    plain = steps(MODULES[name](backend).to(device), device, kind)
    compiled = torch.compile(MODULES[name](backend).to(device), fullgraph=True, dynamic=dynamic, backend="aot_eager")
    for expected, got in zip(plain, steps(compiled, device, kind), strict=True):
        assert torch.equal(expected, got)


def test_inductor_fuses_what_is_around(device):
    """The default compiler, static and dynamic shapes, levels, a target's gradient, and the drop-in."""
    head = torch.nn.Linear(8, 4).to(device)

    def train(x, labels, aims, boxes, state):
        outputs = head(x).relu() - 1
        levels, parts = list(outputs.split([10, 30])), list(labels.split([10, 30]))
        losses = ghmc_loss(levels, parts, momentum=0.5, running_counts=state, variant="mmdet")
        return (
            losses + ghmr_loss(outputs * 0.1, aims * boxes, reduction="sum") + drop_in(outputs, labels, aims[:, 0] > 0)
        )

    arguments = logits(40, 8).to(device), torch.arange(40, device=device) % 5, logits(40, 4).to(device)
    found = []
    for function in (train, torch.compile(train, fullgraph=True), torch.compile(train, fullgraph=True, dynamic=True)):
        drop_in = GHMC(bins=10, momentum=0.5).to(device)
        boxes, state = torch.full((40, 4), 0.5, device=device, requires_grad=True), torch.zeros(30, device=device)
        head.zero_grad()
        for _ in range(2):
            loss = function(*arguments, boxes, state)
            loss.backward()
        found.append([loss.detach(), head.weight.grad, boxes.grad, state, drop_in.acc_sum])
    for other in found[1:]:  # the compiler may round the layers otherwise
        for expected, got in zip(found[0], other):
            torch.testing.assert_close(got, expected, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("strict", [False, True])
def test_export(strict, backend, device):
    """A training step's model with the loss in it: dynamic batch, saved and loaded, with state and gradient."""
    model = LayerWithLoss(backend).to(device)
    x, labels = logits(9, 4).to(device), torch.arange(9, device=device) % 4
    batch = torch.export.Dim("batch", min=2)
    program = torch.export.export(model, (x[:5], labels[:5]), dynamic_shapes=({0: batch}, {0: batch}), strict=strict)
    file = io.BytesIO()
    torch.export.save(program, file)
    file.seek(0)
    exported = torch.export.load(file).module()
    for _ in range(2):
        expected, got = model(x, labels), exported(x, labels)
        expected.backward(), got.backward()
        assert torch.equal(got, expected)
    assert torch.equal(exported.layer.weight.grad, model.layer.weight.grad)
    assert torch.equal(exported.loss.running_counts, model.loss.running_counts)


@pytest.fixture
def fake_cuda():
    try:
        with FakeTensorMode():
            torch.empty(2, device="cuda")[1:].double().sum()
    except RuntimeError as error:
        pytest.skip(f"this PyTorch has no fake CUDA tensors without a driver: {str(error).splitlines()[0]}")


class Recorder:
    """In the place of a kernel: takes launches with fake tensors, and grids that are numbers of the host."""

    def __init__(self, name, launches):
        self.name, self.launches = name, launches

    def __getitem__(self, grid):
        assert all(type(size) is int for size in grid)
        return lambda *args, **kwargs: self.launches.append(self.name)


@pytest.fixture
def recorded(monkeypatch, fake_cuda):
    pytest.importorskip("triton")
    from ghm_triton.kernels import ghmc, ghmr, grids, harmonize

    launches = []
    for module in (ghmc, ghmr, harmonize):
        for name in dir(module):
            if name.endswith("_kernel"):
                monkeypatch.setattr(module, name, Recorder(name.strip("_"), launches))
    monkeypatch.setattr(grids, "resident_programs", lambda device: 2640)
    monkeypatch.setattr(grids, "on_device", lambda device: contextlib.nullcontext())
    floor_misses_edges(30), floor_misses_edges(10)  # of the host, once for each number of bins
    return launches


@pytest.mark.parametrize("reduction", ["mean", "none"])
@pytest.mark.parametrize("loss, bins", [("ghmc", 30), ("ghmr", 10)])
def test_launches_need_no_value_of_the_device(loss, bins, reduction, recorded):
    """With fake tensors, which have no values: anything that asks for one raises, as it would wait for the GPU."""
    with FakeTensorMode():
        x = torch.empty(100_000, 80, device="cuda")
        target = torch.empty(100_000, dtype=torch.int64, device="cuda") if loss == "ghmc" else torch.empty_like(x)
        weight, state = torch.empty(100_000, device="cuda"), torch.empty(bins + 1, device="cuda")
        population = Population([x], [target], [weight])
        options = Options(loss=loss, mu=0.02, bins=bins, exponent=1.0, momentum=0.5, reduction=reduction)
        losses, coefficients, new = kernels.launch_loss(population, state, options)
        (grad,) = kernels.launch_gradient([losses], population, [coefficients], options)
        assert grad.shape == x.shape and grad.device.type == "cuda" and new.shape == state.shape
        with pytest.raises(DataDependentOutputException):
            losses.sum().item()
    scale = [f"{loss}_scale_kernel"] * (reduction == "none")
    assert recorded == [
        f"{loss}_accumulate_kernel",
        "fold_kernel",
        "harmonize_kernel",
        *scale,
        f"{loss}_gradient_kernel",
    ]


def test_traced_for_cuda(fake_cuda):
    """Without a GPU: the default backend of fake CUDA tensors is the kernels', in one graph with the state's update."""
    pytest.importorskip("triton")
    graphs = []

    def keep(graph, inputs):
        graphs.append([node.target for node in graph.graph.nodes])
        return graph

    with FakeTensorMode():
        x, labels = torch.empty(100, 80, device="cuda"), torch.zeros(100, dtype=torch.int64, device="cuda")
        state = torch.zeros(31, device="cuda")
        function = torch.compile(ghmc_loss, fullgraph=True, backend=keep)
        loss = function(x, labels, momentum=0.5, running_counts=state)
        assert loss.device.type == "cuda" and loss.shape == ()
    assert torch.ops.ghm_triton.triton_loss in graphs[0] and "copy_" in graphs[0] and len(graphs) == 1


@on_cuda
def test_cuda_graph():
    """Captured once; replays take new values in the same memory, and update the state."""
    check_graph(Place(torch.device("cuda", torch.cuda.current_device()), "triton"), capture_cuda_graph)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16], ids=str)
def test_compiled_under_autocast(dtype, device):
    """What a training loop compiles: a 16-bit layer, then the loss in float32."""
    layer, labels = torch.nn.Linear(8, 4).to(device), torch.arange(40, device=device) % 5
    x = logits(40, 8).to(device)

    def loss(x):
        with torch.autocast(device, dtype=dtype):
            return ghmc_loss(layer(x), labels)

    expected, got = loss(x), torch.compile(loss, fullgraph=True, backend="aot_eager")(x)
    assert got.dtype == torch.float32
    assert_close(got.detach(), expected.detach(), 1e-6)
