"""torch.func: one population after the other, each with a density and running counts of its own."""

import pytest
import torch
from torch.func import functional_call, grad, hessian, jacfwd, jacrev, jvp, stack_module_state, vmap

from calls import ghmc_loss, ghmr_loss
from compare import LayerWithLoss, logits


@pytest.fixture
def batch(device):
    """Six populations: logits [6, 5, 3] and labels [6, 5]."""
    labels = torch.randint(-1, 3, (6, 5), generator=torch.Generator().manual_seed(3))
    return logits(6, 5, 3).to(device), labels.to(device)


def by_autograd(function, x, *args):
    x = x.clone().requires_grad_()
    return torch.autograd.grad(function(x, *args), x)[0]


def test_grad(batch, backend):
    x, labels = batch
    for function, target in ((ghmc_loss, labels), (ghmr_loss, x * 0.9)):

        def loss(x, target):
            return function(x, target, bins=10, backend=backend)

        assert torch.equal(grad(loss)(x, target), by_autograd(loss, x, target))
        expected = torch.stack([by_autograd(loss, *one) for one in zip(x, target)])
        assert torch.equal(vmap(grad(loss))(x, target), expected)
        moved = vmap(grad(loss), in_dims=(1, 0))(x.movedim(0, 1), target)
        assert torch.equal(moved, expected)


@pytest.mark.xfail(
    torch.__version__.startswith("2.6"),
    raises=TypeError,
    strict=True,
    reason="the vmap of PyTorch 2.6 takes no gradient that is None",
)
@pytest.mark.parametrize("through", ["torch.func.grad", "backward"])
def test_gradient_through_nested_vmap(through, batch, backend):
    """The tensors of the inner level do not show that a gradient is wanted: it must not be zero in silence."""
    x, labels = (tensor.unflatten(0, (2, 3)) for tensor in batch)

    def loss(x, labels):
        return ghmc_loss(x, labels, bins=10, backend=backend)

    def total(x):
        return vmap(vmap(loss))(x, labels).sum()

    expected = torch.stack([by_autograd(loss, *one) for one in zip(*batch)]).unflatten(0, (2, 3))
    found = grad(total)(x) if through == "torch.func.grad" else by_autograd(total, x)
    assert torch.equal(found, expected)


def test_unreduced(batch, backend):
    """jacrev runs vmap over backward: one row of the Jacobian after the other."""
    x, labels = batch[0][0], batch[1][0]
    jacobian = jacrev(lambda x: ghmc_loss(x, labels, reduction="none", backend=backend))(x)
    each = by_autograd(lambda x: ghmc_loss(x, labels, reduction="sum", backend=backend), x)
    assert torch.equal(jacobian.reshape(15, 15), torch.diag(each.reshape(15)))


def test_ensemble(batch, backend, device):
    """An ensemble of models with stacked parameters and running counts, on one batch."""
    _, labels = batch
    models, x = [LayerWithLoss(backend).to(device) for _ in range(3)], logits(5, 4).to(device)
    parameters, buffers = stack_module_state(models)

    def loss(parameters, buffers):
        return functional_call(models[0], (parameters, buffers), (x, labels[0]))

    grads = vmap(grad(loss))({k: v.detach() for k, v in parameters.items()}, buffers)
    for i, model in enumerate(models):
        model(x, labels[0]).backward()
        torch.testing.assert_close(grads["layer.weight"][i], model.layer.weight.grad, rtol=1e-5, atol=1e-7)
        torch.testing.assert_close(buffers["loss.running_counts"][i], model.loss.running_counts, rtol=0, atol=0)


def test_one_state_for_several_populations_is_an_error(batch, backend, device):
    """Which of them should it hold? It stays as it is."""
    state = torch.zeros(31, device=device)
    with pytest.raises(RuntimeError, match="running_counts must be batched under vmap"):
        vmap(lambda x, labels: ghmc_loss(x, labels, momentum=0.5, running_counts=state, backend=backend))(*batch)
    assert state.eq(0).all()


@pytest.mark.parametrize(
    "transform", [hessian, lambda f: jacrev(jacrev(f)), jacfwd, lambda f: lambda x: jvp(f, (x,), (x,))]
)
def test_second_derivatives_and_forward_mode_are_errors(transform, batch, backend):
    """Never zero in silence."""
    x, labels = batch[0][0], batch[1][0]
    with pytest.raises((RuntimeError, NotImplementedError), match="differentiated once|jvp"):
        transform(lambda x: ghmc_loss(x, labels, backend=backend))(x)
