"""What one call of a loss is asked for. This is the only list of the options: the operators' schemas are made of it."""

from typing import NamedTuple

_SCHEMA_TYPES = {
    bool: "bool",
    int: "int",
    float: "float",
    str: "str",
    int | None: "int?",
    float | None: "float?",
    str | None: "str?",
}


class Options(NamedTuple):
    """The settings of a loss, then what differs from call to call.

    Attributes:
        mu: Where ASL1 turns from quadratic to linear. None for the losses that are not GHM-R.
        bins, momentum, variant, reduction, exponent: As for :func:`ghm_triton.ghmc_loss`.
        loss_weight: Factor of the loss.
        ignore_index, label_smoothing: As for :func:`ghm_triton.ghm_cross_entropy`. None for the other losses.
        update: Whether the moving average takes this call in.
        grad: Whether a gradient may be asked for.
        group: Name of the process group that shares the density, or None.
    """

    mu: float | None
    bins: int
    momentum: float
    variant: str
    reduction: str
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


SETTINGS = tuple(name for name in Options._fields if name not in ("update", "grad", "group"))
SCHEMA = ", ".join(f"{_SCHEMA_TYPES[kind]} {name}" for name, kind in Options.__annotations__.items())
