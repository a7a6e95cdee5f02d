"""GHM_TRITON_CHECK=1: the kernels then refuse the targets that the eager backend refuses, and no others."""

import re

import pytest
import torch

import ghm_triton
from ghm_triton import GHMCLoss, ghm_cross_entropy, ghmc_loss, ghmr_loss
from ghm_triton.backend import CHECK_VARIABLE
from ghm_triton.mmdet import GHMC

pytest.importorskip("triton")
LABELS = torch.tensor([0, 2, -1, 3])  # of 3 classes: -1 and 3 are background
X = torch.linspace(-2, 2, 12).view(4, 3)


def off(index, value):
    target = LABELS.clone()
    target[index] = value
    return target


DENSE = torch.zeros(4, 3)
DENSE[1, 2] = 255
DISTRIBUTION = torch.full((4, 3), 0.25)
DISTRIBUTION[1, 2] = 1.5
ROWS = torch.tensor([0, 2, -100, 1])
WRONG = {  # call, target, error, what the message says
    "index": (ghmc_loss, off(1, 4), ValueError, "from 0 to 2, or -1 or 3 for the background, got 4"),
    "-2": (ghmc_loss, off(0, -2), ValueError, "got -2"),
    "dense": (ghmc_loss, DENSE, ValueError, "values in [0, 1], or class indices without the class dimension, got 255"),
    "class": (
        ghm_cross_entropy,
        off(2, 1),
        IndexError,
        "from 0 to 2 or ignore_index (-100), got 3: class indices start at 0",
    ),
    "uint8": (ghm_cross_entropy, torch.tensor([0, 1, 2, 9], dtype=torch.uint8), IndexError, "got 9"),
    "probabilities": (
        ghm_cross_entropy,
        DISTRIBUTION,
        ValueError,
        "probabilities in [0, 1], or class indices, got 1.5",
    ),
    "negative": (ghm_cross_entropy, -DISTRIBUTION, ValueError, "probabilities in [0, 1], or class indices, got -0.25"),
}


@pytest.mark.parametrize("case", WRONG)
def test_wrong_targets(case, device, monkeypatch):
    """The same error as that of the eager backend; without the variable the kernels do not look."""
    loss, target, error, message = WRONG[case]
    x, target = X.to(device), target.to(device)
    with pytest.raises(error, match=re.escape(message)):
        loss(x, target, backend="eager")
    assert loss(x, target, backend="triton").isfinite()
    monkeypatch.setenv(CHECK_VARIABLE, "1")
    with pytest.raises(error, match=re.escape(message)):
        loss(x, target, backend="triton")


def test_one_level_of_several_and_the_state(device, monkeypatch):
    """The level is found, and the moving average stays as it was."""
    monkeypatch.setenv(CHECK_VARIABLE, "1")
    loss = GHMCLoss(backend="triton").to(device)
    x, good = X.to(device), LABELS.to(device)
    loss([x, x], [good, good])
    before = loss.running_counts.clone()
    with pytest.raises(ValueError, match="got 7"):
        loss([x, x], [good, off(3, 7).to(device)])
    assert before.sum() > 0 and torch.equal(loss.running_counts, before)


def test_right_targets(device, monkeypatch):
    """Values are those without the check: background, ignored elements, bool, rounded soft targets, GHM-R."""
    wild = off(0, 255)
    cases = [
        lambda: ghmc_loss(X.to(device), LABELS.to(device), backend="triton"),
        lambda: ghmc_loss(X.to(device), wild.to(device), ignore_index=255, backend="triton"),
        lambda: ghmc_loss(X.to(device), wild.to(device), (wild != 255).to(device), backend="triton"),
        lambda: ghmc_loss(X.to(device), X.to(device) > 1, backend="triton"),
        lambda: ghmc_loss(X.to(device), torch.full((4, 3), 1.004, device=device), backend="triton"),
        lambda: ghm_cross_entropy(X.to(device), ROWS.to(device), backend="triton"),
        lambda: ghm_cross_entropy(X.to(device), X.softmax(1).to(device), backend="triton"),
        lambda: ghmr_loss(X.to(device), (3 * X).to(device), backend="triton"),
    ]
    plain = [call() for call in cases]
    monkeypatch.setenv(CHECK_VARIABLE, "1")
    assert all(torch.equal(call(), value) for call, value in zip(cases, plain))


def test_mmdetection_takes_what_is_no_class_for_background(device, monkeypatch):
    """As mmdetection does, on both backends."""
    monkeypatch.setenv(CHECK_VARIABLE, "1")
    pred, labels = X.to(device), off(1, 80).to(device)
    for backend in ("eager", "triton"):
        monkeypatch.setenv("GHM_TRITON_BACKEND", backend)
        assert GHMC().to(device)(pred, labels, torch.ones(4, device=device)).isfinite()


def test_the_variable(device, monkeypatch):
    """Empty and 0 are off; a typing mistake does not leave the check off in silence."""
    x, target = X.to(device), off(1, 4).to(device)
    for value in ("", "0"):
        monkeypatch.setenv(CHECK_VARIABLE, value)
        assert ghm_triton.ghmc_loss(x, target, backend="triton").isfinite()
    monkeypatch.setenv(CHECK_VARIABLE, "true")
    with pytest.raises(ValueError, match="GHM_TRITON_CHECK must be one of '0', '1', got 'true'"):
        ghm_triton.ghmc_loss(x, target, backend="triton")
