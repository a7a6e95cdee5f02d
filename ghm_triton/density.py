"""The gradient density in the state of a loss, and the harmonizing weights that follow from it."""

from typing import NamedTuple

import torch
from torch import Tensor

from .regions import region_edges

_PANELS = (  # label, color, scale of the y axis
    ("counts $S_j$", "tab:gray", "log"),
    (r"weight $\beta_j$ of an element", "tab:orange", "log"),
    ("share of the total weight", "tab:blue", "linear"),
)


class Density(NamedTuple):
    """The unit regions of the gradient norm. fp32 tensors on the device of the loss.

    Attributes:
        edges: Shape [bins + 1]. Region j holds the gradient norms from edges[j] up to edges[j + 1].
        counts: Shape [bins]. S_j, the moving average of the number of elements in region j.
        weights: Shape [bins]. beta_j, the harmonizing weight of each element in region j; 0 where S_j is 0.
        shares: Shape [bins]. beta_j S_j / N, the share of region j in the total weight.
    """

    edges: Tensor
    counts: Tensor
    weights: Tensor
    shares: Tensor

    def plot(self, figure=None):
        """Draw counts, weights and shares over the gradient norm, in three stacked panels.

        This needs matplotlib and copies the numbers to the host.

        Args:
            figure: A `matplotlib.figure.Figure` to draw into. None: a new one, not registered with pyplot.

        Returns:
            matplotlib.figure.Figure: The figure, for `savefig` or `SummaryWriter.add_figure`.

        Raises:
            ImportError: matplotlib is not installed.

        Example:
            >>> loss = GHMCLoss()
            >>> _ = loss(torch.randn(1000, 80), torch.randint(-1, 80, (1000,)))
            >>> loss.density().plot().savefig("density.png")  # doctest: +SKIP
        """
        try:
            from matplotlib.figure import Figure
        except ImportError as error:
            raise ImportError("Density.plot() needs the package matplotlib, which cannot be imported") from error
        figure = Figure(figsize=(6, 6), layout="constrained") if figure is None else figure
        edges = self.edges.tolist()
        width = edges[1] - edges[0]
        middle = [edge + width / 2 for edge in edges[:-1]]
        panels = figure.subplots(3, sharex=True)
        for axes, values, (label, color, scale) in zip(panels, (self.counts, self.weights, self.shares), _PANELS):
            axes.bar(middle, values.tolist(), width=0.9 * width, color=color)
            axes.set_yscale(scale)
            axes.set_ylabel(label)
        panels[-1].set_xlim(0, 1)
        panels[-1].set_xlabel("gradient norm g")
        return figure


@torch.no_grad()
def density_of(running_counts: Tensor, exponent: float) -> Density:
    """Return the density in the state of a loss. It does not synchronize with a GPU."""
    state = running_counts.double()
    counts = state[:-1] / state[-1].clamp(min=torch.finfo(torch.float32).tiny)
    found = counts > 0
    share = torch.where(found, counts ** (1 - exponent), 0.0)
    empty_regions = (~found).sum() if exponent == 1 else 0  # the paper divides by M
    shares = share / (share.sum() + empty_regions).clamp(min=torch.finfo(torch.float32).tiny)
    total = counts.sum()
    weights = torch.where(found, shares * total / torch.where(found, counts, 1.0), 0.0)
    edges = region_edges(len(counts), running_counts.device)
    return Density(edges, counts.float(), weights.float(), shares.float())
