"""GHM-C in the criterion of a model of Ultralytics.

The criterion of a YOLO model computes the binary cross entropy of all class scores with its module `bce`, adds up the
values, and divides the sum by the sum of the target scores. :class:`ghm_triton.HarmonizedBCELoss` replaces this module.
The criterion of RT-DETR has two modules, `vfl` (varifocal loss) and `fl` (focal loss, for images without objects). They
return the total that the replacement keeps. Class weights, divisors, and gains stay.
"""

import torch
from torch import Tensor, nn
from ultralytics.models.utils.loss import RTDETRDetectionLoss
from ultralytics.utils.loss import v8DetectionLoss

from ghm_triton import HarmonizedBCELoss

BRANCHES = ("one2many", "one2one")  # of the criterion of an end-to-end model


class HarmonizedFocal(nn.Module):
    """A focal or varifocal loss of Ultralytics whose gradient is distributed as :class:`HarmonizedBCELoss` does it.

    Args:
        plain: The loss: (logits, target, ...) to a scalar, the total over a factor of its own.
        bce: The harmonized loss, which several modules may share.
    """

    def __init__(self, plain: nn.Module, bce: HarmonizedBCELoss):
        super().__init__()
        self.plain, self.bce = plain, bce

    def forward(self, logits: Tensor, target: Tensor, *more: Tensor) -> Tensor:
        """Compute the loss, a scalar. `target` has the shape of `logits` and values in [0, 1]."""
        value = self.plain(logits, target, *more)
        return self.bce(logits, target, value).sum() if torch.is_grad_enabled() else value


def harmonize_criterion(criterion, **options):
    """Replace the classification loss by :class:`HarmonizedBCELoss`, with its own density for each branch.

    Args:
        criterion: The result of `init_criterion` of a model that detects, segments instances, finds oriented boxes, or
            estimates poses, or of RT-DETR. It is changed and returned.
        options: As for :class:`HarmonizedBCELoss`. RT-DETR has one density per process.

    Raises:
        TypeError: `criterion` is that of another model.
    """
    if isinstance(criterion, RTDETRDetectionLoss):
        # A process without objects has no denoising queries and calls less often: the others would wait for it.
        bce = HarmonizedBCELoss(**options | {"process_group": None})
        criterion.vfl, criterion.fl = HarmonizedFocal(criterion.vfl, bce), HarmonizedFocal(criterion.fl, bce)
        return criterion
    for branch in _branches(criterion).values():
        branch.bce = HarmonizedBCELoss(**options).to(branch.device)
    return criterion


def losses_of_branches(criterion) -> dict[str, HarmonizedBCELoss]:
    """Return the losses that hold the densities: "one2many" and "one2one", or "detect" if there is only one branch."""
    if isinstance(criterion, RTDETRDetectionLoss):
        return {"detect": criterion.fl.bce}
    return {name: branch.bce for name, branch in _branches(criterion).items()}


def _branches(criterion) -> dict[str, v8DetectionLoss]:
    branches = {name: getattr(criterion, name) for name in BRANCHES if hasattr(criterion, name)}
    branches = branches or {"detect": criterion}
    for branch in branches.values():
        if not isinstance(branch, v8DetectionLoss):
            raise TypeError(
                "criterion must be that of a model that detects, segments, finds oriented boxes, or estimates poses, "
                f"got {type(branch).__name__}"
            )
    return branches
