"""With the rest of PyTorch: checkpointing, saved-tensor hooks, traced graphs, stacked gradients, no gradients."""

from typing import NamedTuple

import pytest
import torch
from torch import Tensor
from torch.fx.experimental.proxy_tensor import make_fx
from torch.utils.checkpoint import checkpoint

from calls import ghm_cross_entropy, ghmc_loss, ghmr_loss


class Case(NamedTuple):
    loss: object
    input: Tensor
    target: Tensor
    bins: int

    @property
    def softmax(self) -> bool:
        """Whether the loss is that of a softmax classifier, which takes no weight and has no variant."""
        return self.loss is ghm_cross_entropy

    def leaf(self) -> Tensor:
        return self.input.clone().requires_grad_()


CASES = ["class index", "dense", "deltas", "softmax index", "softmax distribution"]


@pytest.fixture(params=CASES)
def case(request, device):
    generator = torch.Generator().manual_seed(5)
    x = (torch.randn(50, 20, generator=generator) * 3 - 3).to(device)
    if request.param == "deltas":
        return Case(ghmr_loss, x[:, :4] * 0.1, torch.zeros(50, 4, device=device), 10)
    softmax = request.param.startswith("softmax")
    if request.param.endswith("index"):
        target = torch.randint(0 if softmax else -1, 20, (50,), generator=generator)
    else:
        target = torch.rand(50, 20, generator=generator)
        target = target.softmax(1) if softmax else target
    return Case(ghm_cross_entropy if softmax else ghmc_loss, x, target.to(device), 30)


@pytest.fixture
def call(case, backend):
    loss, most = case.loss, 2 if case.softmax else 3  # arguments: cross entropy has no weight

    def call(input, target=None, weight=None, **options):
        given = (input, case.target if target is None else target, weight)
        return loss(*given[:most], backend=backend, **options)

    return call


@pytest.fixture
def expected(case, call):
    leaf = case.leaf()
    call(leaf).backward()
    return leaf.grad


@pytest.mark.parametrize("reentrant", [False, True])
def test_checkpointing(case, call, expected, reentrant):
    leaf = case.leaf()
    checkpoint(call, leaf, use_reentrant=reentrant).backward()
    assert torch.equal(leaf.grad, expected)


def test_saved_tensor_hooks(case, call, expected):
    """Each saved tensor is unpacked once, as a hook may count or forget."""
    unpacked = []
    leaf = case.leaf()
    with torch.autograd.graph.saved_tensors_hooks(
        lambda tensor: tensor.clone(), lambda kept: unpacked.append(1) or kept
    ):
        loss = call(leaf)
    loss.backward()
    assert torch.equal(leaf.grad, expected)
    # At most input, target, weight, coefficients; input, target, and the four that the kernels of a softmax keep.
    assert len(unpacked) <= (6 if case.softmax else 4)

    leaf = case.leaf()
    with torch.autograd.graph.save_on_cpu():
        loss = call(leaf)
    loss.backward()
    assert torch.equal(leaf.grad, expected)


@pytest.mark.parametrize("variant", ["paper", "mmdet"])
@pytest.mark.parametrize("reentrant", [False, True])
def test_checkpointing_updates_the_state_once(case, call, variant, reentrant, device):
    """The forward that is run again in the backward pass sees the state as the first one left it."""

    if case.softmax and variant != "paper":
        pytest.skip("has no variants")

    def train(wrap):
        state = torch.zeros(case.bins + (variant == "paper"), device=device)
        options = dict(momentum=0.75, running_counts=state)
        if not case.softmax:
            options["variant"] = variant
        call(case.input * 0.5, **options)  # a state that differs from what comes
        leaf = case.leaf()
        wrap(lambda x: call(x, **options), leaf).backward()
        return state, leaf.grad

    state, grad = train(lambda function, x: function(x))
    again = train(lambda function, x: checkpoint(function, x, use_reentrant=reentrant))
    assert torch.equal(again[0], state)
    assert torch.equal(again[1], grad)


@pytest.mark.slow
@pytest.mark.parametrize("case", ["class index"], indirect=True)
@pytest.mark.parametrize("compiled", ["loss", "checkpoint"])
def test_checkpointing_of_compiled_code_updates_the_state_once(case, call, compiled, device):
    """A compiled loss in a checkpoint, and a compiled function with a checkpoint in it."""

    def train(wrap):
        state = torch.zeros(case.bins + 1, device=device)

        def loss(x):
            return call(x, momentum=0.75, running_counts=state)

        loss(case.input * 0.5)
        leaf = case.leaf()
        wrap(loss)(leaf).backward()
        return state, leaf.grad

    def compile(function):
        torch._dynamo.reset()
        return torch.compile(function, backend="aot_eager")

    def repeat(function):
        return lambda x: checkpoint(function, x, use_reentrant=False)

    state, grad = train(lambda loss: loss)
    again = train(lambda loss: repeat(compile(loss)) if compiled == "loss" else compile(repeat(loss)))
    assert torch.equal(again[0], state)
    assert torch.equal(again[1], grad)


def test_traced_without_gradient_trains(case, call, expected):
    """Whether a gradient is wanted is no property of the graph: example inputs seldom require one."""
    leaf = case.leaf()
    make_fx(lambda x: call(x))(case.input)(leaf).backward()
    assert torch.equal(leaf.grad, expected)

    leaf = case.leaf()
    traced = torch.jit.trace(lambda input, target: call(input, target), (case.input, case.target))
    traced(leaf, case.target).backward()
    assert torch.equal(leaf.grad, expected)


@pytest.mark.parametrize("strict", [False, True])
def test_exported_without_gradient_trains(case, call, expected, strict):
    class Loss(torch.nn.Module):
        def forward(self, input, target):
            return call(input, target)

    leaf = case.leaf()
    exported = torch.export.export(Loss(), (case.input, case.target), strict=strict).module()
    exported(leaf, case.target).backward()
    assert torch.equal(leaf.grad, expected)


@pytest.mark.slow
def test_weights_and_soft_targets_have_no_gradient(case, call, device):
    """Added to another loss, the sum still goes backward; under torch.compile as well."""
    if not case.softmax:
        weight = torch.ones_like(case.input).requires_grad_()
        other = torch.zeros((), device=device, requires_grad=True)
        loss = call(case.input, weight=weight)
        assert not loss.requires_grad  # so that loss.backward() alone is an error
        (loss + other).backward()
        assert weight.grad is None
        assert other.grad == 1

    if case.loss is not ghmr_loss and case.target.is_floating_point():
        target = case.target.clone().requires_grad_()
        other = torch.zeros((), device=device, requires_grad=True)
        loss = call(case.input, target)
        assert not loss.requires_grad
        (loss + other).backward()
        assert target.grad is None
        assert other.grad == 1
        compiled = torch.compile(call, backend="aot_eager", fullgraph=True)(case.input, target)
        assert not compiled.requires_grad
        assert torch.equal(compiled, loss)
        leaf, plain = case.leaf(), case.leaf()
        torch.compile(call, backend="aot_eager", fullgraph=True)(leaf, target).backward()
        call(plain).backward()
        assert target.grad is None
        assert torch.equal(leaf.grad, plain.grad)


@pytest.mark.parametrize("case", CASES[:3], indirect=True)  # test_cross_entropy.py has that of a softmax
@pytest.mark.parametrize("value", [float("inf"), float("-inf"), float("nan")])
@pytest.mark.parametrize("of_elements", [False, True])
def test_no_gradient_of_ignored_elements(case, call, value, of_elements):
    """Whatever comes from above: 0 times inf would be NaN."""
    ignored = torch.zeros(case.input.shape, dtype=torch.bool, device=case.input.device)
    ignored[:5] = True
    leaf = case.leaf()
    loss = call(leaf, weight=~ignored if of_elements else ~ignored[:, 0], reduction="none")
    loss.backward(torch.where(ignored, value, 1.0))
    assert (leaf.grad[ignored] == 0).all()
    assert leaf.grad.isfinite().all()
    assert (leaf.grad[~ignored] != 0).all()


def test_stacked_gradients(case, call, expected):
    leaf = case.leaf()
    factors = torch.tensor([1.0, -2.0, 0.0], device=leaf.device)
    (stacked,) = torch.autograd.grad(call(leaf), leaf, factors, is_grads_batched=True)
    assert torch.equal(stacked, factors[:, None, None] * expected)


def test_vmap_over_the_backward_pass(case, call, expected):
    """The forward pass is a plain call and the backward pass runs under torch.func: no kernel gets a batched tensor."""
    leaf = case.leaf()
    loss, factors = call(leaf), torch.tensor([1.0, -2.0, 0.0], device=leaf.device)
    stacked = torch.vmap(lambda factor: torch.autograd.grad(loss, leaf, factor, retain_graph=True)[0])(factors)
    assert torch.equal(stacked, factors[:, None, None] * expected)


def test_vectorized_jacobian(case, call):
    """The loss of an element, or of a row of a softmax, depends on its own logits only: the weight is a constant."""
    small = case.input[:6]
    jacobian = torch.autograd.functional.jacobian(
        lambda x: call(x, case.target[:6], reduction="none"), small, vectorize=True
    )
    leaf = small.clone().requires_grad_()
    call(leaf, case.target[:6], reduction="none").sum().backward()
    own = leaf.grad if case.softmax else leaf.grad.flatten()
    expected = torch.block_diag(*own)
    assert torch.equal(jacobian.reshape(expected.shape), expected)


def test_vmap_over_no_populations(case, call):
    losses = torch.vmap(call)(case.input[None][:0], case.target[None][:0])
    assert losses.shape == (0,)
    grads = torch.vmap(torch.func.grad(call))(case.input[None][:0], case.target[None][:0])
    assert grads.shape == (0, *case.input.shape)


@pytest.mark.parametrize("kind", ["sparse", "nested"])
def test_other_layouts_are_named(case, call, kind):
    if kind == "sparse":
        odd, came = case.input.to_sparse(), "torch.sparse_coo"
    else:
        odd, came = torch.nested.nested_tensor([case.input, case.input]), "a nested tensor"
    with pytest.raises(TypeError, match=rf"input must be a dense tensor .*got .*{came}"):
        call(odd)
    with pytest.raises(TypeError, match="target must be a dense tensor"):
        call(case.input, odd)
    if not case.softmax:
        with pytest.raises(TypeError, match="mask must be a dense tensor"):
            call(case.input, weight=odd)
