"""An independent reference: the losses as the paper and mmdetection write them, in float64, one region after another.

It takes regions from the gradient norm in float32 compared with the float32 edges i / M, everything else in float64.
"""

import torch


def norms(kind, x, t, mu=0.02):
    """(gradient norm, loss, its derivative) of each element, float64. kind: "c" (x logits) or "r" (x deltas)."""
    x, t = x.double(), t.double()
    if kind == "c":
        p, q = torch.sigmoid(x), torch.sigmoid(-x)
        positive = torch.where(t == 0, 0.0, t * torch.nn.functional.softplus(-x))
        negative = torch.where(t == 1, 0.0, (1 - t) * torch.nn.functional.softplus(x))
        return (p - t).abs(), positive + negative, (1 - t) * p - t * q
    d = x - t
    root = torch.hypot(d, torch.full_like(d, mu))
    slope = torch.where(d.isinf(), d.sign(), d / root)
    return slope.abs(), torch.where(d.isinf(), d.abs(), d * (d / (root + mu))), slope


def regions(kind, x, t, bins, mu=0.02):
    """The region of each element: the last i with g >= i / bins, all in float32. NaN gives -1."""
    x, t = x.float(), t.float()
    if kind == "c":
        g = (x.sigmoid() - t).abs()
    else:
        d = (x - t).abs()
        g = torch.where(d > 1e15, 1.0, d / (d * d + mu * mu).sqrt())  # where the square would overflow
    edges = torch.arange(bins + 1).float() / bins
    region = torch.full(g.shape, -1)
    for i in range(bins):
        region[g >= edges[i]] = i
    return region


def one_hot(labels, classes):
    return (labels.unsqueeze(-1) == torch.arange(classes)).double()


def harmonize(
    kind,
    x,
    t,
    weight=None,
    *,
    bins,
    variant="paper",
    momentum=0.0,
    state=None,
    reduction="mean",
    mu=0.02,
    region=None,
    exponent=1.0,
):
    """(loss, gradient, new state), float64. t and weight have the shape of x; state is as running_counts."""
    valid = torch.ones_like(x, dtype=torch.bool) if weight is None else weight > 0
    region = regions(kind, x, t, bins, mu) if region is None else region
    _, loss, slope = norms(kind, x, t, mu)
    number = max(valid.sum().item(), 1)
    if kind == "r" and variant == "mmdet" and weight is not None:
        number = max(weight.double().sum().item(), 1.0)
    state = None if state is None else state.double().clone()
    averaged = momentum > 0 and valid.any()
    if averaged and variant == "paper":
        state[bins] = momentum * state[bins] + (1 - momentum)
    beta = torch.zeros(x.shape, dtype=torch.float64)
    total = 0.0
    weighted = number if variant == "mmdet" else ((region >= 0) & valid).sum().item()
    for j in range(bins):
        inside = (region == j) & valid
        count = inside.sum().item()
        if averaged and (variant == "paper" or count > 0):
            state[j] = momentum * state[j] + (1 - momentum) * count
        density = count
        if averaged:
            density = state[j].item() / (state[bins].item() if variant == "paper" else 1)
        if variant == "paper" or count > 0:  # 0^0 is 1 with the exponent 1 only
            total += 1.0 if exponent == 1 else density ** (1 - exponent) if density > 0 else 0.0
        if count > 0:
            beta[inside] = weighted / density**exponent
    beta /= max(total, 1e-300)
    divisor = {"mean": number + (torch.finfo(torch.float32).eps if variant == "mmdet" else 0)}.get(reduction, 1)
    scaled = torch.where(valid, beta * loss, 0.0) / divisor
    gradient = torch.where(valid, beta * slope, 0.0) / divisor
    return scaled if reduction == "none" else scaled.sum(), gradient, state
