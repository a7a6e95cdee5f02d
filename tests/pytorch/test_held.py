"""Ordinary uses of PyTorch, each against the plain call: the rows of tests/README.md that held when they were tried."""

import copy
import io
import pickle

import pytest
import torch
from torch import nn
from torch.utils.checkpoint import checkpoint
from torchvision import tv_tensors

from ghm_triton import GHMCLoss, GHMRLoss, ghmc_loss, ghmr_loss

LABELS = torch.tensor([-1, 0, 3, 2, 4, -1, 1, 0])
KINDS = ["class index", "dense", "deltas"]


def data(kind, rows=8):
    """Logits or deltas [rows, 5], and their target."""
    generator = torch.Generator().manual_seed(3)
    x = 3 * torch.randn(rows, 5, generator=generator)
    if kind == "class index":
        return x, LABELS.repeat(rows)[:rows]
    return x, torch.rand(rows, 5, generator=generator)


def module(kind, backend, **options):
    loss = GHMRLoss if kind == "deltas" else GHMCLoss
    return loss(bins=6, momentum=0.5, backend=backend, **options)


def plain(kind, backend, x, target, **options):
    """The loss, its gradient, and the state of a plain call."""
    loss = module(kind, backend, **options)
    leaf = x.clone().requires_grad_()
    value = loss(leaf, target)
    value.sum().backward()
    return value.detach(), leaf.grad, loss.running_counts


@pytest.fixture(params=KINDS)
def kind(request):
    return request.param


def test_checkpointing_under_autocast(kind, backend, device):
    x, target = (tensor.to(device) for tensor in data(kind))
    value, gradient, state = plain(kind, backend, x, target)
    loss, leaf = module(kind, backend), x.clone().requires_grad_()
    with torch.autocast(device, dtype=torch.bfloat16):
        again = checkpoint(loss, leaf, target, use_reentrant=False)
    again.backward()
    assert torch.equal(again, value) and torch.equal(leaf.grad, gradient) and torch.equal(loss.running_counts, state)


def test_retain_graph(kind, backend, device):
    x, target = (tensor.to(device) for tensor in data(kind))
    _, gradient, _ = plain(kind, backend, x, target)
    leaf = x.clone().requires_grad_()
    value = module(kind, backend)(leaf, target)
    value.backward(retain_graph=True)
    value.backward()
    torch.testing.assert_close(leaf.grad, 2 * gradient, rtol=0, atol=0)


def _saved(loss):
    file = io.BytesIO()
    torch.save(loss, file)
    file.seek(0)
    return torch.load(file, weights_only=False)


@pytest.mark.parametrize("copied", [copy.deepcopy, lambda loss: pickle.loads(pickle.dumps(loss)), _saved])
def test_copies_have_a_state_of_their_own(kind, backend, device, copied):
    x, target = (tensor.to(device) for tensor in data(kind))
    loss = module(kind, backend).to(device)
    loss(x, target)
    before = loss.running_counts.clone()
    other = copied(loss)
    assert torch.equal(other.running_counts, before) and other.options() == loss.options()
    expected = loss(x, target)
    assert torch.equal(other.running_counts, before)
    assert torch.equal(other(x, target), expected)


def test_empty_and_scalar_inputs_and_levels(kind, backend, device):
    """A level without elements or with a single number changes nothing but its own part; [N, 0] inputs give 0."""
    x, target = (tensor.to(device) for tensor in data(kind))
    value, gradient, _ = plain(kind, backend, x, target)
    leaf = x.clone().requires_grad_()
    empty = x[:0].clone().requires_grad_()
    again = module(kind, backend)([empty, leaf], [target[:0], target])
    again.backward()
    assert torch.equal(again, value) and torch.equal(leaf.grad, gradient) and empty.grad.shape == (0, 5)
    none = module(kind, backend)(x[:, :0], torch.full_like(target, -1) if kind == "class index" else target[:, :0])
    assert none.item() == 0
    if kind != "class index":
        scalar = module(kind, backend)([x[0, 0], x.flatten()[1:]], [target[0, 0], target.flatten()[1:]])
        torch.testing.assert_close(scalar, value, rtol=1e-6, atol=0)  # another order of the same sum


def test_one_leaf_in_two_levels(kind, backend, device):
    x, target = (tensor.to(device) for tensor in data(kind))
    leaf, first, second = (x.clone().requires_grad_() for _ in range(3))
    module(kind, backend)([leaf, leaf], [target, target]).backward()
    module(kind, backend)([first, second], [target, target]).backward()
    assert torch.equal(leaf.grad, first.grad + second.grad)


def test_channels_last(backend, device):
    """[N, C, H, W] in channels-last memory and its view with the classes last are the contiguous logits."""
    x = 3 * torch.randn(2, 5, 3, 4, generator=torch.Generator().manual_seed(3)).to(device)
    target = torch.randint(-1, 5, (2, 3, 4), generator=torch.Generator().manual_seed(4)).to(device)
    value, gradient, _ = plain("class index", backend, x.permute(0, 2, 3, 1).contiguous(), target)
    leaf = x.to(memory_format=torch.channels_last).requires_grad_()
    for input, options in ((leaf.permute(0, 2, 3, 1), {}), (leaf, {"class_dim": 1})):
        leaf.grad = None
        again = module("class index", backend, **options)(input, target)
        again.backward()
        assert torch.equal(again, value) and torch.equal(leaf.grad.permute(0, 2, 3, 1), gradient)


def test_default_dtype_and_device_do_not_matter(kind, backend, device):
    x, target = (tensor.to(device) for tensor in data(kind))
    value, gradient, state = plain(kind, backend, x, target)
    torch.set_default_dtype(torch.float64)
    try:
        with torch.device("meta"):
            made = module(kind, backend)
        loss = made.to_empty(device=device)
        loss.reset_parameters()
        leaf = x.clone().requires_grad_()
        with torch.device("meta"):
            again = loss(leaf, target)
            again.backward()
    finally:
        torch.set_default_dtype(torch.float32)
    assert torch.equal(again, value) and torch.equal(leaf.grad, gradient) and torch.equal(loss.running_counts, state)


def test_meta_tensors_give_shapes(kind):
    x, target = (tensor.to("meta") for tensor in data(kind))
    loss = module(kind, "eager", reduction="none").to("meta")
    result = loss(x.requires_grad_(), target)
    result.sum().backward()
    assert result.shape == x.shape == x.grad.shape and result.is_meta and x.grad.is_meta


def test_parameters_subclasses_and_hooks(kind, backend, device):
    """`nn.Parameter` and tensors of torchvision as arguments; full backward hooks see the gradient."""
    x, target = (tensor.to(device) for tensor in data(kind))
    value, gradient, _ = plain(kind, backend, x, target)
    parameter, seen = nn.Parameter(x.clone()), []
    loss = module(kind, backend)
    loss.register_full_backward_hook(lambda own, inputs, outputs: seen.append(inputs[0]))
    again = loss(parameter, tv_tensors.Mask(target))
    again.backward()
    assert torch.equal(again, value) and torch.equal(parameter.grad, gradient)
    assert len(seen) == 1 and torch.equal(seen[0], gradient)


def test_unreduced_levels(kind, backend, device):
    x, target = (tensor.to(device) for tensor in data(kind))
    value, gradient, _ = plain(kind, backend, x, target, reduction="none")
    leaf = x.clone().requires_grad_()
    losses = module(kind, backend, reduction="none")([leaf[:3], leaf[3:]], [target[:3], target[3:]])
    sum(loss.sum() for loss in losses).backward()
    # Vectorized and remaining elements of a tensor may differ in the last bit.
    torch.testing.assert_close((torch.cat(losses), leaf.grad), (value, gradient), rtol=1e-6, atol=0)


def test_exponent_0_in_evaluation(kind, backend, device):
    """The weights are 1, whatever the state holds."""
    x, target = (tensor.to(device) for tensor in data(kind))
    loss = module(kind, backend, exponent=0.0).to(device)
    expected = loss(x, target)
    loss(0.1 * x, target)
    torch.testing.assert_close(loss.eval()(x, target), expected, rtol=1e-6, atol=0)
    assert loss.running_counts[:-1].count_nonzero() > 0


def test_double_state_beside_a_single_one(kind, backend, device):
    """The float64 average is that of float32 to its precision."""
    x, target = (tensor.to(device) for tensor in data(kind))
    losses = {"deltas": ghmr_loss}.get(kind, ghmc_loss)
    results = []
    for dtype in (torch.float32, torch.float64):
        state = torch.zeros(7, dtype=dtype, device=device)
        options = {"bins": 6, "momentum": 0.7, "running_counts": state, "backend": backend}
        losses(x, target, **options)
        results.append((losses(0.3 * x, target, **options), state.float()))
    torch.testing.assert_close(results[0], results[1], rtol=1e-6, atol=0)


@pytest.mark.slow
def test_compiled_for_changing_sizes(kind, backend, device):
    torch._dynamo.reset()
    eager, loss = module(kind, backend).to(device), module(kind, backend).to(device)
    compiled = torch.compile(loss, dynamic=True)
    for index, rows in enumerate((40, 17, 3, 1, 33)):
        x, target = (tensor.to(device) for tensor in data(kind, rows))
        for one in (eager, loss):
            one.train(index % 2 == 0)
        leaf, other = x.clone().requires_grad_(), x.clone().requires_grad_()
        value, expected = compiled(leaf, target), eager(other, target)
        value.backward()
        expected.backward()
        assert torch.equal(value, expected) and torch.equal(leaf.grad, other.grad)
        assert torch.equal(loss.running_counts, eager.running_counts)
