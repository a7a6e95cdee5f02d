"""The reference of HarmonizedBCELoss, in float64."""

import torch

import oracle

OPTIONS = dict(bins=30, momentum=0.75, exponent=0.5)
RELATIVE = 2e-5  # fp32 sums over thousands of elements, and exp and log1p per element


def reference(logits, target, state, *, preserve="value", value=None, bins=30, momentum=0.75, exponent=0.5):
    """(values, gradient of their sum, new state), float64. value: a function of logits and target, None for BCE."""
    options = dict(bins=bins, momentum=momentum, exponent=exponent, reduction="none", state=state)
    values, gradient, state = oracle.harmonize("c", logits, target, **options)
    _, wanted, slope = oracle.norms("c", logits, target)
    if value is not None:
        leaf = logits.detach().double().requires_grad_()
        wanted = value(leaf, target.double())
        (slope,) = torch.autograd.grad(wanted.sum(), leaf)
    scale = wanted.sum() / values.sum() if preserve == "value" else slope.abs().sum() / gradient.abs().sum()
    return (values * scale).detach(), (gradient * scale).detach(), state
