"""GHM-C in Hugging Face's detection transformers: terms, gradients, state, save and load, Trainer, evaluation."""

import copy
import importlib.util
import sys

import pytest
import torch

INSTALLED = importlib.util.find_spec("transformers") is not None
needs_transformers = pytest.mark.skipif(not INSTALLED, reason="needs transformers")
pytestmark = pytest.mark.xdist_group("transformers")

if INSTALLED:
    # transformers imports a package `kernels` if it finds one. The folder of the repository is none.
    sys.modules.setdefault("kernels", None)
    import transformers
    from transformers.loss import loss_rt_detr
    from transformers.loss.loss_utils import LOSS_MAPPING

    from ghm_triton.transformers import harmonize, unharmonize

from bce_reference import OPTIONS, RELATIVE, reference
from ghm_triton import HarmonizedBCELoss

SMALL = dict(d_model=32, encoder_layers=1, decoder_layers=2, num_labels=5, auxiliary_loss=True)
HEADS = dict(encoder_attention_heads=2, decoder_attention_heads=2, encoder_ffn_dim=32, decoder_ffn_dim=32)
QUERIES = dict(num_queries=12, num_denoising=6, encoder_hidden_dim=32, encoder_in_channels=[16, 24, 32])
PYRAMID = dict(d_model=32, decoder_in_channels=[32] * 3, decoder_layers=2, num_labels=5, eval_size=None)


def backbone(stages):
    return transformers.RTDetrResNetConfig(
        embedding_size=8, hidden_sizes=[8, 16, 24, 32], depths=[1, 1, 1, 1], layer_type="basic", out_features=stages
    )


def resnet(stages):
    return transformers.ResNetConfig(
        embedding_size=8, hidden_sizes=[8, 16, 24, 32], depths=[1, 1, 1, 1], layer_type="basic", out_features=stages
    )


def build(name):
    """A tiny model with random weights, without dropout."""
    torch.manual_seed(0)
    stages = ["stage2", "stage3", "stage4"]
    still = dict(dropout=0.0, activation_dropout=0.0, attention_dropout=0.0)
    if name == "DeformableDetr":
        options = SMALL | HEADS | dict(backbone_config=resnet(stages), use_timm_backbone=False, num_queries=12)
    elif name == "ConditionalDetr":
        options = SMALL | HEADS | dict(backbone_config=resnet(["stage4"]), use_timm_backbone=False, num_queries=12)
    else:
        options = PYRAMID | HEADS | QUERIES | dict(backbone_config=backbone(stages), use_timm_backbone=False)
        if name == "DFine":
            options |= dict(decoder_n_points=[2, 2, 2], hidden_expansion=0.5)
    config = getattr(transformers, f"{name}Config")(**options, **still)
    return getattr(transformers, f"{name}ForObjectDetection")(config).train()


NAMES = ["DeformableDetr", "ConditionalDetr", "RTDetr", "RTDetrV2", "DFine"]


def batch(seed=0):
    generator = torch.Generator().manual_seed(seed)
    labels = [
        {"class_labels": torch.tensor([1, 3]), "boxes": torch.tensor([[0.3, 0.4, 0.2, 0.3], [0.7, 0.6, 0.3, 0.2]])},
        {"class_labels": torch.tensor([4]), "boxes": torch.tensor([[0.5, 0.5, 0.6, 0.4]])},
    ]
    return {"pixel_values": torch.rand(2, 3, 64, 64, generator=generator), "labels": labels}


def forward(model, **given):
    """The output of a call with the same random numbers, which draw the denoising queries."""
    torch.manual_seed(7)
    return model(**given)


class Calls(HarmonizedBCELoss):
    """A loss that keeps its arguments."""

    def forward(self, input, target, value=None):
        result = super().forward(input, target, value)
        self.calls.append((input, target, value.detach(), result))
        return result


@needs_transformers
@pytest.mark.slow
@pytest.mark.parametrize("name", NAMES)
def test_terms(name):
    """All terms of the plain model; for the classes, the gradient of the float64 reference in each layer."""
    plain = build(name)
    model = harmonize(copy.deepcopy(plain), loss := Calls(**OPTIONS))
    loss.calls = []
    expected, got = forward(plain, **batch()), forward(model, **batch())
    assert got.loss_dict.keys() == expected.loss_dict.keys()
    for key, value in expected.loss_dict.items():
        torch.testing.assert_close(got.loss_dict[key], value, rtol=RELATIVE, atol=0)
    torch.testing.assert_close(got.loss, expected.loss, rtol=RELATIVE, atol=0)
    terms = [key for key in expected.loss_dict if "loss_ce" in key or "loss_vfl" in key]
    assert len(loss.calls) == len(terms) >= 2
    if name.startswith(("RT", "DF")):
        assert len([key for key in terms if "_dn_" in key]) == 2
    state = torch.zeros(31)
    for logits, target, value, result in loss.calls:
        matched = target.flatten(0, 1).nonzero()[:, 1].sort().values
        objects = torch.cat([labels["class_labels"] for labels in batch()["labels"]])
        assert set(matched.tolist()) <= set(objects.tolist()) and 0 < target.max() <= 1
        values, gradient, state = reference(logits.detach(), target, state)
        (slope,) = torch.autograd.grad(result.sum(), logits, retain_graph=True)
        scale = value.double() / values.sum()
        torch.testing.assert_close(slope.double(), gradient * scale, rtol=RELATIVE, atol=0)
    torch.testing.assert_close(model.ghm_loss.running_counts.double(), state, rtol=1e-6, atol=0)
    got.loss.backward()
    assert all(p.grad.isfinite().all() for p in model.parameters() if p.grad is not None)


@needs_transformers
def test_targets():
    """Ones at the matched queries for the focal loss, and the overlap for the varifocal loss, as the framework has."""
    from ghm_triton.transformers.criterion import _target

    outputs = {"logits": torch.zeros(2, 4, 5), "pred_boxes": torch.rand(2, 4, 4) * 0.3 + 0.3}
    labels = batch()["labels"]
    indices = [(torch.tensor([0, 3]), torch.tensor([1, 0])), (torch.tensor([2]), torch.tensor([0]))]
    expected = torch.zeros(2, 4, 5)
    expected[0, 0, 3] = expected[0, 3, 1] = expected[1, 2, 4] = 1
    assert torch.equal(_target(outputs, labels, indices, False), expected)
    given = []

    def record(input, target, weight=None, reduction="mean"):
        given.append(target)
        return torch.zeros_like(input)

    criterion = loss_rt_detr.RTDetrLoss(transformers.RTDetrConfig(num_labels=5))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(torch.nn.functional, "binary_cross_entropy_with_logits", record)
        criterion.loss_labels_vfl(outputs, labels, indices, 3.0)
    torch.testing.assert_close(_target(outputs, labels, indices, True), given[0])


@needs_transformers
@pytest.mark.slow
@pytest.mark.parametrize("name", ["DeformableDetr", "RTDetr"])
def test_without_gradients(name):
    """Evaluation has the loss of the plain model and leaves the counts, also in training mode."""
    plain = build(name)
    model = harmonize(copy.deepcopy(plain))
    forward(model, **batch())
    before = model.ghm_loss.running_counts.clone()
    assert before.sum() > 0
    for mode in (True, False):
        fresh = copy.deepcopy(plain).train(mode)
        fresh.load_state_dict({key: value for key, value in model.state_dict().items() if "ghm_loss" not in key})
        with torch.no_grad():
            assert torch.equal(forward(model.train(mode), **batch(1)).loss, forward(fresh, **batch(1)).loss)
    assert torch.equal(model.ghm_loss.running_counts, before)
    assert not model.ghm_loss.training


@needs_transformers
@pytest.mark.slow
def test_copies(tmp_path):
    """A copy has a state of its own. Saved weights load into a plain model, and back with the counts."""
    model = harmonize(build("RTDetr"))
    forward(model, **batch())
    other = copy.deepcopy(model)
    before = model.ghm_loss.running_counts.clone()
    forward(other, **batch(1))
    assert torch.equal(model.ghm_loss.running_counts, before) and not torch.equal(other.ghm_loss.running_counts, before)
    model.save_pretrained(tmp_path)
    plain = transformers.RTDetrForObjectDetection.from_pretrained(tmp_path)
    assert torch.equal(plain.eval()(batch()["pixel_values"]).logits, model.eval()(batch()["pixel_values"]).logits)
    again = harmonize(plain)
    assert not again.ghm_loss.running_counts.any()
    again.load_state_dict(model.state_dict())
    assert torch.equal(again.ghm_loss.running_counts, before)
    torch.save(model, tmp_path / "whole.pt")
    whole = torch.load(tmp_path / "whole.pt", weights_only=False).train()
    forward(whole, **batch())
    assert not torch.equal(whole.ghm_loss.running_counts, before)
    assert unharmonize(model) is model and model.loss_function is LOSS_MAPPING["RTDetrForObjectDetection"]
    assert not any("ghm_loss" in key for key in model.state_dict())
    deformable = build("DeformableDetr")
    assert harmonize(deformable).loss_function.plain is LOSS_MAPPING["DeformableDetrForObjectDetection"]


@needs_transformers
@pytest.mark.slow
def test_trainer(tmp_path):
    """A training that is resumed has the counts of the checkpoint; evaluation leaves them."""
    pytest.importorskip("accelerate")
    model = harmonize(build("RTDetr"))
    data = [{"pixel_values": batch(i)["pixel_values"][0], "labels": batch()["labels"][i % 2]} for i in range(4)]

    def collate(items):
        return {
            "pixel_values": torch.stack([item["pixel_values"] for item in items]),
            "labels": [item["labels"] for item in items],
        }

    def trainer(model, steps):
        options = dict(per_device_train_batch_size=2, save_steps=2, report_to=[], use_cpu=True, disable_tqdm=True)
        options |= dict(remove_unused_columns=False, max_steps=steps, per_device_eval_batch_size=2)
        arguments = transformers.TrainingArguments(output_dir=str(tmp_path), **options)
        return transformers.Trainer(model, arguments, data_collator=collate, train_dataset=data, eval_dataset=data)

    first = trainer(model, 2)
    first.train()
    counts = model.ghm_loss.running_counts.clone()
    assert counts.sum() > 0
    assert first.evaluate()["eval_loss"] > 0 and torch.equal(model.ghm_loss.running_counts, counts)
    again = harmonize(build("RTDetr"))
    seen = []
    again.ghm_loss.register_forward_pre_hook(lambda loss, _: seen.append(loss.running_counts.clone()))
    trainer(again, 3).train(resume_from_checkpoint=str(tmp_path / "checkpoint-2"))
    assert torch.equal(seen[0], counts)


@needs_transformers
def test_other_models():
    """Models that classify with a softmax are refused by name, and others too. A loss of another kind is refused."""
    tiny = dict(hidden_size=16, num_hidden_layers=1, num_attention_heads=2, intermediate_size=16, image_size=[32, 32])
    yolos = transformers.YolosForObjectDetection(transformers.YolosConfig(**tiny))
    with pytest.raises(TypeError, match="model must classify with a sigmoid, got YolosForObjectDetection"):
        harmonize(yolos)
    config = transformers.DetrConfig(**{**SMALL, **HEADS}, backbone_config=resnet(["stage4"]), use_timm_backbone=False)
    with pytest.raises(TypeError, match="model must classify with a sigmoid, got DetrForObjectDetection"):
        harmonize(transformers.DetrForObjectDetection(config))
    with pytest.raises(TypeError, match="model must be one of DeformableDetrForObjectDetection, .* got Linear"):
        harmonize(torch.nn.Linear(1, 1))
    with pytest.raises(TypeError, match="loss must be a HarmonizedBCELoss or None, got BCEWithLogitsLoss"):
        harmonize(build("ConditionalDetr"), torch.nn.BCEWithLogitsLoss())


def test_missing(monkeypatch):
    """The message says how to install it."""
    monkeypatch.setitem(sys.modules, "transformers", None)
    for name in [name for name in sys.modules if name.startswith("ghm_triton.transformers")]:
        monkeypatch.delitem(sys.modules, name)
    with pytest.raises(ImportError, match="needs the package transformers"):
        importlib.import_module("ghm_triton.transformers")
