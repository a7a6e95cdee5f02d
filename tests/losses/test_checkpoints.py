"""Checkpoints that version 0.1.0 wrote load, key for key, and give its values.

`data/checkpoint-0.1.0.pt` was written before the interface took its present form. For each loss it holds the state_dict
after two calls, the arguments of the calls, and the value of a third call in eval(); for a model, its state_dict.
"""

import pathlib

import pytest
import torch

from ghm_triton import GHMCLoss, GHMCrossEntropyLoss, GHMRLoss
from ghm_triton.mmdet import GHMC, GHMR
from tolerances import LOSS, assert_close

FILE = pathlib.Path(__file__).parents[1] / "data" / "checkpoint-0.1.0.pt"
LOSSES = {
    "GHMCLoss": lambda: GHMCLoss(exponent=0.5),
    "GHMRLoss": lambda: GHMRLoss(exponent=0.5),
    "GHMCrossEntropyLoss": lambda: GHMCrossEntropyLoss(exponent=0.5),
    "GHMC": lambda: GHMC(bins=30, momentum=0.75),
    "GHMR": lambda: GHMR(momentum=0.7),
}


@pytest.mark.parametrize("name", LOSSES)
def test_loss(name):
    saved = torch.load(FILE, weights_only=True)[name]
    loss = LOSSES[name]().eval()
    loss.load_state_dict(saved["state_dict"], strict=True)
    assert_close(loss(*saved["call"]), saved["value"], LOSS)


def test_model():
    saved = torch.load(FILE, weights_only=True)["model"]["state_dict"]
    model = torch.nn.ModuleDict({"head": torch.nn.Linear(2, 2), "loss": GHMCLoss()})
    model.load_state_dict(saved, strict=True)
    assert (
        torch.equal(model["loss"].running_counts, saved["loss.running_counts"]) and saved["loss.running_counts"].any()
    )
