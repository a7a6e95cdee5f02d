"""What the harmonized heads of RetinaNet and FCOS share."""

import torch
from torch import Tensor, nn

_BACKGROUND = -1


class HarmonizedLosses(nn.Module):
    """The parts of a detector's head, taken over from another, and losses that take one density over batch and levels.

    To be mixed into a head of torchvision, whose own constructor would build parts of its own.
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

    def _load_from_state_dict(self, state_dict, prefix, *args, **kwargs):
        """Let the losses keep the counts that they have where a checkpoint, of the plain model, holds none."""
        for name in ("classification_loss", "regression_loss"):
            loss = getattr(self, name)
            if loss is not None:
                for key, value in loss.state_dict(prefix=f"{prefix}{name}.").items():
                    state_dict.setdefault(key, value)
        super()._load_from_state_dict(state_dict, prefix, *args, **kwargs)


def match_labels(targets: list[dict[str, Tensor]], matches: Tensor, classes: int) -> Tensor:
    """The label of each anchor's object, -1 for background and ignored anchors, int64 [images, anchors]."""
    labels = torch.cat([target["labels"] for target in targets])
    _check_labels(labels, classes)
    # One label more, for the anchors of images without objects to point at.
    labels = torch.cat([labels, labels.new_full((1,), _BACKGROUND)])[object_index(targets, matches)]
    return torch.where(matches >= 0, labels, _BACKGROUND)


def object_index(targets: list[dict[str, Tensor]], matches: Tensor) -> Tensor:
    """From each anchor to its object among those of all images, [images, anchors]; unmatched anchors to the first."""
    first, total = [], 0
    for target in targets:
        first.append(total)
        total += len(target["labels"])
    return matches.clamp(min=0) + torch.tensor(first, device=matches.device)[:, None]


def _check_labels(labels: Tensor, classes: int) -> None:
    """GHM-C would take other labels for background. This waits for the device, as torchvision's check of boxes does."""
    wrong = labels[(labels < 0) | (labels >= classes)]
    if wrong.numel():
        raise ValueError(f"targets: expected labels in 0..{classes - 1}, got {wrong[0].item()}")
