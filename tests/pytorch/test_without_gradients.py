"""Detectors in training mode without gradients: validation, and the first pass of reentrant checkpointing."""

import pytest
import torch
from torch.utils.checkpoint import checkpoint

pytest.importorskip("torchvision")

from torchvision.models.detection import FCOS, RetinaNet, ssdlite320_mobilenet_v3_large
from torchvision.models.detection.anchor_utils import AnchorGenerator

from ghm_triton import GHMCLoss, GHMCrossEntropyLoss
from ghm_triton.detection import harmonize


class Backbone(torch.nn.Conv2d):
    """One level with a stride of 16."""

    out_channels = 32

    def __init__(self):
        super().__init__(3, 32, 16, 16)


@pytest.fixture(params=["retinanet", "fcos", "ssd"])
def model(request):
    """A detector of 5 classes with GHM losses that has seen one batch."""
    torch.manual_seed(0)
    if request.param == "ssd":
        detector = ssdlite320_mobilenet_v3_large(weights=None, weights_backbone=None, num_classes=5)
    else:
        anchors = AnchorGenerator(((16,),), ((1.0,),))
        kind = RetinaNet if request.param == "retinanet" else FCOS
        detector = kind(Backbone(), 5, min_size=64, max_size=64, anchor_generator=anchors)
    harmonize(detector).train()
    for seed in range(2):
        losses(detector, **batch(detector, seed))
    return detector


def batch(model, seed):
    """Head outputs with gradients, and the rest of what a detector passes to `compute_loss`."""
    generator = torch.Generator().manual_seed(seed)
    ssd = not hasattr(model.head, "compute_loss")
    outputs = {"cls_logits": torch.randn(2, 30, 5, generator=generator)}
    outputs["bbox_regression"] = torch.rand(2, 30, 4, generator=generator)
    outputs["bbox_ctrness"] = torch.randn(2, 30, 1, generator=generator)
    for output in outputs.values():
        output.requires_grad_()
    corner = torch.arange(30.0)[:, None]
    target = {"boxes": torch.tensor([[-9.0, -9, 60, 60]]), "labels": torch.tensor([2 if ssd else 1])}
    return {
        "targets": [target, target],
        "head_outputs": outputs,
        "anchors": [torch.cat([corner, corner, corner + 8, corner + 12], dim=1)] * 2,
        "matched_idxs": [torch.where(torch.arange(30) % 7 == 0, 0, -1)] * 2,
    }


def losses(model, **arguments):
    part = model.head if hasattr(model.head, "compute_loss") and not hasattr(model, "classification_loss") else model
    return sum(part.compute_loss(**arguments).values())


def counts(model):
    found = [m.running_counts.clone() for m in model.modules() if hasattr(m, "running_counts")]
    assert found and all(one.sum() > 0 for one in found)
    return found


def equal(one, other):
    return len(one) == len(other) and all(map(torch.equal, one, other))


def test_validation(model):
    """deepforest, for example, computes its validation loss in training mode under no_grad."""
    before = counts(model)
    for context in (torch.no_grad(), torch.inference_mode()):
        with context:
            value = losses(model, **batch(model, 2))
        assert value > 0 and equal(counts(model), before)
    assert all(m.training for m in model.modules() if isinstance(m, (GHMCLoss, GHMCrossEntropyLoss)))
    losses(model, **batch(model, 2))
    assert not equal(counts(model), before)


@pytest.mark.parametrize("reentrant", [False, True])
def test_checkpointing(model, reentrant):
    """Each step updates the counts once and has the gradient of the plain call, after a validation too."""
    results = []
    state = {key: value.clone() for key, value in model.state_dict().items()}
    for wrapped in (False, True):
        model.load_state_dict(state)
        for step in range(2):
            with torch.no_grad():
                losses(model, **batch(model, 7))
            arguments = batch(model, step + 2)
            outputs = arguments.pop("head_outputs")

            def total(*values):
                return losses(model, head_outputs=dict(zip(outputs, values)), **arguments)

            if wrapped:
                checkpoint(total, *outputs.values(), use_reentrant=reentrant).backward()
            else:
                total(*outputs.values()).backward()
        gradients = [output.grad for output in outputs.values() if output.grad is not None]
        results.append((counts(model), gradients))
    assert equal(results[0][0], results[1][0]) and equal(results[0][1], results[1][1])
