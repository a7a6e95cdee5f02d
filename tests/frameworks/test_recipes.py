"""The blocks of docs/recipes.md, each with the real package and a tiny model."""

import contextlib
import re
import sys
from pathlib import Path

import pytest
import torch
from torch import nn

from ghm_triton import GHMCLoss, GHMCrossEntropyLoss
from ghm_triton.losses.base import HarmonizedLoss

# transformers imports a package `kernels` if it finds one. The folder of the repository is none.
sys.modules.setdefault("kernels", None)
with contextlib.suppress(ImportError):
    import effdet  # noqa: F401  it compiles code, which the poisoned torch.empty of the tests breaks

pytestmark = [pytest.mark.slow, pytest.mark.xdist_group("recipes")]
PAGE = (Path(__file__).parents[2] / "docs" / "recipes.md").read_text(encoding="utf-8")
MOST_LINES = 10


def sections():
    """(heading, text, block) of each section with a block."""
    for part in re.split(r"^## ", PAGE, flags=re.MULTILINE)[1:]:
        heading, text = part.split("\n", 1)
        blocks = re.findall(r"^```python\n(.*?)^```", text, re.DOTALL | re.MULTILINE)
        assert len(blocks) == 1, heading
        yield heading, text, blocks[0]


SECTIONS = {heading: (text, block) for heading, text, block in sections()}
LINKS = re.findall(r"\]\(#([\w_-]+)\)", PAGE)


def test_page():
    """Short blocks, links that lead to sections, and a mark for each block that nothing here runs."""
    anchors = {re.sub(r"[^\w -]", "", heading.lower()).replace(" ", "-") for heading in SECTIONS}
    assert set(LINKS) == anchors
    for heading, (text, block) in SECTIONS.items():
        assert len([line for line in block.splitlines() if line.strip()]) <= MOST_LINES, heading
        assert ("Read only." in text) == (heading not in SETUPS), heading
        compile(block, heading, "exec")


def mmdetection():
    from types import SimpleNamespace

    return {"config": SimpleNamespace(model=SimpleNamespace(bbox_head=SimpleNamespace()))}


def check_mmdetection(names):
    """That the head computes with these settings is what test_mmdet_heads.py shows."""
    from ghm_triton.mmdet import GHMC

    settings = dict(names["config"].model.bbox_head.loss_cls)
    assert settings.pop("type") == "GHMC" and GHMC(**settings).exponent == 0.5


def detection_transformer():
    pytest.importorskip("transformers")
    from test_transformers import batch, build

    given = batch()
    return {"model": build("RTDetr"), "images": given["pixel_values"], "labels": given["labels"]}


def trainer(model, data, folder):
    transformers = pytest.importorskip("transformers")
    pytest.importorskip("accelerate")
    options = dict(max_steps=2, report_to=[], use_cpu=True, save_strategy="no", disable_tqdm=True)
    arguments = transformers.TrainingArguments(str(folder), **options)
    names = {"torch": torch, "Trainer": transformers.Trainer, "GHMCrossEntropyLoss": GHMCrossEntropyLoss}
    return names | {"model": model, "data": data, "arguments": arguments, "interpolate": nn.functional.interpolate}


def semantic_segmentation(folder):
    transformers = pytest.importorskip("transformers")
    sizes = dict(depths=[1] * 4, hidden_sizes=[8] * 4, decoder_hidden_size=8, num_attention_heads=[1] * 4)
    model = transformers.SegformerForSemanticSegmentation(transformers.SegformerConfig(**sizes, num_labels=3))
    labels = torch.randint(3, (32, 32))
    labels[:8] = 255
    return trainer(model, [{"pixel_values": torch.rand(3, 32, 32), "labels": labels}] * 8, folder)


def token_classification(folder):
    transformers = pytest.importorskip("transformers")
    sizes = dict(hidden_size=16, num_hidden_layers=1, num_attention_heads=2, intermediate_size=16)
    model = transformers.BertForTokenClassification(transformers.BertConfig(vocab_size=50, **sizes))
    item = {"input_ids": [1, 7, 9, 2], "attention_mask": [1] * 4, "labels": [-100, 1, 0, -100]}
    return trainer(model, [item] * 8, folder)


class Volumes(nn.Module):
    """A network of one level as MONAI's detector takes it."""

    def __init__(self):
        super().__init__()
        self.classes, self.boxes = nn.Conv3d(1, 2, 4, 4), nn.Conv3d(1, 6, 4, 4)
        self.cls_key, self.box_reg_key, self.size_divisible = "classification", "box_regression", (4, 4, 4)
        self.spatial_dims, self.num_classes, self.num_anchors = 3, 2, 1

    def forward(self, images):
        return {"classification": [self.classes(images)], "box_regression": [self.boxes(images)]}


def monai_detection():
    pytest.importorskip("monai")
    from monai.apps.detection.networks.retinanet_detector import RetinaNetDetector
    from monai.apps.detection.utils.anchor_utils import AnchorGeneratorWithAnchorShape

    anchors = AnchorGeneratorWithAnchorShape(feature_map_scales=(1,), base_anchor_shapes=((6, 6, 6),))
    detector = RetinaNetDetector(Volumes(), anchors, num_classes=2).train()
    detector.set_target_keys(box_key="box", label_key="label")
    detector.set_regular_matcher(fg_iou_thresh=0.2, bg_iou_thresh=0.1)
    target = {"box": torch.tensor([[2.0, 2, 2, 8, 8, 8]]), "label": torch.tensor([1])}
    return {"detector": detector, "images": torch.rand(2, 1, 16, 16, 16), "targets": [target, target]}


def monai_segmentation():
    losses = pytest.importorskip("monai.losses")
    logits = torch.randn(2, 3, 8, 8, requires_grad=True)
    return {"DiceCELoss": losses.DiceCELoss, "logits": logits, "labels": torch.randint(3, (2, 1, 8, 8))}


def segmentation_models():
    package = pytest.importorskip("segmentation_models_pytorch")
    labels = torch.randint(3, (2, 32, 32))
    labels[:, :4] = 255
    masks = torch.where(labels == 255, 255, labels > 0)

    def model(classes):
        return package.Unet("resnet18", encoder_weights=None, classes=classes, decoder_channels=[16, 8, 8, 8, 8])

    images = torch.rand(2, 3, 32, 32)
    return {"model": model(3), "one_class": model(1), "images": images, "labels": labels, "masks": masks}


def effdet_bench():
    package = pytest.importorskip("effdet")
    config = package.get_efficientdet_config("tf_efficientdet_d0")
    config.update(dict(image_size=(64, 64), num_classes=3, fpn_channels=16, fpn_cell_repeats=1, box_class_repeats=1))
    bench = package.DetBenchTrain(package.EfficientDet(config, pretrained_backbone=False), create_labeler=True)
    return {"bench": bench, "GHMCLoss": GHMCLoss}


def check_effdet(names):
    """A step of the bench: effdet's box loss, and GHM-C of all levels with one density."""
    bench, classify = names["bench"], names["classify"]
    target = {"bbox": torch.tensor([[[8.0, 8, 40, 40]]] * 2), "cls": torch.tensor([[1.0]] * 2)}
    output = bench(torch.rand(2, 3, 64, 64), target)
    torch.testing.assert_close(output["loss"], output["class_loss"] + 50 * output["box_loss"])
    output["loss"].backward()
    assert classify.running_counts.sum() > 0
    assert any(key.endswith("classify.running_counts") for key in bench.state_dict())


def timm_classification():
    package = pytest.importorskip("timm")
    model = package.create_model("resnet10t", num_classes=4)
    mixed = torch.softmax(torch.randn(4, 4), dim=1)
    return {"model": model, "images": torch.rand(4, 3, 32, 32), "labels": torch.tensor([0, 1, 2, 3]), "mixed": mixed}


def lightning():
    package = pytest.importorskip("lightning")
    return {"lightning": package, "nn": nn, "torch": torch, "GHMCrossEntropyLoss": GHMCrossEntropyLoss}


def check_lightning(names):
    """A training moves the running counts, which are in the state of the module."""
    data = torch.utils.data.TensorDataset(torch.randn(16, 8), torch.randint(3, (16,)))
    options = dict(max_steps=2, logger=False, enable_checkpointing=False, enable_progress_bar=False)
    module = names["Classifier"]()
    fit = names["lightning"].Trainer(accelerator="cpu", enable_model_summary=False, **options).fit
    fit(module, torch.utils.data.DataLoader(data, batch_size=8))
    assert module.state_dict()["loss.running_counts"].sum() > 0


def check_losses(names):
    """Each harmonized loss of the block has counted what the block trained on."""
    losses = [value for value in names.values() if isinstance(value, nn.Module)]
    losses = {id(m): m for loss in losses for m in loss.modules() if isinstance(m, HarmonizedLoss)}
    assert losses and all(loss.running_counts.sum() > 0 for loss in losses.values())


SETUPS = {
    "mmdetection": (mmdetection, check_mmdetection),
    "Hugging Face: detection": (detection_transformer, check_losses),
    "Hugging Face: semantic segmentation": (semantic_segmentation, check_losses),
    "Hugging Face: token classification": (token_classification, check_losses),
    "MONAI: detection": (monai_detection, check_losses),
    "MONAI: segmentation": (monai_segmentation, check_losses),
    "segmentation_models_pytorch": (segmentation_models, check_losses),
    "effdet": (effdet_bench, check_effdet),
    "timm": (timm_classification, check_losses),
    "Lightning": (lightning, check_lightning),
}


@pytest.mark.parametrize("heading", SETUPS)
def test_block(heading, tmp_path):
    """The block runs on what its setup makes, and the losses in it count."""
    torch.manual_seed(0)
    setup, check = SETUPS[heading]
    names = setup(tmp_path) if setup in (semantic_segmentation, token_classification) else setup()
    exec(SECTIONS[heading][1], names)
    check(names)
