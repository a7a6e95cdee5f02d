"""GHM-C in the criterion of a detection transformer.

A model calls a plain function, its loss function, which builds a criterion anew in each forward pass. The criterion
matches queries with objects and calls one method for the classes of each decoder layer. :class:`LossFunction` calls the
same function with a derived criterion. Its method computes the loss of the framework, and distributes the gradient as
:class:`ghm_triton.HarmonizedBCELoss` does. Divisors and loss weights stay.
"""

import types

import torch
from torch import Tensor
from transformers.image_transforms import center_to_corners_format
from transformers.loss.loss_for_object_detection import box_iou

from ghm_triton import HarmonizedBCELoss


class LossFunction:
    """The loss function of a harmonized model.

    Args:
        plain: The loss function of the framework.
        criterion: The name of the criterion's class in that function.
        loss: The harmonized loss, a submodule of the model.
    """

    def __init__(self, plain, criterion: str, loss: HarmonizedBCELoss):
        self.plain, self.criterion, self.loss = plain, criterion, loss

    def __call__(self, *args, **kwargs):
        """Compute what `plain` computes: the loss, its parts, and the auxiliary outputs."""
        names = dict(self.plain.__globals__)
        base = names[self.criterion]
        # Made in each call, because a class cannot follow the copies of a model, each of which has its own loss.
        names[self.criterion] = type(f"Harmonized{base.__name__}", (_ClassificationTerms, base), {"ghm": self.loss})
        code, defaults, closure = self.plain.__code__, self.plain.__defaults__, self.plain.__closure__
        function = types.FunctionType(code, names, self.plain.__name__, defaults, closure)
        function.__kwdefaults__ = self.plain.__kwdefaults__
        return function(*args, **kwargs)


class _ClassificationTerms:
    """The methods of a criterion that compute a loss of the classes. Each calls that of the framework for its value."""

    ghm: HarmonizedBCELoss

    def loss_labels(self, outputs, targets, indices, num_boxes, **options):
        plain = super().loss_labels(outputs, targets, indices, num_boxes, **options)
        return self._harmonized(plain, outputs, targets, indices)

    def loss_labels_focal(self, outputs, targets, indices, num_boxes, **options):
        plain = super().loss_labels_focal(outputs, targets, indices, num_boxes, **options)
        return self._harmonized(plain, outputs, targets, indices)

    def loss_labels_vfl(self, outputs, targets, indices, num_boxes, **options):
        plain = super().loss_labels_vfl(outputs, targets, indices, num_boxes, **options)
        return self._harmonized(plain, outputs, targets, indices, overlaps=True)

    def _harmonized(self, plain: dict[str, Tensor], outputs, targets, indices, overlaps: bool = False):
        """Return the term `plain`, a dict of one scalar, with the gradient of the harmonized loss."""
        if not torch.is_grad_enabled():
            return plain
        ((name, value),) = plain.items()
        target = _target(outputs, targets, indices, overlaps)
        return {name: self.ghm(outputs["logits"], target, value).sum()}


def _target(outputs, targets, indices, overlaps: bool) -> Tensor:
    """Return [B, Q, C] zeros with 1, or the overlap of the boxes, at the classes of the matched queries."""
    logits = outputs["logits"]
    image = torch.cat([torch.full_like(queries, i) for i, (queries, _) in enumerate(indices)])
    query = torch.cat([queries for queries, _ in indices])
    label = torch.cat([objects["class_labels"][i] for objects, (_, i) in zip(targets, indices)])
    score = torch.ones(len(label), device=logits.device)
    if overlaps:
        found = center_to_corners_format(outputs["pred_boxes"].detach()[image, query].float())
        boxes = torch.cat([objects["boxes"][i] for objects, (_, i) in zip(targets, indices)])
        score = torch.diag(box_iou(found, center_to_corners_format(boxes.float()))[0]).clamp(0, 1)
    target = torch.zeros(logits.shape, device=logits.device)
    target[image, query, label] = score
    return target
