"""The tensors of a case."""

from typing import NamedTuple

import torch
from torch import Tensor

from ghm_triton.check.data import draw_deltas, draw_logits, draw_softmax

from .cases import Case


class Data(NamedTuple):
    """The arguments of the implementations."""

    input: Tensor  # of case.shape, a leaf that requires grad
    target: Tensor  # int64, one per row, `columns` for background; or [rows, columns] in the dtype of `input`
    one_hot: Tensor  # fp32 [rows, columns]: the target that binary cross entropy and focal loss get; or empty
    weight: Tensor  # fp32 ones in the shape of `target`: what mmdetection's heads pass
    scale: (
        Tensor  # fp32 []: the gradient that backward starts from; in fp16, large like GradScaler's, or it rounds to 0
    )

    def double(self) -> "Data":
        """Return the same data in float64. Class indices stay as they are."""
        wide = (tensor.detach().double() if tensor.is_floating_point() else tensor for tensor in self)
        data = Data(*wide)
        data.input.requires_grad_()
        return data


def make_data(case: Case, device: torch.device, seed: int = 0) -> Data:
    """Make the tensors of `case`, the same in every run on one kind of device."""
    generator = torch.Generator(device).manual_seed(seed)
    make = {"ghmc": _classification, "ghmr": _regression, "cross_entropy": _softmax}[case.loss]
    input, target, one_hot = make(case, generator)
    weight = torch.ones(target.shape, device=device)
    scale = torch.tensor(65536.0 if case.dtype == "float16" else 1.0, device=device)
    return Data(input.to(case.torch_dtype).requires_grad_(), target, one_hot, weight, scale)


def _classification(case: Case, generator: torch.Generator) -> tuple[Tensor, Tensor, Tensor]:
    logits, anchor, label = draw_logits(case, generator)
    one_hot = torch.zeros_like(logits)
    one_hot[anchor, label] = 1
    if case.target == "dense":
        return logits, one_hot.to(case.torch_dtype), one_hot
    index = torch.full((case.rows,), case.columns, device=logits.device)
    index[anchor] = label
    return logits, index, one_hot


def _regression(case: Case, generator: torch.Generator) -> tuple[Tensor, Tensor, Tensor]:
    input, target = draw_deltas(case, generator)
    return input, target.to(case.torch_dtype), (target > 0).float()


def _softmax(case: Case, generator: torch.Generator) -> tuple[Tensor, Tensor, Tensor]:
    logits, label = draw_softmax(case, generator)
    return logits, label.squeeze(1), logits.new_empty(0)
