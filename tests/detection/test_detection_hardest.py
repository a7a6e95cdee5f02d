"""The page of the hardest anchors: a wrong box, a missing box, and what the definition says."""

import json

import pytest
import torch

for module in ("torchvision", "sklearn", "pycocotools", "matplotlib"):
    pytest.importorskip(module)

from PIL import Image
from torchvision.ops import box_iou

from ghm_triton.detection import digits, hardest
from ghm_triton.detection.data.coco import CocoBoxes
from ghm_triton.detection.losses import LossOptions, use_losses
from ghm_triton.detection.models.builder import build_model
from ghm_triton.detection.models.small import small_retinanet
from ghm_triton.detection.training.checkpoint import save_checkpoint


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("data")
    digits.main([str(folder), "--train", "5", "--val", "1", "--size", "64", "--digits", "1", "2"])
    return folder


@pytest.fixture(scope="module")
def data(folder):
    return CocoBoxes(folder / "annotations" / "instances_train.json", folder / "train")


def set_logits(model, value):
    """All scores of a RetinaNet or FCOS become one value."""
    layer = model.head.classification_head.cls_logits
    torch.nn.init.zeros_(layer.weight)
    torch.nn.init.constant_(layer.bias, value)


def test_objects_that_are_not_found_are_the_hardest(data):
    """With all scores near 0, they are the anchors of objects; the order is by norm, two an image at most."""
    model = small_retinanet(10, size=64)
    set_logits(model, -6.0)
    state = {name: value.clone() for name, value in model.state_dict().items()}
    random = torch.get_rng_state()
    found = hardest.find_hardest(model, data, count=8, batch=2)
    assert torch.equal(random, torch.get_rng_state()) and model.training
    assert all(torch.equal(value, state[name]) for name, value in model.state_dict().items())
    assert [one.norm for one in found] == sorted((one.norm for one in found), reverse=True)
    images = [one.index for one in found]
    assert set(images) == set(range(5)) and max(map(images.count, images)) <= 2
    objects = [one for one in found if one.norm > 0.5]
    assert {one.index for one in objects} == set(range(5))
    for one in objects:
        assert one.norm == pytest.approx(torch.tensor(6.0).sigmoid().item(), rel=1e-5)
        assert one.label == one.scored and one.score == pytest.approx(1 - one.norm, rel=1e-3)
        target = data[one.index][1]
        overlap = box_iou(torch.tensor([one.box]), target["boxes"])[0]
        assert target["labels"][overlap.argmax()] == one.label and overlap.max() > 0.3


def test_background_that_is_taken_for_an_object(data):
    """With all scores near 1, background anchors are wrong by their score."""
    model = small_retinanet(10, size=64)
    set_logits(model, 6.0)
    found = hardest.find_hardest(model, data, count=3)
    assert [one.norm for one in found] == pytest.approx([torch.tensor(6.0).sigmoid().item()] * 3, rel=1e-5)
    assert len(found) == 3 and all(one.score == pytest.approx(one.norm) for one in found)
    categories = [{"id": one, "name": f"class {one}"} for one in range(10)]
    text = found[0]._replace(label=-1, scored=2, score=0.98).describe(categories)
    assert text == "annotated: background\nscore of class 2: 0.98"


@pytest.mark.slow
@pytest.mark.parametrize("name", ["ssdlite320_mobilenet_v3_large", "fcos_resnet50_fpn"])
def test_other_detectors(data, name):
    """Scores and labels of an SSD leave out the background; anchors are in the pixels of the file."""
    sizes = {} if name.startswith("ssd") else dict(min_size=96, max_size=96)
    torch.manual_seed(0)
    for one in hardest.find_hardest(build_model(name, 10, **sizes), data, count=4, batch=2):
        assert 0.5 < one.norm <= 1 and -1 <= one.label < 10 and 0 <= one.scored < 10
        assert one.norm == pytest.approx(abs(one.score - (one.label == one.scored)), rel=1e-5)
        if one.label >= 0:
            boxes = data[one.index][1]["boxes"]
            center = (torch.tensor(one.box[:2]) + torch.tensor(one.box[2:])) / 2
            assert ((boxes[:, :2] - 8 < center) & (center < boxes[:, 2:] + 8)).all(dim=1).any()


def test_command(folder, tmp_path, capsys):
    """A page, and an error for a checkpoint that is none."""
    about = {"model": "small", "min_size": 64, "max_size": None, "losses": vars(LossOptions())}
    content = json.loads((folder / "annotations" / "instances_train.json").read_text())
    about["categories"] = content["categories"]
    model = use_losses(small_retinanet(10, size=64), LossOptions())
    save_checkpoint(tmp_path / "checkpoint.pt", {"model": model.state_dict(), "about": about})
    options = ["--data", str(folder), "--output", str(tmp_path / "out" / "page.png"), "--device", "cpu", "--count", "7"]
    assert hardest.main([str(tmp_path / "checkpoint.pt"), *options]) == 0
    assert "page.png: 7 anchors" in capsys.readouterr().out
    assert Image.open(tmp_path / "out" / "page.png").size == (1800, 720)
    assert hardest.main([str(tmp_path / "nothing.pt"), *options]) == 1
    assert f"must be an existing file, got {tmp_path / 'nothing.pt'}" in capsys.readouterr().err
