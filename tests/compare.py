"""Data and calls of the value tests, and comparisons with the oracle."""

import torch

import calls
import ghm_triton
from oracle import harmonize, one_hot, regions
from tolerances import GRADIENT, LOSS, ROUNDING, SMALLEST, assert_close


class LayerWithLoss(torch.nn.Module):
    """A model with the loss in it: (inputs [n, 4], labels [n]) to the loss."""

    def __init__(self, backend):
        super().__init__()
        self.layer, self.loss = torch.nn.Linear(4, 3), ghm_triton.GHMCLoss(bins=10, backend=backend)

    def forward(self, x, labels):
        return self.loss(self.layer(x), labels)


def logits(*shape, seed=0, mean=-1.0, std=2.5):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed)) * std + mean


def clear_of_edges(kind, x, t, bins, mu=0.02):
    """x without float32 gradient norms within 4 units of an edge, where sigmoids of different backends may differ."""
    lower = regions(kind, x, t, bins, mu)
    for scale in (1 - 3e-6, 1 + 3e-6):
        beside = regions(kind, t + (x - t) * scale if kind == "r" else x * scale, t, bins, mu) != lower
        x = torch.where(beside, x * 1.001 + 0.001, x)
    return x


def evaluate(loss, x, *args, device="cpu", wrt_target=False, **options):
    """(loss, gradients of the levels of x, ...) of a call; tensors are moved to the device and back."""

    def move(value):
        if isinstance(value, (list, tuple)):
            return [move(v) for v in value]
        return value.to(device) if isinstance(value, torch.Tensor) else value

    state = options.get("running_counts")
    options = {name: move(value) for name, value in options.items()}
    leaves = move(x) if isinstance(x, (list, tuple)) else [move(x)]
    leaves = [leaf.detach().requires_grad_() for leaf in leaves]
    result = loss(leaves if isinstance(x, (list, tuple)) else leaves[0], *map(move, args), **options)
    total = sum(r.sum() for r in result) if isinstance(result, tuple) else result.sum()
    grads = torch.autograd.grad(total, leaves)
    if state is not None:
        state.copy_(options["running_counts"])
    result = tuple(r.detach().cpu() for r in result) if isinstance(result, tuple) else result.detach().cpu()
    return result, grads[0].cpu() if not isinstance(x, (list, tuple)) else [g.cpu() for g in grads]


def check_ghmc(x, target, weight=None, *, backend, device, bins=30, **options):
    """Compares a call with the oracle: value and gradient."""
    dense = one_hot(target, x.shape[-1]) if target.dim() < x.dim() else target
    full = None
    if weight is not None:
        full = (weight.unsqueeze(-1) if weight.dim() < x.dim() else weight).expand_as(x)
    expected_state = options.get("running_counts")
    expected = harmonize(
        "c",
        x,
        dense,
        full,
        bins=bins,
        state=expected_state,
        **{name: value for name, value in options.items() if name != "running_counts"},
    )
    value, grad = evaluate(
        calls.ghmc_loss, x, target, weight, class_dim=-1, bins=bins, backend=backend, device=device, **options
    )
    _check(value, grad, expected, x.dtype)
    return expected[2]


def check_ghmr(x, target, weight=None, *, backend, device, bins=10, **options):
    full = None if weight is None else (weight.unsqueeze(-1) if weight.dim() < x.dim() else weight).expand_as(x)
    expected = harmonize(
        "r",
        x,
        target,
        full,
        bins=bins,
        state=options.get("running_counts"),
        **{name: value for name, value in options.items() if name != "running_counts"},
    )
    value, grad = evaluate(calls.ghmr_loss, x, target, weight, bins=bins, backend=backend, device=device, **options)
    _check(value, grad, expected, x.dtype)
    return expected[2]


def _check(value, grad, expected, dtype):
    assert value.dtype == (torch.float64 if dtype == torch.float64 else torch.float32)
    assert grad.dtype == dtype
    assert_close(value, expected[0], LOSS if value.dim() == 0 else GRADIENT, 1e-38)
    assert_close(grad, expected[1], GRADIENT + ROUNDING[dtype], SMALLEST[dtype])
