"""A second reference: the losses as their users write them, a loop over regions that masks the whole input.

float64 with autograd, apart from the gradient norm, which decides the region in float32 (float64 for float64 inputs) by
comparison with the float32 edges i / bins. Slow, direct, and sharing nothing with the package or with oracle.py.
"""

import math

import torch
import torch.nn.functional as F

import calls
from tolerances import GRADIENT, LOSS, ROUNDING, SIGMOID, SMALLEST, assert_close


def expand(target, columns):
    """Class indices to 0 and 1, the way dense heads do it."""
    dense = torch.zeros(*target.shape, columns)
    for position in (target >= 0).nonzero():
        label = int(target[tuple(position)])
        if label < columns:
            dense[(*position.tolist(), label)] = 1.0
    return dense


def by_element(weight, x):
    """Whether an element counts, and how much: both in the shape of x."""
    if weight is None:
        return torch.ones(x.shape, dtype=torch.bool), None
    full = weight if weight.shape == x.shape else weight.unsqueeze(-1).expand(x.shape)
    return full > 0, full.double()


class Loop:
    """kind "c" (logits) or "r" (box deltas). Keeps the moving average as one Python number per region."""

    def __init__(self, kind, bins, *, momentum=0.0, variant="paper", mu=0.02, exponent=1.0, dtype=torch.float32):
        self.kind, self.bins, self.momentum, self.variant, self.mu = kind, bins, momentum, variant, mu
        self.exponent = exponent
        self.dtype = dtype  # in which the norm is compared with the edges
        self.edges = [torch.tensor(float(i)) / bins for i in range(bins)]
        self.average, self.steps = [0.0] * bins, 0

    def norm(self, x, t):
        if self.kind == "c":
            return (torch.sigmoid(x) - t).abs()
        return ((x - t) / ((x - t) ** 2 + self.mu**2).sqrt()).abs()

    def element_loss(self, x, t):
        if self.kind == "c":
            return t * F.softplus(-x) + (1 - t) * F.softplus(x)  # PyTorch's own derivative is p - t, which cancels
        d = x - t
        return d * d / ((d * d + self.mu**2).sqrt() + self.mu)  # sqrt(d^2 + mu^2) - mu without its cancellation

    def __call__(self, inputs, targets, weights=None, *, reduction="mean"):
        """The loss of lists of levels (float64; concatenated and flat for "none"), differentiable in `inputs`."""
        norms, losses, valids, shares = [], [], [], []
        for level, (x, t) in enumerate(zip(inputs, targets)):
            t = expand(t, x.shape[-1]) if t.dim() < x.dim() else t
            valid, share = by_element(weights[level] if weights else None, x)
            norm = self.norm(x.detach().to(self.dtype), t.to(self.dtype))
            norms.append(torch.where(valid, norm, 0).flatten())
            x, t = torch.where(valid, x.double(), 0.0), torch.where(valid, t.double(), 0.0)
            losses.append(self.element_loss(x, t).flatten())
            valids.append(valid.flatten())
            shares.append(valid.double().flatten() if share is None else share.flatten())
        norm, loss, valid, share = map(torch.cat, (norms, losses, valids, shares))
        total = max(share.sum().item() if (self.kind, self.variant) == ("r", "mmdet") else valid.sum().item(), 1.0)
        weight, shares = torch.zeros_like(loss), []
        finite = (valid & ~norm.isnan()).sum().item()
        if valid.any():
            self.steps += 1
        for i in range(self.bins):
            inside = (norm >= self.edges[i]) & valid
            if i + 1 < self.bins:
                inside &= norm < self.edges[i + 1]
            number = inside.sum().item()
            if self.momentum > 0 and valid.any() and (number or self.variant == "paper"):
                self.average[i] = self.momentum * self.average[i] + (1 - self.momentum) * number
            density = self.average[i] if self.momentum > 0 else number
            if self.momentum > 0 and self.variant == "paper":
                density /= max(1 - self.momentum**self.steps, 1e-300)
            if number or self.variant == "paper":
                shares.append(density ** (1 - self.exponent) if density or self.exponent == 1 else 0)
            if number:
                weight[inside] = (total if self.variant == "mmdet" else finite) / density**self.exponent
        weight = weight / (sum(shares) or 1)
        scaled = loss * weight
        if reduction == "none":
            return scaled
        epsilon = torch.finfo(torch.float32).eps if self.variant == "mmdet" else 0.0
        return scaled.sum() / (total + epsilon) if reduction == "mean" else scaled.sum()


def off_edges(x, t, loop, margin=2e-6):
    """x with the elements moved whose gradient norm is within `margin` of an inner edge.

    Sigmoids differ in their last bits between implementations; with these elements gone, all agree on the regions.
    """
    dense = expand(t, x.shape[-1]) if t.dim() < x.dim() else t
    edges = torch.stack(loop.edges).double()[1:]
    for _ in range(100):
        norm = loop.norm(x.double(), dense.double())
        near = ((norm.unsqueeze(-1) - edges).abs() < margin).any(-1)
        if not near.any():
            return x
        x = torch.where(near, x.double() * 0.97 - 0.01, x.double()).to(x.dtype)
    raise AssertionError("every value is at an edge")


def assert_agrees(
    loop, inputs, targets, weights=None, *, backend, device="cpu", reduction="mean", state=None, soft=False
):
    """A call of the public function against one of the loop: type, value, gradient, state. Factors are not 1.

    inputs and the others: a tensor each, or lists of levels. soft: whether targets of GHM-C are other than 0 and 1.
    """
    listed = isinstance(inputs, list)
    lists = [[value] if isinstance(value, torch.Tensor) else value for value in (inputs, targets, weights)]
    leaves = [x.detach().double().requires_grad_() for x in lists[0]]
    narrow = [x.dtype for x in lists[0]]
    expected = loop(leaves, lists[1], lists[2], reduction=reduction)
    factor = torch.linspace(0.5, 3.0, expected.numel(), dtype=torch.float64).view(expected.shape).float().double()
    gradients = torch.autograd.grad(expected, leaves, factor)
    largest = max((float(gradient.abs().max()) for gradient in gradients if gradient.numel()), default=0.0)
    # Most gradients are near the lower end of float16's range. Some, of empty regions in "mmdet", near the upper.
    scale = 2.0 ** math.floor(math.log2(32000 / max(largest, 500))) if narrow[0] == torch.float16 else 1.0
    gradients = [gradient * scale for gradient in gradients]

    def move(values):
        return None if values is None else [v.to(device) for v in values]

    leaves = [x.detach().requires_grad_() for x in move(lists[0])]
    arguments = [leaves, move(lists[1]), move(lists[2])]
    if not listed:
        arguments = [argument if argument is None else argument[0] for argument in arguments]
    options = dict(bins=loop.bins, momentum=loop.momentum, variant=loop.variant, running_counts=state)
    options["exponent"] = loop.exponent
    function, options["class_dim" if loop.kind == "c" else "mu"] = calls.ghmc_loss, -1
    if loop.kind == "r":
        function, options["mu"] = calls.ghmr_loss, loop.mu
    actual = function(*arguments, reduction=reduction, backend=backend, **options)
    parts = list(actual) if isinstance(actual, tuple) else [actual]
    assert all(part.dtype == loop.dtype for part in parts)
    if reduction == "none":
        assert [part.shape for part in parts] == [x.shape for x in lists[0]]
    flat = torch.cat([part.flatten() for part in parts]) if reduction == "none" else actual
    found = torch.autograd.grad(flat, leaves, (factor * scale).to(device, loop.dtype))
    assert_close(flat, expected, GRADIENT if reduction == "none" else LOSS, 1e-38)
    for x, ours, reference, dtype in zip(leaves, found, gradients, narrow):
        assert ours.dtype == dtype and ours.shape == x.shape
        absolute = SMALLEST[dtype]
        if soft and ours.numel():
            absolute += SIGMOID * float(reference.abs().max())
        assert_close(ours, reference, GRADIENT + ROUNDING[dtype], absolute)
    if state is not None:
        average = [*loop.average, 1 - loop.momentum**loop.steps] if loop.variant == "paper" else loop.average
        assert_close(state, torch.tensor(average, dtype=torch.float64), 1e-6, 1e-38)  # float32, rounded once per step
    return actual
