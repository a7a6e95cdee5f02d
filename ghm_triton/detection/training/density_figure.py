"""Plots of counts, weights and the gradient over the gradient norm, as in figures 2 to 4 of the paper."""

import copy
import math
import pathlib
from typing import NamedTuple

import torch
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter
from torch import Tensor, nn
from torchvision.models.detection import FCOS
from torchvision.models.detection.ssd import SSD

from ghm_triton import GHMCLoss, GHMCrossEntropyLoss, GHMRLoss

from ..heads import default_losses, harmonize

POSITIVE, NEGATIVE, PLAIN = "tab:orange", "tab:blue", "black"
_PLAIN_NUMBERS = FuncFormatter(lambda value, _: f"{value:,.0f}" if value >= 1 or not value else f"{value:g}")


class Seen(NamedTuple):
    """The regions of the gradient norm of one loss. Tensors on the CPU, fp64.

    Attributes:
        edges: Shape [bins + 1].
        counts: Shape [bins]. The moving average of the number of elements per region, including this batch. If
            the loss keeps no average, the number in the batch.
        weights: Shape [bins]. The harmonizing weight beta; 0 where there are no elements. None: it has no weights.
        gradient: Shape [bins, 2]. The sum of the gradient norms of negatives and positives, without weights.
        element: The name of the elements, in the plural.
    """

    edges: Tensor
    counts: Tensor
    weights: Tensor | None
    gradient: Tensor
    element: str

    def percentages(self, *, weighted: bool) -> Tensor:
        """Return how much each region contributes to the gradient, negatives and positives, in percent, [bins, 2]."""
        gradient = self.gradient * self.weights[:, None] if weighted and self.weights is not None else self.gradient
        return 100 * gradient / gradient.sum().clamp(min=torch.finfo(torch.float32).tiny)


class Recorder(nn.Module):
    """A stand-in for a loss that keeps its inputs."""

    inputs: tuple[Tensor, ...] | None = None

    def forward(self, *inputs: Tensor) -> Tensor:
        """Keep the inputs and return 0."""
        self.inputs = inputs
        return inputs[0].sum() * 0


def observe(model: nn.Module, items: list[tuple[Tensor, dict]]) -> dict[str, Seen]:
    """Return the regions that the losses of `model` see for a batch in training. The model does not change.

    Args:
        model: A RetinaNet, FCOS, or SSD of torchvision, with any losses.
        items: (image, target) as torchvision's detectors take them.

    Returns:
        The regions by the name of the panel, "classification" and "boxes". An FCOS has no "boxes", because it predicts
        no box deltas.
    """
    classify, regress = Recorder(), Recorder()
    probe = copy.deepcopy(model)
    device = next(probe.parameters()).device
    harmonize(probe, classify, None if isinstance(model, FCOS) else regress).train()
    images = [image.to(device) for image, _ in items]
    targets = [{name: target[name].to(device) for name in ("boxes", "labels")} for _, target in items]
    with torch.no_grad(), torch.random.fork_rng(devices=[]):  # torchvision draws a size per image
        probe(images, targets)
    owner = model if isinstance(model, SSD) else model.head
    usual = default_losses(model)  # their regions, for losses that have none
    norm, positive = _softmax(*classify.inputs) if isinstance(model, SSD) else _sigmoid(*classify.inputs)
    loss = _after(getattr(owner, "classification_loss", None), classify.inputs)
    element = "anchors" if isinstance(model, SSD) else "logits"
    seen = {"classification": _see(loss, norm, positive, usual[0].bins, element)}
    if regress.inputs is not None:
        loss = _after(getattr(owner, "regression_loss", None), regress.inputs)
        deltas = (regress.inputs[0] - regress.inputs[1]).double().flatten()
        norm = (deltas / torch.hypot(deltas, torch.full_like(deltas, (loss or usual[1]).mu))).abs().float()
        everything = torch.ones_like(norm, dtype=torch.bool)
        seen["boxes"] = _see(loss, norm, everything, usual[1].bins, "box coordinates")
    return seen


def _after(loss: nn.Module | None, inputs: tuple[Tensor, ...]) -> nn.Module | None:
    """Return a copy of a GHM loss after a training step with `inputs`, or None for another loss."""
    if not isinstance(loss, GHMCLoss | GHMCrossEntropyLoss | GHMRLoss):
        return None
    loss = copy.deepcopy(loss).train()
    loss.process_group = None  # only this process makes this call
    with torch.no_grad():
        loss(*inputs)
    return loss


def _sigmoid(logits: Tensor, labels: Tensor, counted: Tensor) -> tuple[Tensor, Tensor]:
    """Return the gradient norm of each logit that counts, and whether the logit is that of an object's class."""
    positive = labels[..., None] == torch.arange(logits.shape[-1], device=logits.device)
    norm = (logits.float().sigmoid() - positive.float()).abs()
    counted = counted.bool()[..., None].expand_as(norm)
    return norm[counted], positive[counted]


def _softmax(logits: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
    """Return the gradient norm of each anchor, 1 minus the probability of its label, and whether it has an object."""
    right = logits.float().softmax(dim=-1).gather(-1, labels[:, None]).squeeze(-1)
    return 1 - right, labels > 0


def _see(loss: nn.Module | None, norm: Tensor, positive: Tensor, bins: int, element: str) -> Seen:
    norm, positive = norm.cpu(), positive.cpu()
    density = loss.density() if loss is not None and loss.momentum > 0 else None
    edges = density.edges.cpu() if density else torch.linspace(0, 1, bins + 1)
    bins = len(edges) - 1
    region = torch.bucketize(norm, edges[1:-1], right=True)
    parts = [torch.bincount(region[of], weights=norm[of].double(), minlength=bins) for of in (~positive, positive)]
    counts = density.counts if density else torch.bincount(region, minlength=bins)
    weights = None
    if density:
        # An element of this batch adds 1 - momentum to the average (half of it allows for rounding). A region with a
        # lower average has no element in this batch, and its weight grows without bound.
        seen = density.counts >= 0.5 * (1 - loss.momentum)
        weights = torch.where(seen, density.weights, 0).cpu().double()
    return Seen(edges.double(), counts.cpu().double(), weights, torch.stack(parts, dim=1), element)


def draw_density(path: pathlib.Path, seen: dict[str, Seen]) -> pathlib.Path:
    """Draw a row of panels per loss, save the figure to `path`, and return `path`."""
    figure = Figure(figsize=(15, 3.8 * len(seen)), layout="constrained")
    rows = figure.subplots(len(seen), 3, squeeze=False)
    for (name, one), (counts, weights, gradient) in zip(seen.items(), rows):
        draw_counts(counts, one, name)
        draw_weights(weights, one, name)
        draw_gradient(gradient, one, name)
    figure.savefig(path, dpi=100)
    return path


def draw_counts(axes: Axes, seen: Seen, name: str) -> None:
    """Draw the number of elements over the gradient norm."""
    _bars(axes, seen, seen.counts, color="tab:gray")
    axes.set(title=f"{name}: elements per step", ylabel=seen.element, yscale="symlog")
    axes.set_ylim(0, _decade_above(seen.counts.max().item()))
    axes.yaxis.set_major_formatter(_PLAIN_NUMBERS)


def draw_weights(axes: Axes, seen: Seen, name: str) -> None:
    """Draw the harmonizing weight over the gradient norm."""
    if seen.weights is None:
        axes.text(0.5, 0.5, "this loss keeps no density", ha="center", transform=axes.transAxes)
    else:
        weights = torch.where(seen.weights > 0, seen.weights, torch.nan)
        _outline(axes, seen, weights, color="tab:green", linewidth=2)
        used = seen.weights[seen.weights > 0].tolist()
        axes.set(yscale="log", ylim=(1 / _decade_above(1 / min([1, *used])), _decade_above(max([1, *used]))))
        axes.yaxis.set_major_formatter(_PLAIN_NUMBERS)
    axes.axhline(1, color=PLAIN, linestyle="--", linewidth=1)
    axes.set(title=f"{name}: harmonizing weight of an element", xlabel="gradient norm", ylabel="weight", xlim=(0, 1))
    axes.grid(True, alpha=0.3)


def draw_gradient(axes: Axes, seen: Seen, name: str) -> None:
    """Draw how much negatives and positives contribute to the gradient over its norm, harmonized and plain."""
    negative, positive = seen.percentages(weighted=True).T
    if negative.any():
        _bars(axes, seen, negative, color=NEGATIVE, label="negatives")
    _bars(axes, seen, negative + positive, baseline=negative.numpy(), color=POSITIVE, label="positives")
    plain = {"classification": "cross entropy", "boxes": "ASL1"}[name]
    shares = seen.percentages(weighted=False).sum(dim=1)
    _outline(axes, seen, shares, color=PLAIN, linestyle="--", label=f"plain {plain}")
    axes.set_ylim(0, 1.05 * max((negative + positive).max().item(), shares.max().item()))
    axes.set(title=f"{name}: share of the gradient", ylabel="% of the sum of gradient norms")
    axes.legend(loc="upper left", bbox_to_anchor=(1, 1), fontsize="small")


def _bars(axes: Axes, seen: Seen, values: Tensor, **options) -> None:
    axes.stairs(values.numpy(), seen.edges.numpy(), fill=True, **options)
    axes.set(xlabel="gradient norm", xlim=(0, 1))
    axes.grid(True, axis="y", alpha=0.3)


def _outline(axes: Axes, seen: Seen, values: Tensor, **options) -> None:
    """Draw steps that do not fall to the axis at their ends."""
    axes.stairs(values.numpy(), seen.edges.numpy(), baseline=None, **options)


def _decade_above(value: float) -> float:
    """Return the first power of ten above `value`, at least 10. An axis of this height leaves room above the bars."""
    return 10.0 ** max(1, math.floor(math.log10(max(value, 1))) + 1)
