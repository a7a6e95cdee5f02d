"""unharmonize: torchvision's detector again, which scripts, with the trained parameters."""

import copy

import pytest
import torch

pytest.importorskip("torchvision")

from torchvision.models.detection import fcos_resnet50_fpn, retinanet_resnet50_fpn_v2, ssdlite320_mobilenet_v3_large

from ghm_triton import GHMCLoss
from ghm_triton.detection import harmonize, unharmonize

MAKERS = [retinanet_resnet50_fpn_v2, fcos_resnet50_fpn, ssdlite320_mobilenet_v3_large]


def build(make):
    torch.manual_seed(0)
    size = {} if make is ssdlite320_mobilenet_v3_large else dict(min_size=64, max_size=64)
    return make(weights=None, weights_backbone=None, num_classes=4, **size)


def batch():
    target = {"boxes": torch.tensor([[8.0, 8.0, 40.0, 48.0]]), "labels": torch.tensor([3])}
    return [torch.rand(3, 64, 64, generator=torch.Generator().manual_seed(1)) for _ in range(2)], [target, target]


@pytest.mark.parametrize("make", MAKERS, ids=lambda make: make.__name__)
def test_the_plain_model_is_back(make):
    """The same object, with the losses, the names, and the classes of the plain model."""
    plain = build(make)
    model = harmonize(copy.deepcopy(plain))
    assert unharmonize(model) is model and type(model) is type(plain) and type(model.head) is type(plain.head)
    assert list(model.state_dict()) == list(plain.state_dict())
    losses = model.train()(*batch())
    for name, expected in plain.train()(*batch()).items():
        torch.testing.assert_close(losses[name], expected, rtol=0, atol=0)


@pytest.mark.slow
@pytest.mark.parametrize("make", MAKERS, ids=lambda make: make.__name__)
def test_script(make, monkeypatch):
    """torch.jit.script of the result detects what the harmonized model detects."""
    monkeypatch.undo()  # TorchScript cannot read conftest.py's torch.empty
    model = harmonize(build(make)).eval()
    model.score_thresh = 0.0
    images, _ = batch()
    expected = model(images)[0]
    _, detections = torch.jit.script(unharmonize(model))(images)
    assert len(expected["boxes"]) > 0
    for name, value in expected.items():
        torch.testing.assert_close(detections[0][name], value, rtol=1e-5, atol=1e-5)


def test_plain_and_other_models():
    """A plain model stays as it is, with one loss too; others are named."""
    plain = build(retinanet_resnet50_fpn_v2)
    head = plain.head
    assert unharmonize(plain).head is head
    assert "classification_loss" not in dict(unharmonize(harmonize(plain, GHMCLoss())).head.named_children())
    with pytest.raises(TypeError, match="model must be a torchvision RetinaNet, FCOS or SSD, got Linear"):
        unharmonize(torch.nn.Linear(2, 2))
