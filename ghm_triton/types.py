"""The types of the public arguments."""

from collections.abc import Sequence
from typing import Literal, TypedDict

import torch
from torch import Tensor

Levels = Tensor | Sequence[Tensor]
Loss = Literal["ghmc", "ghmr", "cross_entropy"]
Variant = Literal["paper", "mmdet"]
Reduction = Literal["mean", "sum", "none"]
Backend = Literal["triton", "eager"]


class CallOptions(TypedDict, total=False):
    """The options of all losses that do not change the type of the result."""

    bins: int
    exponent: float
    momentum: float
    running_counts: Tensor | None
    backend: Backend | None
    process_group: "torch.distributed.ProcessGroup | None"


class ClassificationOptions(CallOptions, total=False):
    """The options of :func:`ghm_triton.ghmc_loss` that do not change the type of its result."""

    class_dim: int | None
    ignore_index: int | None


class RegressionOptions(CallOptions, total=False):
    """The options of :func:`ghm_triton.ghmr_loss` that do not change the type of its result."""

    mu: float
