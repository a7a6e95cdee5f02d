"""The options of one call of a loss. The schemas of the operators are generated from this list."""

from typing import NamedTuple

from .types import Loss, Reduction, Variant

_SCHEMA_TYPES = {
    bool: "bool",
    int: "int",
    float: "float",
    Loss: "str",
    Variant: "str",
    Reduction: "str",
    int | None: "int?",
    str | None: "str?",
}


class Options(NamedTuple):
    """The settings of a loss, followed by the options that change between calls. All are passed by keyword.

    Attributes:
        loss: Which loss this is.
        bins, exponent, momentum, reduction: See :func:`ghm_triton.ghmc_loss`.
        loss_weight: A factor of the loss.
        variant: "paper", or "mmdet" for the formulas of mmdetection.
        mu: The transition point of ASL1, for GHM-R.
        class_dim: The dimension of the classes of GHM-C, or None for the last. Only ghm_triton.layout reads it.
        ignore_index: The target of elements that do not count, or None. Not for GHM-R.
        label_smoothing: See :func:`ghm_triton.ghm_cross_entropy`. 0 for the other losses.
        update: Whether this call updates the moving average.
        grad: Whether the caller may ask for a gradient.
        group: The name of the process group that shares the density, or None.

    Code that torch.compile traces compares the fields: PyTorch 2.6 cannot trace the properties with dynamic shapes.
    """

    loss: Loss
    bins: int
    exponent: float
    momentum: float = 0.0
    reduction: Reduction = "mean"
    loss_weight: float = 1.0
    variant: Variant = "paper"
    mu: float = 0.0
    class_dim: int | None = None
    ignore_index: int | None = None
    label_smoothing: float = 0.0
    update: bool = True
    grad: bool = False
    group: str | None = None

    @property
    def mmdet(self) -> bool:
        """Whether mmdetection's formulas are used."""
        return self.variant == "mmdet"

    @property
    def mean(self) -> bool:
        """Whether the loss is the mean over the elements."""
        return self.reduction == "mean"

    @property
    def unreduced(self) -> bool:
        """Whether the loss has one value per element."""
        return self.reduction == "none"


_POSITIONS = {name: index for index, name in enumerate(Options._fields)}


def replaced(options: Options, **changes) -> Options:
    """Return `options._replace(**changes)`, which torch.compile of PyTorch 2.6 cannot trace, and faster."""
    values = list(options)
    for name, value in changes.items():
        values[_POSITIONS[name]] = value
    return Options(*values)


SCHEMA = ", ".join(f"{_SCHEMA_TYPES[kind]} {name}" for name, kind in Options.__annotations__.items())
