"""The detector: that harmonized heads compute these losses on the right anchors, and the data set."""

import copy
import filecmp

import pytest
import torch

pytest.importorskip("torchvision")
pytest.importorskip("sklearn")
pytest.importorskip("pycocotools")
pytest.importorskip("tqdm")

import numpy

from calls import ghmc_loss, ghmr_loss
from ghm_triton import GHMCLoss, GHMCrossEntropyLoss, GHMRLoss
from ghm_triton.detection import harmonize
from ghm_triton.detection.data.digit_drawing import SceneStyle, split_digits, split_photographs
from ghm_triton.detection.data.digit_scenes import DigitScenes
from ghm_triton.detection.digits import main
from ghm_triton.detection.losses import LossOptions, use_losses
from ghm_triton.detection.models.small import small_retinanet
from ghm_triton.detection.training.evaluation import average_precision

BETWEEN = -2  # torchvision's mark of an anchor that is neither object nor background


@pytest.fixture
def batch():
    """Head outputs of 3 images of 5 anchors and 4 classes; the second image has no objects."""
    torch.manual_seed(0)
    outputs = {"cls_logits": torch.randn(3, 5, 4), "bbox_regression": torch.randn(3, 5, 4)}
    targets = [
        {"boxes": torch.tensor([[0.0, 0, 8, 8], [4, 4, 20, 12]]), "labels": torch.tensor([2, 0])},
        {"boxes": torch.zeros(0, 4), "labels": torch.zeros(0, dtype=torch.int64)},
        {"boxes": torch.tensor([[2.0, 2, 6, 10]]), "labels": torch.tensor([3])},
    ]
    matches = [
        torch.tensor([1, -1, 0, BETWEEN, 1]),
        torch.full((5,), -1),
        torch.tensor([-1, BETWEEN, -1, 0, -1]),
    ]
    corner = torch.arange(15.0).view(3, 5, 1)
    anchors = list(torch.cat([corner, corner, corner + 8, corner + 12], dim=2))
    for output in outputs.values():
        output.requires_grad_()
    return targets, outputs, anchors, matches


LABELS = torch.tensor([[0, -1, 2, -1, 0], [-1] * 5, [-1, -1, -1, 3, -1]])
COUNTED = torch.tensor([[1, 1, 1, 0, 1], [1] * 5, [1, 0, 1, 1, 1]])


def test_classification_loss_has_one_density_over_the_batch(batch):
    """Not a mean of losses by image; labels of the third image are not looked up among those of the first."""
    targets, outputs, anchors, matches = batch
    losses = harmonize(small_retinanet(4), GHMCLoss(momentum=0.0, exponent=1.0)).head.compute_loss(
        targets, outputs, anchors, matches
    )
    one_hot = torch.nn.functional.one_hot(LABELS.clamp(min=0), 4) * (LABELS >= 0)[..., None]
    logits = outputs["cls_logits"].detach().requires_grad_()
    expected = ghmc_loss(logits, one_hot.float(), COUNTED)
    torch.testing.assert_close(losses["classification"], expected, rtol=1e-6, atol=0)
    losses["classification"].backward()
    expected.backward()
    torch.testing.assert_close(outputs["cls_logits"].grad, logits.grad, rtol=2e-6, atol=0)


def test_anchors_between_the_thresholds_get_no_gradient(batch):
    targets, outputs, anchors, matches = batch
    losses = harmonize(small_retinanet(4)).head.compute_loss(targets, outputs, anchors, matches)
    sum(losses.values()).backward()
    has_gradient = outputs["cls_logits"].grad != 0
    assert torch.equal(has_gradient, COUNTED.bool()[..., None].expand(3, 5, 4))


def test_box_loss_is_over_the_positive_anchors(batch):
    targets, outputs, anchors, matches = batch
    head = harmonize(small_retinanet(4), None, GHMRLoss(momentum=0.0, exponent=1.0)).head
    losses = head.compute_loss(targets, outputs, anchors, matches)
    pairs = [(0, 0, [4, 4, 20, 12]), (0, 2, [0, 0, 8, 8]), (0, 4, [4, 4, 20, 12]), (2, 3, [2, 2, 6, 10])]
    boxes = torch.tensor([box for _, _, box in pairs], dtype=torch.float32)
    wanted = head.regression_head.box_coder.encode_single(boxes, torch.stack([anchors[i][a] for i, a, _ in pairs]))
    deltas = torch.stack([outputs["bbox_regression"][image, anchor] for image, anchor, _ in pairs])
    torch.testing.assert_close(losses["bbox_regression"], ghmr_loss(deltas, wanted), rtol=1e-6, atol=0)
    losses["bbox_regression"].backward()
    assert torch.equal(outputs["bbox_regression"].grad.any(dim=2), LABELS >= 0)


def test_any_losses_with_the_right_call_are_taken(batch):
    """They are the modules given, called once with the whole batch."""
    targets, outputs, anchors, matches = batch

    class Classify(torch.nn.Module):
        def forward(self, logits, labels, counted):
            assert torch.equal(labels, LABELS) and torch.equal(counted, COUNTED.bool())
            return logits.sum()

    class Regress(torch.nn.Module):
        def forward(self, deltas, wanted):
            assert deltas.shape == wanted.shape == (4, 4)
            return deltas.sum()

    classify, regress = Classify(), Regress()
    head = harmonize(small_retinanet(4), classify, regress).head
    assert head.classification_loss is classify and head.regression_loss is regress
    losses = head.compute_loss(targets, outputs, anchors, matches)
    assert losses["classification"] == outputs["cls_logits"].sum()
    assert losses["bbox_regression"] == outputs["bbox_regression"][LABELS >= 0].sum()


def test_the_losses_have_their_own_defaults():
    head = harmonize(small_retinanet(4)).head
    usual = GHMCLoss(class_dim=-1), GHMRLoss()  # labels are class indices, also of a single class
    assert [repr(head.classification_loss), repr(head.regression_loss)] == [repr(loss) for loss in usual]


def test_labels_of_a_single_class(backend):
    """0 is the class and -1 the background, although one column could hold a mask too."""
    head = harmonize(small_retinanet(1), GHMCLoss(momentum=0.0, backend=backend)).head
    logits, labels = torch.tensor([[[-3.0], [2.0], [0.5]]]), torch.tensor([[-1, 0, -1]])
    expected = ghmc_loss(logits, (labels == 0).float().unsqueeze(-1), exponent=0.5)
    torch.testing.assert_close(head.classification_loss(logits, labels), expected, rtol=1e-6, atol=0)


def test_with_one_loss_the_model_keeps_the_other_of_its_own(batch):
    targets, outputs, anchors, matches = batch
    plain = small_retinanet(4)
    own = plain.head.compute_loss(targets, outputs, anchors, matches)
    losses = harmonize(copy.deepcopy(plain), GHMCLoss()).head.compute_loss(targets, outputs, anchors, matches)
    assert losses["bbox_regression"] == own["bbox_regression"] and losses["classification"] != own["classification"]
    losses = harmonize(plain, regression_loss=GHMRLoss()).head.compute_loss(targets, outputs, anchors, matches)
    assert losses["classification"] == own["classification"] and losses["bbox_regression"] != own["bbox_regression"]


def test_losses_follow_the_model_to_its_device_and_mode():
    """A model that was moved before: its losses' counts used to stay on the CPU. "meta" stands for a GPU."""
    model = small_retinanet(4).to("meta").eval()
    model.head.regression_head.train()  # parts keep a mode of their own
    head = harmonize(model, GHMCLoss(), GHMRLoss()).head
    for loss in (head.classification_loss, head.regression_loss):
        assert loss.running_counts.device.type == "meta" and not loss.training
    assert not head.training and head.regression_head.training and not head.classification_head.training
    assert harmonize(small_retinanet(4)).head.classification_loss.training


def test_checkpoints_keep_their_names():
    """A checkpoint of the plain model loads strictly, and one of the harmonized model restores its running counts."""
    plain = small_retinanet(4)
    model = harmonize(copy.deepcopy(plain))
    assert [name for name, _ in model.named_parameters()] == [name for name, _ in plain.named_parameters()]
    added = {"head.classification_loss.running_counts", "head.regression_loss.running_counts"}
    assert set(model.state_dict()) == set(plain.state_dict()) | added
    model.load_state_dict(small_retinanet(4).state_dict())

    image, target = DigitScenes(1, split="train", classes=1)[0]
    model.train()([image], [target])
    assert model.head.classification_loss.running_counts.sum() > 0
    other = harmonize(small_retinanet(4))
    other.load_state_dict(model.state_dict())
    for name in added:
        assert torch.equal(other.state_dict()[name], model.state_dict()[name])


def test_images_without_objects_train():
    """All anchors are background, and there is no box to regress."""
    model = harmonize(small_retinanet(4)).train()
    empty = {"boxes": torch.zeros(0, 4), "labels": torch.zeros(0, dtype=torch.int64)}
    losses = model([torch.rand(3, 96, 96)] * 2, [empty, empty])
    assert losses["bbox_regression"] == 0 and 0 < losses["classification"] < 1
    sum(losses.values()).backward()
    assert all(p.grad is None or p.grad.isfinite().all() for p in model.parameters())


def test_a_harmonized_model_detects_as_the_plain_one_and_copies():
    plain = small_retinanet(4).eval()
    model = copy.deepcopy(harmonize(copy.deepcopy(plain)))
    image = torch.rand(3, 96, 96)
    plain.score_thresh = model.score_thresh = 0.0
    for key, value in plain([image])[0].items():
        assert torch.equal(model([image])[0][key], value)
    assert not model.head.training


def test_bad_input_is_named(batch):
    targets, outputs, anchors, matches = batch
    with pytest.raises(TypeError, match="model must be a torchvision RetinaNet, FCOS or SSD, got Linear"):
        harmonize(torch.nn.Linear(2, 2))
    model = small_retinanet(4)
    model.head = torch.nn.Identity()
    with pytest.raises(TypeError, match="regression_loss must be a torch.nn.Module or None, got str"):
        harmonize(small_retinanet(4), None, "ghmr")
    with pytest.raises(TypeError, match="classification_loss must be a loss for a sigmoid, .* got GHMRLoss"):
        harmonize(small_retinanet(4), GHMRLoss(), GHMCLoss())
    with pytest.raises(TypeError, match="classification_loss must be a loss for a sigmoid, .* got GHMCrossEntropyLoss"):
        harmonize(small_retinanet(4), GHMCrossEntropyLoss())
    with pytest.raises(TypeError, match="regression_loss must be a loss for box deltas, .* got GHMCLoss"):
        harmonize(small_retinanet(4), None, GHMCLoss())
    with pytest.raises(TypeError, match="model.head must be a torchvision RetinaNetHead, got Identity"):
        harmonize(model)
    targets[0]["labels"][0] = 4
    with pytest.raises(ValueError, match=r"targets must have labels in 0\.\.3, got 4"):
        harmonize(small_retinanet(4)).head.compute_loss(targets, outputs, anchors, matches)
    with pytest.raises(ValueError, match="split must be one of .* got 'test'"):
        DigitScenes(1, split="test")
    with pytest.raises(ValueError, match="classes must be 1 or 10, got 3"):
        DigitScenes(1, split="val", classes=3)


def test_splits_share_no_digit_and_no_pixel():
    from sklearn.datasets import load_digits, load_sample_images

    digits = [split_digits(split)[0] for split in ("train", "val")]
    assert numpy.array_equal(numpy.concatenate(digits).reshape(-1, 64) * 16, load_digits().data)
    assert min(map(len, digits)) > 500
    for whole, *parts in zip(load_sample_images().images, *map(split_photographs, ("train", "val"))):
        assert numpy.array_equal(numpy.concatenate(parts, axis=1), whole)
        assert min(part.shape[1] for part in parts) > 200


def test_scenes_depend_on_seed_and_split_alone():
    few, many = DigitScenes(3, split="train"), DigitScenes(30, split="train")
    for mine, same in zip(few.scene(2), many.scene(2)):
        assert numpy.array_equal(mine, same)
    for other in (DigitScenes(3, split="train", seed=1), DigitScenes(3, split="val")):
        assert not numpy.array_equal(few.scene(2)[0], other.scene(2)[0])


def test_boxes_surround_their_digits():
    """Inside the picture, apart, of the heights asked for, and something was drawn into each."""
    style = SceneStyle(size=64, digits=(2, 6), height=(8, 24))
    scenes = DigitScenes(40, split="val", style=style)
    heights = []
    for image, target in scenes:
        boxes, labels = target["boxes"], target["labels"]
        assert image.shape == (3, 64, 64) and image.dtype == torch.float32 and 0 <= image.min() <= image.max() <= 1
        assert labels.dtype == torch.int64 and len(labels) == len(boxes) >= 1 and set(labels.tolist()) <= set(range(10))
        assert boxes.min() >= 0 and boxes.max() <= 64
        left, top, right, bottom = boxes.T
        overlap = (torch.minimum(right[:, None], right) > torch.maximum(left[:, None], left)) & (
            torch.minimum(bottom[:, None], bottom) > torch.maximum(top[:, None], top)
        )
        assert torch.equal(overlap, torch.eye(len(boxes), dtype=torch.bool))
        heights += (bottom - top).tolist()
        for x0, y0, x1, y1 in boxes.int().tolist():
            assert image[:, y0:y1, x0:x1].std() > 0.02
    assert 6 <= min(heights) < 12 < 20 < max(heights) <= 24


def test_coco_files_are_the_same_bytes_for_the_same_seed(tmp_path):
    for folder in ("one", "two"):
        main([str(tmp_path / folder), "--train", "3", "--val", "2", "--seed", "5"])
    names = sorted(str(path.relative_to(tmp_path / "one")) for path in (tmp_path / "one").rglob("*.*"))
    assert len(names) == 3 + 2 + 2 and "annotations/instances_val.json" in names and "train/000002.png" in names
    same, different, errors = filecmp.cmpfiles(tmp_path / "one", tmp_path / "two", names, shallow=False)
    assert sorted(same) == names and not different and not errors


def test_coco_files_hold_the_scenes(tmp_path):
    from PIL import Image
    from pycocotools.coco import COCO

    main([str(tmp_path), "--train", "0", "--val", "3"])
    coco = COCO(tmp_path / "annotations" / "instances_val.json")
    for index, (image, target) in enumerate(DigitScenes(3, split="val")):
        pixels = numpy.asarray(Image.open(tmp_path / "val" / coco.loadImgs(index)[0]["file_name"]))
        assert numpy.array_equal(pixels, (image * 255).round().byte().permute(1, 2, 0))
        objects = coco.loadAnns(coco.getAnnIds(index))
        names = [coco.cats[found["category_id"]]["name"] for found in objects]
        assert names == [str(label) for label in target["labels"].tolist()]
        x, y, w, h = torch.tensor([found["bbox"] for found in objects]).T
        assert torch.equal(torch.stack([x, y, x + w, y + h], dim=1).float(), target["boxes"])


def test_average_precision_of_known_detections():
    """All boxes found: 100. Half of them found: AP about 50. None: 0."""
    truth = DigitScenes(20, split="val", classes=1).coco()
    perfect = [{key: found[key] for key in ("image_id", "category_id", "bbox")} for found in truth["annotations"]]
    for found in perfect:
        found["score"] = 0.9
    assert average_precision(truth, perfect)["AP"] == pytest.approx(100)
    half = perfect[::2]
    assert average_precision(truth, half)["AP"] == pytest.approx(100 * len(half) / len(perfect), abs=1)
    assert average_precision(truth, [])["AP"] == 0


@pytest.mark.slow
def test_both_heads_learn_a_batch():
    """Signs, matches and weights are right end to end: scores tell objects from background, boxes approach theirs."""
    torch.manual_seed(0)
    model = use_losses(small_retinanet(1), LossOptions(exponent=0.5, box_loss_weight=4.0)).train()
    images, targets = map(list, zip(*DigitScenes(4, split="train", classes=1)))
    seen, errors = {}, []
    model.head.classification_loss.register_forward_hook(lambda module, inputs, output: seen.update(inputs=inputs))
    model.head.regression_loss.register_forward_hook(
        lambda module, inputs, output: errors.append((inputs[0] - inputs[1]).abs().mean().item())
    )
    optimizer = torch.optim.AdamW(model.parameters(), lr=2e-3)
    for _ in range(30):
        optimizer.zero_grad()
        sum(model(images, targets).values()).backward()
        optimizer.step()
    logits, labels, counted = seen["inputs"]
    score = logits.detach().sigmoid()[..., 0]
    assert score[labels == 0].mean() > score[(labels < 0) & counted].mean() + 0.15
    assert errors[-1] < 0.65 * errors[0]
