"""SSD: the softmax loss over all anchors without mining; labels start at 0 in the data and at 1 in the model."""

import copy
import io

import pytest
import torch

pytest.importorskip("torchvision")
for module in ("pycocotools", "sklearn", "matplotlib"):
    pytest.importorskip(module)

from torchvision.models.detection import ssdlite320_mobilenet_v3_large
from torchvision.models.detection.ssd import SSD

from calls import ghm_cross_entropy, ghmr_loss
from ghm_triton import GHMCLoss, GHMCrossEntropyLoss, GHMRLoss
from ghm_triton.detection import digits, harmonize, train
from ghm_triton.detection.losses import LossOptions, use_losses
from ghm_triton.detection.models.builder import build_model
from ghm_triton.detection.training.density_figure import observe

NAME = "ssdlite320_mobilenet_v3_large"
LABELS = torch.tensor([[1, 0, 3, 0, 1], [0] * 5, [0, 0, 0, 4, 0]])  # of the anchors below; 0: background


@pytest.fixture(scope="module")
def plain():
    torch.manual_seed(0)
    return ssdlite320_mobilenet_v3_large(weights=None, weights_backbone=None, num_classes=5)


@pytest.fixture
def model(plain):
    return copy.deepcopy(plain)


@pytest.fixture
def batch():
    """(targets, head outputs, anchors, matches) of 3 images of 5 anchors and 5 classes; the second has no objects."""
    generator = torch.Generator().manual_seed(0)
    outputs = {
        "cls_logits": torch.randn(3, 5, 5, generator=generator, requires_grad=True),
        "bbox_regression": torch.randn(3, 5, 4, generator=generator, requires_grad=True),
    }
    targets = [
        {"boxes": torch.tensor([[0.0, 0, 8, 8], [4, 4, 20, 12]]), "labels": torch.tensor([3, 1])},
        {"boxes": torch.zeros(0, 4), "labels": torch.zeros(0, dtype=torch.int64)},
        {"boxes": torch.tensor([[2.0, 2, 6, 10]]), "labels": torch.tensor([4])},
    ]
    matches = [torch.tensor([1, -1, 0, -1, 1]), torch.full((5,), -1), torch.tensor([-1, -1, -1, 0, -1])]
    corner = torch.arange(15.0).view(3, 5, 1)
    return targets, outputs, list(torch.cat([corner, corner, corner + 8, corner + 12], dim=2)), matches


def test_losses_take_all_anchors_in_one_density(model, batch):
    targets, outputs, anchors, matches = batch
    harmonize(model, GHMCrossEntropyLoss(momentum=0.0, exponent=0.5), GHMRLoss(momentum=0.0, mu=0.2, exponent=0.5))
    losses = model.compute_loss(targets, outputs, anchors, matches)
    expected = ghm_cross_entropy(outputs["cls_logits"].view(15, 5), LABELS.view(15), exponent=0.5)
    assert torch.equal(losses["classification"], expected)
    # An SSD encodes 10 times the shift of the center over the side, and 5 times the log of the ratio of the sides.
    boxes = torch.stack([targets[0]["boxes"][i] for i in (1, 0, 1)] + [targets[2]["boxes"][0]])
    own = torch.stack(anchors)[LABELS > 0]
    side, own_side = boxes[:, 2:] - boxes[:, :2], own[:, 2:] - own[:, :2]
    shift = (boxes[:, :2] + side / 2 - own[:, :2] - own_side / 2) / own_side
    wanted = torch.cat([10 * shift, 5 * (side / own_side).log()], dim=1)
    expected = ghmr_loss(outputs["bbox_regression"][LABELS > 0], wanted, mu=0.2, exponent=0.5)
    torch.testing.assert_close(losses["bbox_regression"], expected, rtol=1e-5, atol=0)  # deltas rounded otherwise
    sum(losses.values()).backward()
    assert torch.equal(outputs["bbox_regression"].grad.any(dim=2), LABELS > 0)
    assert outputs["cls_logits"].grad.any(dim=2).all()


def test_a_loss_that_is_not_given_is_the_models_own(plain, model, batch):
    own = plain.compute_loss(*batch)
    harmonize(model, GHMCrossEntropyLoss())
    assert torch.equal(model.compute_loss(*batch)["bbox_regression"], own["bbox_regression"])
    harmonize(model, None, GHMRLoss())
    assert torch.equal(model.compute_loss(*batch)["classification"], own["classification"])


@pytest.mark.slow
def test_the_model_stays_an_ssd(plain, model, batch):
    """Checkpoints of the plain model load, counts are in its own, and it can be copied and saved whole."""
    harmonize(model)
    assert isinstance(model, SSD)
    assert (type(model.classification_loss), model.regression_loss.mu) == (GHMCrossEntropyLoss, 0.2)
    model.load_state_dict(plain.state_dict())
    model.compute_loss(*batch)
    assert model.state_dict()["classification_loss.running_counts"].any()
    file = io.BytesIO()
    torch.save(model, file)
    file.seek(0)
    for other in (copy.deepcopy(model), torch.load(file, weights_only=False)):
        assert torch.equal(other.classification_loss.running_counts, model.classification_loss.running_counts)
        assert other.compute_loss(*batch).keys() == {"classification", "bbox_regression"}


@pytest.mark.parametrize("label", [0, 5])
def test_labels_that_are_no_classes_are_refused(model, batch, label):
    batch[0][0]["labels"][0] = label
    with pytest.raises(ValueError, match=rf"targets must have labels in 1..4, got {label}"):
        harmonize(model).compute_loss(*batch)


def test_derived_classes_are_refused(model):
    class Mine(SSD):
        pass

    model.__class__ = Mine
    with pytest.raises(TypeError, match="model must be torchvision's SSD itself, got Mine"):
        harmonize(model)


def test_a_sigmoid_loss_is_refused(model):
    """It would train independent sigmoids, and the background as a class; the model detects by a softmax."""
    with pytest.raises(TypeError, match="classification_loss must be a loss for a softmax, .* got GHMCLoss"):
        harmonize(model, GHMCLoss())
    assert type(model) is SSD


def test_names_choose_the_losses(model):
    use_losses(model, LossOptions("ghm", exponent=0.5, mu=0.2, class_loss_weight=2.0), sync=True)
    classify = model.classification_loss
    assert isinstance(classify, GHMCrossEntropyLoss) and isinstance(model.regression_loss, GHMRLoss)
    assert (classify.exponent, classify.loss_weight) == (0.5, 2.0)
    for name in ("focal", "ce"):
        with pytest.raises(ValueError, match=f"loss must be 'ghm', 'ghmc' or 'model' for an SSD, got '{name}'"):
            use_losses(model, LossOptions(name))


@pytest.mark.slow
def test_labels_start_at_0_in_the_data(batch):
    """Label 0 trains class 1 of the model; what is found has labels from 0 up."""
    model = harmonize(build_model(NAME, 4), GHMCrossEntropyLoss(), GHMRLoss(mu=0.2))
    seen = []
    model.classification_loss.register_forward_pre_hook(lambda module, arguments: seen.append(arguments[1]))
    images = [torch.rand(3, 64, 64, generator=torch.Generator().manual_seed(1)) for _ in range(2)]
    target = {"boxes": torch.tensor([[5.0, 5, 40, 40]]), "labels": torch.tensor([0])}
    losses = model(images, [target, target])
    assert set(seen[0].tolist()) == {0, 1} and target["labels"].tolist() == [0]
    sum(losses.values()).backward()
    found = model.eval()(images)
    labels = torch.cat([one["labels"] for one in found])
    assert len(labels) and labels.min() >= 0 and labels.max() <= 3


def test_sizes_are_refused():
    with pytest.raises(ValueError, match="min_size must be left out for an SSD, whose size is fixed, got 96"):
        build_model(NAME, 4, min_size=96)


@pytest.mark.slow
def test_the_figure_shows_all_anchors():
    """The gradient of the classification by autograd, with the loss's own density; the paper's regions without one."""
    images = [torch.rand(3, 64, 64, generator=torch.Generator().manual_seed(1)) for _ in range(2)]
    target = {"boxes": torch.tensor([[5.0, 5, 40, 40]]), "labels": torch.tensor([0])}
    plain = build_model(NAME, 4)
    model = harmonize(copy.deepcopy(plain), GHMCrossEntropyLoss(bins=20, exponent=0.5), GHMRLoss(mu=0.2, bins=5))
    inputs = []
    hook = model.classification_loss.register_forward_pre_hook(lambda module, arguments: inputs.append(arguments))
    model(images, [target, target])
    hook.remove()
    ((logits, labels),) = inputs
    logits = logits.detach().double().requires_grad_()
    torch.nn.functional.cross_entropy(logits, labels, reduction="sum").backward()
    norm = logits.grad.abs().sum(dim=1) / 2
    items = [(image, target) for image in images]
    seen = observe(model, items)
    expected = torch.stack([norm[labels == 0].sum(), norm[labels > 0].sum()])
    torch.testing.assert_close(seen["classification"].gradient.sum(dim=0), expected, rtol=1e-5, atol=0)  # fp32 norms
    model(images, [target, target])  # what the figure is of: a step with these
    assert torch.equal(seen["classification"].counts, model.classification_loss.density().counts.double())
    assert torch.equal(seen["boxes"].counts, model.regression_loss.density().counts.double())
    own = observe(plain, items)
    assert own["classification"].counts.sum() == len(labels) and own["classification"].weights is None
    assert [len(own[name].counts) for name in ("classification", "boxes")] == [30, 10]
    torch.testing.assert_close(own["boxes"].gradient.sum(), seen["boxes"].gradient.sum(), rtol=1e-5, atol=0)  # mu 0.2


@pytest.mark.slow
def test_train_writes_its_pictures(tmp_path):
    digits.main([str(tmp_path / "data"), "--train", "4", "--val", "2"])
    options = ["--data", tmp_path / "data", "--output", tmp_path / "run", "--model", NAME, "--mu", 0.2]
    options += ["--epochs", 1, "--batch-size", 2, "--workers", 0, "--backbone-weights", "none"]
    assert train.main([str(option) for option in options]) == 0
    written = {path.name for path in (tmp_path / "run").iterdir()}
    assert written >= {"checkpoint.pt", "metrics.csv", "losses.png", "ap.png", "density.png"}
