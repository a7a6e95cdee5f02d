"""The losses as the tests call them: with weights of any type, the exponent of the paper, and mmdetection's formulas.

The public functions take masks, default to the exponent 0.5, and have no `variant`: ghm_triton.mmdet has.
"""

import torch

import ghm_triton
from ghm_triton.losses.base import elementwise_loss
from ghm_triton.options import Options


def counted(weight):
    """The mask that a weight means: an element counts where its weight is positive."""
    if isinstance(weight, (list, tuple)):
        return [counted(of_level) for of_level in weight]
    plain = isinstance(weight, torch.Tensor) and weight.layout == torch.strided and not weight.is_nested
    return weight > 0 if plain and weight.dtype != torch.bool else weight


def ghmc_loss(input, target, weight=None, *, variant="paper", exponent=1.0, **options):
    options["exponent"] = exponent
    options.setdefault("class_dim", -1)  # integers are class indices beside a single class too
    if variant == "mmdet":
        return _of_mmdetection("ghmc", input, target, weight, **({"bins": 30} | options))
    return ghm_triton.ghmc_loss(input, target, counted(weight), **options)


def ghmr_loss(input, target, weight=None, *, variant="paper", exponent=1.0, **options):
    options["exponent"] = exponent
    if variant == "mmdet":
        return _of_mmdetection("ghmr", input, target, weight, **({"bins": 10, "mu": 0.02} | options))
    return ghm_triton.ghmr_loss(input, target, counted(weight), **options)


def ghm_cross_entropy(input, target, *, exponent=1.0, **options):
    return ghm_triton.ghm_cross_entropy(input, target, exponent=exponent, **options)


def _of_mmdetection(loss, *tensors, running_counts=None, backend=None, process_group=None, **settings):
    options = Options(loss=loss, variant="mmdet", **settings)
    return elementwise_loss(*tensors, running_counts, options, backend, process_group)
