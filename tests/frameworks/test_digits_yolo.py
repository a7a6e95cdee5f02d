"""Scenes of digits in YOLO's format."""

import dataclasses

import numpy
import pytest
import torch

pytest.importorskip("sklearn")
pytest.importorskip("PIL")

from PIL import Image

from ghm_triton.detection.data.digit_drawing import STYLES
from ghm_triton.detection.data.digit_scenes import DigitScenes
from ghm_triton.detection.digits import main


def test_labels_and_pictures(tmp_path):
    """The label files hold the boxes of the scenes, to 1e-6 pixels."""
    main([str(tmp_path), "--format", "yolo", "--train", "2", "--val", "1", "--size", "64", "--seed", "3"])
    style = dataclasses.replace(STYLES["easy"], size=64)
    for split, count in (("train", 2), ("val", 1)):
        scenes = DigitScenes(count, split=split, seed=3, style=style)
        for index in range(count):
            lines = (tmp_path / "labels" / split / f"{index:06d}.txt").read_text().splitlines()
            found = torch.tensor([list(map(float, line.split())) for line in lines], dtype=torch.float64)
            picture, boxes, labels = scenes.scene(index)
            low, high = found[:, 1:3] - found[:, 3:] / 2, found[:, 1:3] + found[:, 3:] / 2
            expected = torch.from_numpy(boxes).double()
            torch.testing.assert_close(torch.cat([low, high], dim=1) * 64, expected, rtol=0, atol=1e-6)
            assert found[:, 0].tolist() == labels.tolist()
            written = Image.open(tmp_path / "images" / split / f"{index:06d}.png")
            assert torch.equal(torch.from_numpy(numpy.array(written)), torch.from_numpy(picture))
