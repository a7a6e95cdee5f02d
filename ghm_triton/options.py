"""The options of one call of a loss. The schemas of the operators are generated from this list."""

from typing import NamedTuple

from .types import Reduction, Variant

_SCHEMA_TYPES = {
    bool: "bool",
    int: "int",
    float: "float",
    Variant: "str",
    Reduction: "str",
    float | None: "float?",
    str | None: "str?",
}


class Options(NamedTuple):
    """The settings of a loss, followed by the options that change between calls.

    Attributes:
        mu: The transition point of ASL1, or None for GHM-C.
        bins, momentum, variant, reduction, exponent: See :func:`ghm_triton.ghmc_loss`.
        loss_weight: A factor of the loss.
        update: Whether this call updates the moving average.
        grad: Whether the caller may ask for a gradient.
        group: The name of the process group that shares the density, or None.
    """

    mu: float | None
    bins: int
    momentum: float
    variant: Variant
    reduction: Reduction
    exponent: float = 1.0
    loss_weight: float = 1.0
    update: bool = True
    grad: bool = False
    group: str | None = None

    @property
    def mmdet(self) -> bool:
        return self.variant == "mmdet"

    @property
    def mean(self) -> bool:
        return self.reduction == "mean"

    @property
    def unreduced(self) -> bool:
        return self.reduction == "none"


SETTINGS = tuple(name for name in Options._fields if name not in ("update", "grad", "group"))
SCHEMA = ", ".join(f"{_SCHEMA_TYPES[kind]} {name}" for name, kind in Options.__annotations__.items())
