"""perf.volumes: the volumes, the losses, MONAI's metric, and the command that continues."""

import math
import re

import pandas as pd
import pytest
import torch

pytest.importorskip("monai")
pytest.importorskip("torchvision")

from torch.nn.functional import binary_cross_entropy_with_logits as bce

from ghm_triton import ghmc_loss
from perf.volumes import __main__ as command
from perf.volumes import detector as detectors
from perf.volumes import volumes as drawing
from perf.volumes.losses import SAMPLER, WAYS
from perf.volumes.report import best_cell, reported, table

ANCHORS = 3 * 12**3  # per volume


def targets_of(volumes):
    return [{"boxes": boxes, "labels": torch.zeros(len(boxes), dtype=torch.int64)} for _, boxes in volumes]


def test_blobs_fill_their_boxes(monkeypatch):
    """Without noise and tubes, what is brighter than the background is the spheres in the boxes, and nothing else."""
    for name, value in {"NOISE": 0.0, "TEXTURE": 0.0, "TUBES": (0, 0), "CONTRAST": (1.0, 1.0)}.items():
        monkeypatch.setattr(drawing, name, value)
    counts = set()
    for seed in range(10):
        image, boxes = drawing.draw.__wrapped__(7, seed)
        sides = boxes[:, 3:] - boxes[:, :3]
        counts.add(len(boxes))
        assert image.shape == (1, 24, 24, 24) and (boxes >= 0).all() and (boxes <= 24).all()
        assert ((sides >= 3 - 1e-4) & (sides <= 8 + 1e-4)).all()
        assert image.sum().item() == pytest.approx((math.pi / 6 * sides[:, 0] ** 3).sum().item(), rel=0.12)  # 3 voxels
        places = torch.stack(torch.meshgrid(*[torch.arange(24) + 0.5] * 3, indexing="ij"), -1)[image[0] > 0]
        inside = [((places > box[:3] - 0.5) & (places < box[3:] + 0.5)).all(-1) for box in boxes]
        assert torch.stack(inside).any(0).all()
    assert counts == {1, 2}


def test_volumes_repeat():
    """A seed has one volume. Those of training, of the grid, and of the results differ."""
    drawn = [drawing.draw.__wrapped__(*seed).image for seed in ((1, 0, 0, 0), (0, 0, 0), (0, 1, 0), (1, 1, 0, 0))]
    assert torch.equal(drawn[0], drawing.draw.__wrapped__(1, 0, 0, 0).image)
    assert all(not torch.equal(drawn[i], drawn[j]) for i in range(4) for j in range(i))


def test_losses():
    """BCE and focal loss over the positives of the batch, at least 1; GHM-C over all anchors; only one way samples."""
    logits, target = torch.linspace(-3, 2, 8).view(8, 1), torch.tensor([0.0, 0, 0, 0, 0, 1, 0, 1]).view(8, 1)
    p = logits.sigmoid()
    focal = torch.where(target == 1, -0.25 * (1 - p) ** 2 * p.log(), -0.75 * p**2 * (1 - p).log())
    expected = {
        SAMPLER: bce(logits, target),
        "BCE": bce(logits, target, reduction="sum") / 2,
        "focal": focal.sum() / 2,
        "GHM-C 0.5": ghmc_loss(logits, target, exponent=0.5),
        "GHM-C 1": ghmc_loss(logits, target, exponent=1),
    }
    assert WAYS.keys() == expected.keys()
    for name, way in WAYS.items():
        torch.testing.assert_close(way.loss()(logits, target), expected[name])
        assert way.sampler == (name == SAMPLER) and way.loss() is not way.loss()
    empty = WAYS["BCE"].loss()(logits, torch.zeros_like(target))
    torch.testing.assert_close(empty, bce(logits, torch.zeros_like(target), reduction="sum"))


@pytest.mark.parametrize("name, counted", [(SAMPLER, 64), ("BCE", ANCHORS)])
def test_anchors_that_count(name, counted):
    """The sampler takes up to 64 anchors of each volume, the others all."""
    torch.manual_seed(0)
    detector = detectors.build(WAYS[name]).train()
    seen = []
    detector.cls_loss_func.register_forward_pre_hook(lambda _, given: seen.append(given))
    volumes = [drawing.draw(1, 0, 0, item) for item in range(2)]
    losses = detector(torch.stack([image for image, _ in volumes]), targets_of(volumes))
    (logits, target), positives = seen[0], int(seen[0][1].sum())
    assert logits.shape == target.shape and 0 < positives < 40
    assert logits.shape[0] == 2 * ANCHORS if counted == ANCHORS else 2 * 16 <= logits.shape[0] <= 2 * counted
    torch.testing.assert_close(losses["classification"], WAYS[name].loss()(logits, target))


def test_average_precision():
    """100 for the true boxes; 0 without any; for one of two blobs, and a wrong box with a higher score, in between."""
    held_out = [drawing.draw(0, 0, item) for item in range(6)]
    answers = {"right": [], "none": [], "some": []}
    for _, boxes in held_out:
        wrong = boxes[:1].clone()
        wrong[:, :3], wrong[:, 3:] = 0, 1
        for name, found, scores in (
            ("right", boxes, [0.9] * len(boxes)),
            ("none", boxes[:0], []),
            ("some", torch.cat([wrong, boxes[:1]]), [0.9, 0.8]),
        ):
            labels = torch.zeros(len(found), dtype=torch.int64)
            answers[name].append({"boxes": found, "labels": labels, "labels_scores": torch.tensor(scores)})

    class Oracle(torch.nn.Module):
        def __init__(self, answer):
            super().__init__()
            self.answer = iter(answer)

        def forward(self, images):
            return [next(self.answer) for _ in images]

    scores = {name: detectors.average_precision(Oracle(answer), held_out) for name, answer in answers.items()}
    assert scores["right"] == pytest.approx({"AP": 100, "AP10": 100, "AP50": 100})
    assert scores["none"] == {"AP": 0, "AP10": 0, "AP50": 0}
    assert 10 < scores["some"]["AP"] < 60


def rows_of(loss, cells, seeds):
    """Rows of the grid with (rate, box weight): AP, and of the stage main with (rate, box weight, AP by seed)."""
    common = {"loss": loss, "AP10": 80.0, "AP50": 20.0}
    grid = [{"stage": "grid", "rate": r, "box_weight": w, "seed": 0, "AP": ap} for (r, w), ap in cells.items()]
    main = [
        {"stage": "main", "rate": r, "box_weight": w, "seed": seed, "AP": ap}
        for r, w, scores in seeds
        for seed, ap in enumerate(scores, start=1)
    ]
    return [common | row for row in grid + main]


def test_table():
    """The best cell only; mean, standard deviation, and the paired difference with its t-interval."""
    rows = pd.DataFrame(
        rows_of("GHM-C 0.5", {(0.1, 1.0): 50.0, (0.2, 1.0): 60.0}, [(0.1, 1.0, [1.0]), (0.2, 1.0, [54.0, 58.0])])
        + rows_of(SAMPLER, {(0.1, 4.0): 50.0}, [(0.1, 4.0, [50.0, 56.0])])
    )
    assert best_cell(rows, "GHM-C 0.5") == {"rate": 0.2, "box_weight": 1.0}
    assert len(reported(rows)) == 4
    others = "80.0 ± 0.0 | 20.0 ± 0.0"
    assert table(rows).splitlines()[2:] == [
        f"| {SAMPLER} | sampled anchors | 0.1 | 4 | 2 | 53.0 ± 4.2 | {others} |  |  |  |",
        f"| GHM-C 0.5 | all anchors | 0.2 | 1 | 2 | 56.0 ± 2.8 | {others} | +3.0 ± 12.7 |  |  |",  # t = 12.7
    ]


def run(out, *arguments):
    options = ["--losses", "GHM-C 0.5", SAMPLER, "--seeds", "1", "--steps", "4", "--volumes", "2"]
    return command.main([*options, "--out", str(out), *arguments])


@pytest.mark.slow
def test_command_continues(tmp_path, capsys, monkeypatch):
    """Only the runs without a row are done, and give what they gave before; the best cell goes on."""
    monkeypatch.setattr(torch, "set_num_threads", lambda number: None)
    monkeypatch.setattr(command, "RATES", (1e-4, 5e-3))
    monkeypatch.setattr(command, "BOX_WEIGHTS", (1.0,))
    out = tmp_path / "new" / "volumes.csv"
    assert run(out) == 0
    assert f"| {SAMPLER} | " in capsys.readouterr().out
    whole = pd.read_csv(out)
    assert list(whole["stage"]) == ["grid"] * 4 + ["main"] * 2 and list(whole["seed"]) == [0] * 4 + [1] * 2
    for row in whole[whole["stage"] == "main"].itertuples():
        assert row.rate == best_cell(whole, row.loss)["rate"]
    whole.drop(index=[1, 5]).to_csv(out, index=False)
    run(out)
    again = pd.read_csv(out)
    keys, scores = command.KEY, ["AP", "AP10", "AP50"]
    again, whole = (rows.sort_values(keys, ignore_index=True)[keys + scores] for rows in (again, whole))
    pd.testing.assert_frame_equal(again, whole)


@pytest.mark.parametrize(
    "options, message",
    [
        ((), "argument --steps: must be 5, as in the rows of .*, got 4"),
        (("--steps", "5", "--volumes", "3"), "argument --volumes: must be 2, as in the rows of .*, got 3"),
        (("--losses", "hinge"), "argument --losses: invalid choice: 'hinge'"),
        (("--steps", "3"), "argument --steps: must be a whole number from 4, got '3'"),
    ],
)
def test_bad_arguments(options, message, tmp_path, capsys):
    """Exit code 2 with a message; the file stays as it was."""
    out = tmp_path / "rows.csv"
    text = ",".join(command.COLUMNS) + "\n" + ",".join(["grid", "focal", "0.1", "1", "0", "5", "2"] + ["0"] * 9) + "\n"
    out.write_text(text)
    with pytest.raises(SystemExit) as stop:
        run(out, *options)
    assert stop.value.code == 2 and out.read_text() == text
    assert re.search(message, capsys.readouterr().err)
