"""The comparison in Ultralytics' trainer: continued runs, the table, the recorded gradients."""

import os

import pytest
import torch

os.environ.setdefault("YOLO_OFFLINE", "true")  # before ultralytics is first imported: it looks for the network

pytest.importorskip("ultralytics")
pytest.importorskip("sklearn")

import pandas as pd

from perf.accuracy import yolo
from perf.accuracy.yolo_gradients import GradientRecorder

pytestmark = pytest.mark.xdist_group("ultralytics")


@pytest.fixture
def runs(monkeypatch):
    """The runs that were asked for, in order. The n-th has the AP n, and no model is trained."""
    runs = []

    def train(run, data, folder):
        assert data.exists()
        runs.append((run["loss"], run["preserve"], run["seed"]))
        scores = {"AP": float(len(runs)), "AP50": 2.0 * len(runs), "curve": f"1:0.50 2:{len(runs)}.00"}
        return scores | {"counts": "9.0 1.0", "cpu_seconds": 60.0}

    monkeypatch.setattr(yolo, "train", train)
    return runs


@pytest.mark.slow
def test_continued(runs, tmp_path, capsys):
    """A row per run; those that are there are not repeated; the table holds mean and deviation over the seeds."""
    arguments = ["--out", str(tmp_path / "yolo.csv"), "--images", "1", "--scenes", "1", "--epochs", "2"]
    yolo.main([*arguments, "--seeds", "1"])
    yolo.main([*arguments, "--seeds", "2"])
    assert runs == [("BCE", "-", 1), ("GHM-C", "value", 1), ("BCE", "-", 2), ("GHM-C", "value", 2)]
    rows = pd.read_csv(tmp_path / "yolo.csv")
    assert rows["AP"].tolist() == [1, 2, 3, 4] and rows["epochs"].tolist() == [2] * 4
    table = capsys.readouterr().out
    assert "| BCE | 1 | 2 | 2 | 2.0 ± 1.4 | 4.0 ± 2.8 | 1.0 |" in table
    assert "| GHM-C, exponent 0.5, same value | 1 | 2 | 2 | 3.0 ± 1.4 | 6.0 ± 2.8 | 1.0 |" in table
    assert (tmp_path / "yolo.png").stat().st_size > 0
    yolo.main([*arguments, "--seeds", "1", "--preserve", "gradient"])
    assert runs[4:] == [("GHM-C", "gradient", 1)]
    assert "| GHM-C, exponent 0.5, same L1 norm of the gradient | 1 | 2 | 1 |" in capsys.readouterr().out


def test_recorder():
    """The norms of binary cross entropy are those of p - t; its values pass through; validation is not recorded."""
    recorder = GradientRecorder()
    generator = torch.Generator().manual_seed(0)
    logits, target = torch.randn(2, 9, 3, generator=generator), torch.rand(2, 9, 3, generator=generator)
    values = recorder(logits.requires_grad_(), target)
    recorder(logits.detach(), target)
    rows = pd.DataFrame(recorder.rows).set_index("loss")
    assert list(rows.index) == ["BCE", "GHM-C", "GHM-C, not scaled"]
    residual = logits.detach().sigmoid() - target
    assert rows.loc["BCE", "l1"] == pytest.approx(residual.abs().sum().item(), rel=1e-5)
    assert rows.loc["BCE", "l2"] == pytest.approx(residual.norm().item(), rel=1e-5)
    assert rows.loc["GHM-C", "value"] == pytest.approx(values.sum().item(), rel=1e-5)
