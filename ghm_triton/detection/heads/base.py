"""Code shared by the harmonized heads."""

import torch
from torch import Tensor, nn

BACKGROUND = -1  # the label of anchors without an object, where no class stands for the background


class KeepsCounts(nn.Module):
    """A module with a `classification_loss` and a `regression_loss`, which may be None or keep running counts."""

    classification_loss: nn.Module | None
    regression_loss: nn.Module | None

    def _load_from_state_dict(self, state_dict, prefix, *args, **kwargs):
        """Load a checkpoint. That of the plain model holds no running counts: the losses then keep theirs."""
        for name in ("classification_loss", "regression_loss"):
            loss = getattr(self, name)
            if loss is not None:
                for key, value in loss.state_dict(prefix=f"{prefix}{name}.").items():
                    state_dict.setdefault(key, value)
        super()._load_from_state_dict(state_dict, prefix, *args, **kwargs)


class HarmonizedLosses(KeepsCounts):
    """A head that takes the parts of another head, and losses with one density over the batch and all levels.

    This is the first base class of a head, in place of torchvision's constructor, which would build new parts.
    """

    def __init__(
        self,
        classification_head: nn.Module,
        regression_head: nn.Module,
        classification_loss: nn.Module | None,
        regression_loss: nn.Module | None,
    ):
        nn.Module.__init__(self)
        self.classification_head = classification_head
        self.regression_head = regression_head
        self.classification_loss = classification_loss
        self.regression_loss = regression_loss


def match_labels(
    targets: list[dict[str, Tensor]], matches: Tensor, classes: int, background: int = BACKGROUND
) -> Tensor:
    """Return the label of each anchor's object, int64 [images, anchors]. It is `background` where there is no match."""
    labels = torch.cat([target["labels"] for target in targets])
    _check_labels(labels, background + 1, classes)
    # The extra label is what the anchors of images without objects point at.
    labels = torch.cat([labels, labels.new_full((1,), background)])[object_index(targets, matches)]
    return torch.where(matches >= 0, labels, background)


def positive_deltas(box_coder, targets, deltas: Tensor, anchors: list[Tensor], matches: Tensor):
    """Return the deltas of the positive anchors and their targets, both [positive anchors, 4]."""
    positive = matches >= 0
    boxes = torch.cat([target["boxes"] for target in targets])[object_index(targets, matches)[positive]]
    return deltas[positive], box_coder.encode_single(boxes, torch.stack(anchors)[positive])


def object_index(targets: list[dict[str, Tensor]], matches: Tensor) -> Tensor:
    """Return the index of each anchor's object among those of all images, [images, anchors]; the first if unmatched."""
    first, total = [], 0
    for target in targets:
        first.append(total)
        total += len(target["labels"])
    return matches.clamp(min=0) + torch.tensor(first, device=matches.device)[:, None]


def _check_labels(labels: Tensor, first: int, classes: int) -> None:
    """Raise a ValueError for a wrong label, which would count as background.

    This waits for the device, like torchvision's check of boxes.
    """
    wrong = labels[(labels < first) | (labels >= classes)]
    if wrong.numel():
        raise ValueError(f"targets must have labels in {first}..{classes - 1}, got {wrong[0].item()}")
