"""The options of one call of a loss. The schemas of the operators are generated from this list."""

from typing import NamedTuple

from .types import Reduction, Variant

_SCHEMA_TYPES = {
    bool: "bool",
    int: "int",
    float: "float",
    Variant: "str",
    Reduction: "str",
    int | None: "int?",
    float | None: "float?",
    str | None: "str?",
}


class Options(NamedTuple):
    """The settings of a loss, followed by the options that change between calls.

    Attributes:
        mu: The transition point of ASL1, or None for the losses other than GHM-R.
        bins, momentum, variant, reduction, exponent: See :func:`ghm_triton.ghmc_loss`.
        loss_weight: A factor of the loss.
        ignore_index, label_smoothing: See :func:`ghm_triton.ghm_cross_entropy`. None for the other losses.
        update: Whether this call updates the moving average.
        grad: Whether the caller may ask for a gradient.
        group: The name of the process group that shares the density, or None.

    Code that torch.compile traces compares the fields: PyTorch 2.6 cannot trace the properties with dynamic shapes.
    """

    mu: float | None
    bins: int
    momentum: float
    variant: Variant
    reduction: Reduction
    exponent: float = 1.0
    loss_weight: float = 1.0
    ignore_index: int | None = None
    label_smoothing: float | None = None
    update: bool = True
    grad: bool = False
    group: str | None = None

    @property
    def loss(self) -> str:
        """Which loss this is: "ghmc", "ghmr" or "cross_entropy"."""
        if self.ignore_index is not None:
            return "cross_entropy"
        return "ghmc" if self.mu is None else "ghmr"

    @property
    def mmdet(self) -> bool:
        return self.variant == "mmdet"

    @property
    def mean(self) -> bool:
        return self.reduction == "mean"

    @property
    def unreduced(self) -> bool:
        return self.reduction == "none"


def replaced(options: Options, **changes) -> Options:
    """`options._replace(**changes)`, which torch.compile of PyTorch 2.6 cannot trace."""
    return Options(*[changes.get(name, value) for name, value in zip(Options._fields, options)])


SETTINGS = tuple(name for name in Options._fields if name not in ("update", "grad", "group"))
SCHEMA = ", ".join(f"{_SCHEMA_TYPES[kind]} {name}" for name, kind in Options.__annotations__.items())
