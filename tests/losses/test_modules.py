"""The modules as parts of a training program: copied, saved, cast, moved, accumulated, shared by threads."""

import copy
import inspect
import io
import pickle
import threading

import pytest
import torch

from calls import ghmc_loss
from compare import logits
from ghm_triton import GHMCLoss, GHMCrossEntropyLoss, GHMRLoss
from ghm_triton.mmdet import GHMC, GHMR
from tolerances import GRADIENT, LOSS, assert_close

MODULES = {
    "ghmc": GHMCLoss,
    "ghmr": GHMRLoss,
    "drop-in c": lambda: GHMC(30, 0.75),
    "drop-in r": lambda: GHMR(momentum=0.7),
}


def used(name, device="cpu"):
    """(module after one call, arguments)."""
    module, x = MODULES[name]().to(device), logits(20, 4).to(device)
    target = torch.arange(20, device=device) % 5 if name.endswith("c") else x * 0.9
    weight = torch.ones(20 if name.endswith("c") else (20, 4), device=device)
    weight = weight if name.startswith("drop-in") else weight > 0
    module(x, target, weight)
    return module, (x, target, weight)


def saved_and_loaded(module):
    file = io.BytesIO()
    torch.save(module, file)
    file.seek(0)
    return torch.load(file, weights_only=False)


@pytest.mark.parametrize("copied", [copy.deepcopy, lambda m: pickle.loads(pickle.dumps(m)), saved_and_loaded])
@pytest.mark.parametrize("name", MODULES)
def test_copies(name, copied, device):
    """A copy has the state of the original, and its own from then on."""
    module, arguments = used(name, device)
    other = copied(module)
    assert torch.equal(other(*arguments), module(*arguments))
    module(*arguments)
    assert any(not torch.equal(*pair) for pair in zip(module.buffers(), other.buffers()))


@pytest.mark.parametrize("name", MODULES)
def test_state_dict_is_strict_both_ways(name, device):
    module, arguments = used(name, device)
    other = MODULES[name]().to(device)
    other.load_state_dict(module.state_dict(), strict=True)
    assert torch.equal(other(*arguments), module(*arguments))
    for wrong in ({}, module.state_dict() | {"more": torch.zeros(1)}):
        with pytest.raises(RuntimeError, match="Missing key|Unexpected key"):
            other.load_state_dict(wrong, strict=True)


@pytest.mark.parametrize("name", MODULES)
def test_casts_leave_the_state_float32(name, device):
    """Counts over 2048 do not fit float16."""
    module, arguments = used(name, device)
    expected = module(*arguments)
    for cast in (lambda m: m.half(), lambda m: m.to(torch.bfloat16), lambda m: m.double(), lambda m: m.to(device)):
        other, _ = used(name, device)
        assert torch.equal(cast(other)(*arguments), expected)
        assert all(buffer.dtype == torch.float32 for buffer in other.buffers())


def assigned(module):
    """A checkpoint in half precision, whose tensors replace those of the module."""
    state = {name: value.half() for name, value in module.state_dict().items()}
    module.load_state_dict(state, assign=True)


def cast_in_place(module):
    """As FSDP1's MixedPrecision(buffer_dtype=...) does."""
    for buffer in module.buffers():
        buffer.data = buffer.data.to(torch.bfloat16)


@pytest.mark.parametrize("cast", [assigned, cast_in_place])
@pytest.mark.parametrize("name", [*MODULES, "cross entropy"])
def test_casts_by_assignment_end_with_the_next_call(name, cast, device):
    """The counts are float32 again: the call has the value, and leaves the state, of the rounded counts."""
    if name == "cross entropy":
        x = logits(20, 4).to(device)
        module, arguments = GHMCrossEntropyLoss().to(device), (x, torch.arange(20, device=device) % 4)
        module(*arguments)
        other = GHMCrossEntropyLoss().to(device)
    else:
        module, arguments = used(name, device)
        other = MODULES[name]().to(device)
    cast(module)
    other.load_state_dict({key: value.float() for key, value in module.state_dict().items()})
    assert torch.equal(module(*arguments), other(*arguments))
    for buffer, expected in zip(module.buffers(), other.buffers(), strict=True):
        assert buffer.dtype == torch.float32 and torch.equal(buffer, expected)


def test_inference_mode_and_no_grad(backend, device):
    """The same value as with gradient; the state takes the call in."""
    x, labels = logits(20, 4).to(device).requires_grad_(), torch.arange(20, device=device) % 5
    modules = [GHMCLoss(backend=backend).to(device) for _ in range(3)]
    with torch.no_grad():
        without = modules[0](x, labels)
    with torch.inference_mode():
        inferred = modules[1](x, labels)
    expected = modules[2](x, labels)
    for value, module in ((without, modules[0]), (inferred, modules[1])):
        assert not value.requires_grad and torch.equal(value, expected.detach())
        assert torch.equal(module.running_counts, modules[2].running_counts)


def test_gradient_accumulation(backend, device):
    """Two calls before one backward, and two backward calls into one gradient."""
    x, labels = logits(20, 4).to(device), torch.arange(20, device=device) % 5
    together, apart = (x.clone().requires_grad_() for _ in range(2))
    module, other = GHMCLoss(backend=backend).to(device), GHMCLoss(backend=backend).to(device)
    (module(together, labels) + module(together * 0.5, labels)).backward()
    for scale in (1.0, 0.5):
        other(apart * scale, labels).backward()
    assert_close(apart.grad, together.grad.double(), GRADIENT, 1e-12)  # the order of a sum of two


def test_grad_scaler(device):
    """A loss of a float16 layer times 65536 overflows nowhere. Scaled back, the gradient is that without a scale."""
    torch.manual_seed(0)
    layer = torch.nn.Linear(8, 4).to(device)
    x, labels = logits(40, 8).to(device), torch.arange(40, device=device) % 5
    scaler = torch.amp.GradScaler(device, init_scale=65536.0)
    optimizer = torch.optim.SGD(layer.parameters(), lr=0.0)
    found = []
    for scale in (lambda loss: loss, scaler.scale):
        optimizer.zero_grad()
        with torch.autocast(device, dtype=torch.float16):
            loss = ghmc_loss(layer(x), labels)
        scale(loss).backward()
        found.append(layer.weight.grad.clone())
    scaler.unscale_(optimizer)
    assert layer.weight.grad.isfinite().all()
    # float16 products: 2^-11 of the largest of 40 terms each
    torch.testing.assert_close(layer.weight.grad, found[0], rtol=1e-2, atol=1e-2 * found[0].abs().max().item())


def test_deterministic_algorithms(backend, device):
    """Nothing that PyTorch calls nondeterministic is used."""
    x, labels = logits(200, 4).to(device), torch.arange(200, device=device) % 5
    weight = torch.arange(200, device=device) % 7 > 0
    expected = ghmc_loss(x, labels, weight, backend=backend)
    torch.use_deterministic_algorithms(True)
    try:
        for target in (labels, x.sigmoid()):
            leaf = x.clone().requires_grad_()
            ghmc_loss(leaf, target, weight, backend=backend).backward()
        assert torch.equal(ghmc_loss(x, labels, weight, backend=backend), expected)
    finally:
        torch.use_deterministic_algorithms(False)


def test_threads():
    """Losses of several threads at once, each with a module of its own."""
    x, labels = logits(3000, 8), torch.arange(3000) % 9
    module = GHMCLoss()
    expected = [module(x, labels) for _ in range(5)]
    found = [None] * 4

    def work(i):
        mine = GHMCLoss()
        found[i] = [mine(x, labels) for _ in range(5)]

    threads = [threading.Thread(target=work, args=(i,)) for i in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert all(torch.equal(a, b) for values in found for a, b in zip(values, expected, strict=True))


@pytest.mark.skipif(torch.cuda.device_count() < 2, reason="needs two GPUs")
def test_the_device_is_the_inputs():
    """Not the current one."""
    x, labels = logits(200, 4), torch.arange(200) % 5
    with torch.cuda.device(0):
        value = ghmc_loss(x.to("cuda:1"), labels.to("cuda:1"))
    assert value.device == torch.device("cuda:1")
    assert_close(value.cpu(), ghmc_loss(x, labels).double(), 2 * LOSS)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_streams():
    """The kernels run on the stream that is current."""
    x, labels = logits(20_000, 80).cuda(), torch.arange(20_000, device="cuda") % 81
    expected = ghmc_loss(x, labels)
    torch.cuda.synchronize()
    streams = [torch.cuda.Stream() for _ in range(3)]
    values = []
    for stream in streams:
        with torch.cuda.stream(stream):
            values.append(ghmc_loss(x, labels))
    torch.cuda.synchronize()
    assert all(torch.equal(value, expected) for value in values)


@pytest.mark.parametrize("module", [GHMCLoss, GHMRLoss, GHMCrossEntropyLoss])
def test_help_describes_each_argument(module):
    """Without a look at another page; among them why the momentum differs from that of the functions."""
    text = inspect.getdoc(module)
    for name in inspect.signature(module).parameters:
        assert f"\n    {name}: " in text, name
    text = " ".join(text.split())
    assert ("default to 0" in text and "1 has the density of the paper" in text) or "exponent=1`` is the paper" in text
