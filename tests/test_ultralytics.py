"""GHM-C in the criterion of Ultralytics' YOLO: values, gradients, state, two processes."""

import importlib.util
import os
import sys

import pytest
import torch
from torch import nn

import oracle
from test_distributed import part, run

os.environ.setdefault("YOLO_OFFLINE", "true")  # before ultralytics is first imported: it looks for the network
os.environ.setdefault("YOLO_AUTOINSTALL", "false")

INSTALLED = importlib.util.find_spec("ultralytics") is not None
if INSTALLED:
    from ultralytics.cfg import get_cfg
    from ultralytics.nn.tasks import DetectionModel

    from ghm_triton.ultralytics import GHMDetectionTrainer, HarmonizedBCE
    from ghm_triton.ultralytics.criterion import harmonize_criterion, losses_of_branches

needs_ultralytics = pytest.mark.skipif(not INSTALLED, reason="needs ultralytics")
pytestmark = pytest.mark.xdist_group("ultralytics")
OPTIONS = dict(bins=30, momentum=0.75, exponent=0.5)
RELATIVE = 2e-5  # fp32 sums over thousands of elements, and exp and log1p per element


def test_missing(monkeypatch):
    monkeypatch.setitem(sys.modules, "ultralytics", None)
    for name in [name for name in sys.modules if name.startswith("ghm_triton.ultralytics")]:
        monkeypatch.delitem(sys.modules, name)
    with pytest.raises(
        ImportError, match=r"needs the package ultralytics.*pip install -e '.\[ultralytics\]' in the clone"
    ):
        importlib.import_module("ghm_triton.ultralytics")


def reference(logits, target, state, *, bins=30, momentum=0.75, exponent=0.5):
    """(values, gradient of their sum, new state) of HarmonizedBCE, float64."""
    options = dict(bins=bins, momentum=momentum, exponent=exponent, reduction="none", state=state)
    values, gradient, state = oracle.harmonize("c", logits, target, **options)
    _, cross_entropy, _ = oracle.norms("c", logits, target)
    scale = cross_entropy.sum() / values.sum()
    return values * scale, gradient * scale, state


def problem(seed, shape=(3, 40, 5)):
    generator = torch.Generator().manual_seed(seed)
    logits = torch.randn(shape, generator=generator) * 3 - 4
    target = torch.rand(shape, generator=generator) * (torch.rand(shape, generator=generator) < 0.05)
    return logits, target


@needs_ultralytics
@pytest.mark.parametrize("momentum", [0.0, 0.75])
@pytest.mark.parametrize("exponent", [0.0, 0.5, 1.0])
def test_values(momentum, exponent):
    """Three steps: values, gradients and state as in float64; the sum is that of binary cross entropy."""
    options = dict(bins=30, momentum=momentum, exponent=exponent)
    bce = HarmonizedBCE(**options)
    state = torch.zeros(31) if momentum else None
    for seed in range(3):
        logits, target = problem(seed)
        values = bce(logits.requires_grad_(), target)
        values.sum().backward()
        expected, gradient, state = reference(logits.detach(), target, state, **options)
        torch.testing.assert_close(values.double(), expected, rtol=RELATIVE, atol=0)
        torch.testing.assert_close(logits.grad.double(), gradient, rtol=RELATIVE, atol=0)
        total = nn.BCEWithLogitsLoss(reduction="sum")(logits, target)
        torch.testing.assert_close(values.sum(), total, rtol=RELATIVE, atol=0)
    if momentum:
        torch.testing.assert_close(bce.ghmc.running_counts.double(), state, rtol=1e-6, atol=0)


@needs_ultralytics
def test_without_gradients():
    """Validation: binary cross entropy, and the state stays, in training mode too."""
    bce = HarmonizedBCE(**OPTIONS)
    logits, target = problem(0)
    bce(logits.requires_grad_(), target)
    before = bce.ghmc.running_counts.clone()
    with torch.inference_mode():
        values = bce(*problem(1))
    torch.testing.assert_close(values, nn.BCEWithLogitsLoss(reduction="none")(*problem(1)), rtol=0, atol=0)
    assert torch.equal(bce.ghmc.running_counts, before)


@needs_ultralytics
def test_autocast():
    """16-bit logits and targets, as under AMP: fp32 values, 16-bit gradients of the rounded inputs."""
    logits, target = (tensor.bfloat16() for tensor in problem(0))
    bce = HarmonizedBCE(**OPTIONS)
    with torch.autocast("cpu", torch.bfloat16):
        values = bce(logits.requires_grad_(), target)
    values.sum().backward()
    expected, gradient, _ = reference(logits.detach(), target, torch.zeros(31))
    torch.testing.assert_close(values.double(), expected, rtol=RELATIVE, atol=0)
    torch.testing.assert_close(logits.grad.double(), gradient, rtol=2**-8, atol=0)  # rounded to bfloat16


class Recorder(nn.Module):
    """A module `bce` that keeps its arguments."""

    def __init__(self, bce):
        super().__init__()
        self.bce = bce

    def forward(self, logits, target):
        self.arguments = logits.detach(), target
        return self.bce(logits, target)


def two_images():
    return {
        "img": torch.rand(2, 3, 96, 96, generator=torch.Generator().manual_seed(0)),
        "batch_idx": torch.tensor([0.0, 0, 1]),
        "cls": torch.tensor([[3.0], [7], [1]]),
        "bboxes": torch.tensor([[0.3, 0.3, 0.3, 0.4], [0.7, 0.6, 0.4, 0.4], [0.5, 0.5, 0.6, 0.6]]),
    }


@needs_ultralytics
@pytest.mark.slow
@pytest.mark.parametrize("weighted", [False, True])
@pytest.mark.parametrize("name", ["yolo11n", "yolo26n"])
def test_criterion(name, weighted):
    """On the same assignment: box terms of the plain criterion, classification term of the float64 reference."""
    torch.manual_seed(0)
    model = DetectionModel(f"{name}.yaml", nc=10, verbose=False)
    model.args = get_cfg()
    if weighted:
        model.class_weights = torch.linspace(0.5, 1.5, 10)
    batch = two_images()
    preds = model(batch["img"])
    plain, harmonized = model.init_criterion(), harmonize_criterion(model.init_criterion(), **OPTIONS)
    branches = {"detect": plain} if name == "yolo11n" else {"one2many": plain.one2many, "one2one": plain.one2one}
    for branch in branches.values():
        branch.bce = Recorder(branch.bce)
    expected, _ = plain(preds, batch)
    loss, _ = harmonized(preds, batch)
    assert torch.equal(loss[[0, 2]], expected[[0, 2]])
    if not weighted:
        torch.testing.assert_close(loss[1], expected[1], rtol=RELATIVE, atol=0)
    losses = losses_of_branches(harmonized)
    assert losses.keys() == branches.keys()
    total = 0
    for key, branch in branches.items():
        logits, target = branch.bce.arguments
        values, gradient, state = reference(logits, target, torch.zeros(31))
        factor = {"detect": 1.0, "one2many": 0.8, "one2one": 0.2}[key] * model.args.cls * len(batch["img"])
        factor = factor / target.double().sum().clamp(min=1) * (model.class_weights if weighted else 1)
        total += (factor * values).sum()
        scores = (preds if key == "detect" else preds[key])["scores"]
        (got,) = torch.autograd.grad(loss[1], scores, retain_graph=True)
        torch.testing.assert_close(got.double(), (factor * gradient).transpose(1, 2), rtol=RELATIVE, atol=0)
        torch.testing.assert_close(losses[key].running_counts.double(), state, rtol=1e-6, atol=0)
    torch.testing.assert_close(loss[1].double(), total, rtol=RELATIVE, atol=0)


def check_two_processes(rank, size):
    """The density is that of both processes, the total that of each; validation waits for nobody."""
    bce = HarmonizedBCE(**OPTIONS, process_group=torch.distributed.group.WORLD)
    state = torch.zeros(31)
    for seed in range(2):
        whole = problem(seed, (17, 40, 5))
        logits, target = (part(tensor, rank, size) for tensor in whole)
        bce(logits.requires_grad_(), target).sum().backward()
        values, gradient, state = oracle.harmonize("c", *whole, **OPTIONS, state=state, reduction="none")
        values = part(values, rank, size)
        total = oracle.norms("c", logits.detach(), target)[1].sum()
        expected = part(gradient, rank, size) * total / values.sum()
        torch.testing.assert_close(logits.grad.double(), expected, rtol=RELATIVE, atol=0)
    torch.testing.assert_close(bce.ghmc.running_counts.double(), state, rtol=1e-6, atol=0)
    if rank == 0:
        with torch.no_grad():
            bce(*problem(2))


@needs_ultralytics
@pytest.mark.slow
def test_two_processes(tmp_path):
    run(2, tmp_path, check_two_processes)


@needs_ultralytics
def test_other_criterion():
    with pytest.raises(TypeError, match="criterion must be that of a YOLO detection model, got Module"):
        harmonize_criterion(nn.Module(), **OPTIONS)


@needs_ultralytics
def test_bad_options(tmp_path):
    """Errors come before a folder is made."""
    bad = type("Bad", (GHMDetectionTrainer,), {"exponent": 2})
    with pytest.raises(ValueError, match="exponent must be in"):
        bad(overrides={"model": "yolo11n.yaml", "project": str(tmp_path / "runs")})
    assert not (tmp_path / "runs").exists()
