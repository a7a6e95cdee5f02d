"""Drop-in replacements of mmdetection 3.x's GHMC and GHMR, with its constructors, calls, defaults, buffers and values.

The formulas differ from the paper's: the weights are divided by the number of regions that have elements (the paper: by
all), the average covers only those regions and starts from zero, every call updates it, also in `eval()`, and N of GHMR
is the sum of the label weights. The default exponent is 1, as there.

The classes also work where mmdetection's fail: an ignored NaN does not reach the loss, a weight above 65504 works with
16-bit predictions, a module that is cast to half keeps its edges, and reduction "sum" works.
"""

import torch
from torch import Tensor

from .checks import INDICES, REDUCTIONS, check_choice, check_options
from .layout import Names
from .losses.base import Fp32Buffers, elementwise_loss
from .options import Options, replaced
from .regions import region_edges
from .types import Reduction

_FIXED = ("loss", "class_dim")  # settings that are no arguments


class _DropIn(Fp32Buffers):
    bins: int
    momentum: float
    loss_weight: float
    reduction: Reduction
    exponent: float
    edges: Tensor
    acc_sum: Tensor
    _last_edge: float  # of mmdetection's open last region

    def __init__(self, **settings):
        super().__init__()
        options = check_options(Options(**settings, variant="mmdet"))
        for name in settings:
            setattr(self, name, getattr(options, name))
        self._settings = tuple(settings)
        self.register_buffer("edges", torch.zeros(options.bins + 1, dtype=torch.float32))  # of the checkpoint format
        if options.momentum > 0:
            self.register_buffer("acc_sum", torch.zeros(options.bins, dtype=torch.float32))
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Reset the buffers to those of a new module, for example after :meth:`~torch.nn.Module.to_empty`."""
        self.edges.copy_(region_edges(self.bins))
        self.edges[-1] = self._last_edge
        if self.momentum > 0:
            self.acc_sum.zero_()

    def _compute(self, pred, target, label_weight, reduction_override):
        self.restore_buffers()
        if reduction_override is not None:
            check_choice("reduction_override", reduction_override, REDUCTIONS)
        options = Options(**{name: getattr(self, name) for name in self._settings}, variant="mmdet")
        options = replaced(options, reduction=reduction_override or self.reduction)
        state = self.acc_sum if self.momentum > 0 else None
        names = Names("pred", "target", "label_weight", "acc_sum")
        return elementwise_loss(pred, target, label_weight, state, options, names=names)

    def extra_repr(self) -> str:
        return ", ".join(f"{name}={getattr(self, name)!r}" for name in self._settings if name not in _FIXED)


class GHMC(_DropIn):
    """mmdetection's GHM classification loss.

    Give each head its own module: one module for two heads mixes their densities.

    Args:
        bins: The number of unit regions.
        momentum: The momentum of the moving average of the counts, in [0, 0.999]. The default is mmdetection's 0.
        use_sigmoid: Only True is implemented.
        loss_weight: A factor of the loss.
        reduction: "mean", "sum" or "none".
        exponent: rho of the tempered density, see :func:`ghm_triton.ghmc_loss`. 1 is mmdetection's loss. 0.5 is
            recommended, see docs/exponent.md.
        activated: Whether predictions are probabilities, as the heatmaps of CenterNet are, and no logits.

    Raises:
        NotImplementedError: `use_sigmoid` is False.
        TypeError, ValueError: Another argument is not as described.

    Example:
        >>> loss_cls = GHMC(bins=30, momentum=0.75)
        >>> scores, labels = torch.randn(100, 80, requires_grad=True), torch.full((100,), 80)
        >>> loss_cls(scores, labels, torch.ones(100), avg_factor=100).backward()
    """

    _last_edge = 1 + 1e-6

    def __init__(
        self,
        bins: int = 10,
        momentum: float = 0,
        use_sigmoid: bool = True,
        loss_weight: float = 1.0,
        reduction: str = "mean",
        exponent: float = 1.0,
        activated: bool = False,
    ):
        super().__init__(
            loss="ghmc",
            class_dim=-1,  # integers are class indices also for a single class
            bins=bins,
            momentum=momentum,
            loss_weight=loss_weight,
            reduction=reduction,
            exponent=exponent,
        )
        if not use_sigmoid:
            raise NotImplementedError(f"use_sigmoid must be True, the only classifier GHM-C is for, got {use_sigmoid}")
        self.use_sigmoid, self.activated = use_sigmoid, activated

    def forward(
        self,
        pred: Tensor,
        target: Tensor | tuple[Tensor, Tensor],
        label_weight: Tensor | None = None,
        reduction_override: str | None = None,
        *,
        weight: Tensor | None = None,
        avg_factor: float | Tensor | None = None,
        **kwargs,
    ) -> Tensor:
        """Compute the loss of one level.

        Args:
            pred: Logits [N, C], or of any shape beside a target of that shape. Probabilities with `activated`.
            target: Class indices int64 [N], C (or anything outside 0 .. C-1) for background; or values in [0, 1] of the
                shape of `pred`; or a tuple of class indices [N] and of the scores of these classes [N], as
                mmdetection's quality focal loss takes them.
            label_weight: [N] or [N, 1] beside class indices or a tuple, else what broadcasts to the shape of `pred`.
                Elements with a positive weight count. None: all count.
            reduction_override: Replaces `reduction` for this call.
            weight: The name that newer heads give to `label_weight`.
            avg_factor: Not used: "mean" divides by the number of elements that count.
            kwargs: Other arguments of heads. Not used.
        """
        label_weight = weight if label_weight is None else label_weight
        if isinstance(target, (tuple, list)):
            target, label_weight = _with_scores(pred, target, label_weight)
        if self.activated:
            pred = pred.float().logit(eps=torch.finfo(torch.float32).eps)
        return self._compute(pred, target, label_weight, reduction_override)


def _with_scores(pred: Tensor, target, label_weight: Tensor | None) -> tuple[Tensor, Tensor | None]:
    """Return the scores at the classes, of the shape of `pred`, and the weights of the rows to match."""
    shapes = [tuple(part.shape) if isinstance(part, Tensor) else type(part).__name__ for part in target]
    rows = tuple(pred.shape[:-1])
    if shapes != [rows, rows]:
        raise ValueError(f"target must be a tuple of labels {rows} and scores {rows}, got {shapes}")
    labels, scores = target
    classes = torch.arange(pred.shape[-1], device=labels.device)
    if label_weight is not None and label_weight.shape == rows:
        label_weight = label_weight.unsqueeze(-1)
    return torch.where(labels.unsqueeze(-1) == classes, scores.unsqueeze(-1), 0.0), label_weight


class GHMR(_DropIn):
    """mmdetection's GHM regression loss.

    Args:
        mu: The transition point of ASL1 from quadratic to linear, from 1e-15 to 1e12.
        bins, momentum, loss_weight, reduction, exponent: See :class:`GHMC`.

    Raises:
        TypeError, ValueError: An argument is not as described.

    Example:
        >>> loss_bbox = GHMR(mu=0.02, bins=10, momentum=0.7, loss_weight=10.0)
        >>> deltas = torch.randn(100, 4, requires_grad=True)
        >>> loss_bbox(deltas, torch.zeros(100, 4), torch.ones(100, 4), avg_factor=100).backward()
    """

    _last_edge = 1e3

    def __init__(
        self,
        mu: float = 0.02,
        bins: int = 10,
        momentum: float = 0,
        loss_weight: float = 1.0,
        reduction: str = "mean",
        exponent: float = 1.0,
    ):
        super().__init__(
            loss="ghmr",
            mu=mu,
            bins=bins,
            momentum=momentum,
            loss_weight=loss_weight,
            reduction=reduction,
            exponent=exponent,
        )

    def forward(
        self,
        pred: Tensor,
        target: Tensor,
        label_weight: Tensor | None = None,
        avg_factor: float | None = None,
        reduction_override: str | None = None,
    ) -> Tensor:
        """Compute the loss of one level.

        Args:
            pred: Box deltas [N, 4].
            target: [N, 4], of any floating point or integer dtype.
            label_weight: What broadcasts to [N, 4]. Elements with a positive weight count, and the sum of the broadcast
                weights is N. None: all count.
            avg_factor: Not used.
            reduction_override: Replaces `reduction` for this call.
        """
        if isinstance(target, Tensor) and target.dtype in INDICES:
            target = target.to(
                torch.float64 if isinstance(pred, Tensor) and pred.dtype == torch.float64 else torch.float32
            )
        return self._compute(pred, target, label_weight, reduction_override)


def register_mmdet() -> None:
    """Register :class:`GHMC` and :class:`GHMR` in mmdetection's registry, in place of its own.

    This imports all models of mmdetection first, so that its own classes are not registered later.

    Raises:
        ImportError: mmdetection 3.x or a package that it needs, such as mmcv with its operators, cannot be imported.
    """
    try:
        import mmdet.models  # noqa: F401  registers its own GHMC and GHMR
        from mmdet.registry import MODELS
    except ImportError as error:
        raise ImportError(f"register_mmdet needs mmdetection 3.x, which cannot be imported: {error}") from error
    for loss in (GHMC, GHMR):
        MODELS.register_module(name=loss.__name__, module=loss, force=True)
