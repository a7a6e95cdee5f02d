"""The figure of the idea: its counts are those of the checkpoint, its weights those of the formula."""

import pytest
import torch

pd = pytest.importorskip("pandas")
pytest.importorskip("torchvision")

from ghm_triton.detection.training.checkpoint import save_checkpoint
from perf.density import __main__ as command

COUNTS = torch.tensor([900.0, 90.0, 0.0, 10.0])


def test_counts_and_weights(tmp_path):
    """After two calls with momentum 0.5 the average of the constant 1 is 0.75, which divides the counts."""
    pytest.importorskip("matplotlib")
    checkpoint, csv, image = (tmp_path / name for name in ("checkpoint.pt", "counts.csv", "figure.png"))
    state = {command.COUNTS: torch.cat([0.75 * COUNTS, torch.tensor([0.75])])}
    save_checkpoint(checkpoint, {"model": state})
    command.main([str(checkpoint), "--csv", str(csv), "--image", str(image)])
    rows = pd.read_csv(csv)
    assert rows["count"].tolist() == COUNTS.tolist() and rows["low"].tolist() == [0, 0.25, 0.5, 0.75]
    assert image.stat().st_size > 0
    found = command.shares(rows["count"], 0.5)
    roots = COUNTS.sqrt()
    assert found["share"].tolist() == pytest.approx((roots / roots.sum()).tolist(), rel=1e-6)
    assert found["weight"][3] == pytest.approx(1000 / (10**0.5 * roots.sum().item()), rel=1e-6)


def test_files_without_counts_end_the_command(tmp_path, capsys):
    """Their CSV is not written."""
    other, csv = tmp_path / "other.pt", tmp_path / "counts.csv"
    save_checkpoint(other, {"model": {}})
    for file, message in (
        (tmp_path / "none.pt", "must be an existing file"),
        (other, "must be of a RetinaNet or FCOS"),
    ):
        with pytest.raises(SystemExit) as end:
            command.main([str(file), "--csv", str(csv)])
        assert end.value.code == 2 and message in capsys.readouterr().err
    assert not csv.exists()
