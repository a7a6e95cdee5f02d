"""User code for mypy --strict, in test_typing.py. Each `type: ignore` marks a line that the types must refuse."""

import torch
from torch import Tensor

from ghm_triton import GHMCLoss, GHMCrossEntropyLoss, GHMRLoss, ghm_cross_entropy, ghmc_loss, ghmr_loss

logits, labels = torch.randn(10, 4, requires_grad=True), torch.randint(-1, 4, (10,))
ghmc_loss(logits, labels, bins=30, exponent=0.5).backward()
(ghmc_loss([logits], [labels]) + ghmr_loss([logits], [logits], None, mu=0.1, reduction="sum")).backward()
unreduced: Tensor = ghmc_loss(logits, labels, reduction="none", backend="eager")
by_level: tuple[Tensor, ...] = ghmr_loss([logits], [logits], reduction="none")
classify, regress = GHMCLoss(class_dim=1, momentum=0.75), GHMRLoss(mu=0.02)
classify.forward(logits, labels).backward()
ghm_cross_entropy(logits, labels.clamp(min=0), label_smoothing=0.1, exponent=0.5).backward()
softmax = GHMCrossEntropyLoss(ignore_index=-1, reduction="none")
losses: Tensor = softmax.forward(logits, labels)
state: Tensor | None = classify.running_counts
bins: int = classify.bins
mu: float = regress.mu

ghmc_loss(logits, labels, bins="30")  # type: ignore[call-overload]
ghmc_loss([logits], labels)  # type: ignore[call-overload]
GHMCrossEntropyLoss(class_dim=1)  # type: ignore[call-arg]
GHMCLoss(reduction="avg")  # type: ignore[arg-type]
classify.running_counts.sum()  # type: ignore[union-attr]
