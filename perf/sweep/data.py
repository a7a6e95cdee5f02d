"""The tensors of a case."""

from typing import NamedTuple

import torch
from torch import Tensor

from .cases import Case

MU = 0.02  # of GHM-R
POSITIVE_ANCHORS = 0.005


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
    input, target, one_hot = make(case, device, generator)
    weight = torch.ones(target.shape, device=device)
    scale = torch.tensor(65536.0 if case.dtype == "float16" else 1.0, device=device)
    return Data(input.to(case.torch_dtype).requires_grad_(), target, one_hot, weight, scale)


def _classification(case, device, generator):
    """Make logits. 0.5% of the anchors have an object; a trained head found most: N(0, 2) at their class."""
    mean, std = {"start": (-4.6, 0.1), "trained": (-7.0, 1.2), "uniform": (0.0, 1.5)}[case.distribution]
    logits = torch.empty(case.rows, case.columns, device=device).normal_(mean, std, generator=generator)
    count = max(1, round(case.rows * POSITIVE_ANCHORS))
    anchor = torch.randint(case.rows, (count,), device=device, generator=generator).unique()
    label = torch.full((case.rows,), case.columns, device=device)
    label[anchor] = torch.randint(case.columns, anchor.shape, device=device, generator=generator)
    if case.distribution == "trained":
        logits[anchor, label[anchor]] = torch.randn(anchor.shape, device=device, generator=generator) * 2
    one_hot = torch.zeros(case.rows, case.columns, device=device)
    one_hot[anchor, label[anchor]] = 1
    return logits, label if case.target == "index" else one_hot.to(case.torch_dtype), one_hot


def _regression(case, device, generator):
    """Make box deltas: near 0 at the start, near the target when trained, or with uniform gradient norms."""
    shape = (case.rows, case.columns)
    target = torch.empty(shape, device=device).normal_(generator=generator)
    noise = torch.empty(shape, device=device).normal_(generator=generator)
    if case.distribution == "start":
        input = noise * 0.01
    elif case.distribution == "trained":
        input = target + noise * 0.1
    else:
        norm = torch.empty(shape, device=device).uniform_(0.001, 0.999, generator=generator)
        input = target + noise.sign() * MU * norm / (1 - norm * norm).sqrt()
    return input, target.to(case.torch_dtype), (target > 0).float()


def _softmax(case, device, generator):
    """Make logits N(0, 1) apart from the labels', from which the probability of the label follows.

    That probability is sigmoid(N(4, 2)) after training, or uniform. At the start, all logits are near 0.
    """
    logits = torch.empty(case.shape, device=device).normal_(generator=generator)
    shape = (case.shape[0], 1, *case.shape[2:])
    label = torch.randint(case.columns, shape, device=device, generator=generator)
    if case.distribution == "start":
        return logits.mul_(0.1), label.squeeze(1), logits.new_empty(0)
    if case.distribution == "trained":
        odds = torch.empty(shape, device=device).normal_(4, 2, generator=generator)
    else:
        odds = torch.empty(shape, device=device).uniform_(0.001, 0.999, generator=generator).logit_()
    others = logits.scatter_(1, label, -torch.inf).logsumexp(1, keepdim=True)
    return logits.scatter_(1, label, others + odds), label.squeeze(1), logits.new_empty(0)
