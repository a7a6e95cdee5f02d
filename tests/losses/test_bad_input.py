"""Every wrong argument is refused with its name, what was expected and what came; no state changes."""

import fractions

import numpy
import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

import ghm_triton
from ghm_triton import backend, mmdet
from tolerances import LOSS, assert_close

X, LABELS, DENSE = torch.zeros(6, 4), torch.zeros(6, dtype=torch.int64), torch.zeros(6, 4)
STATE = dict(momentum=0.5, running_counts=torch.arange(31.0))
GHMC_CASES = {
    "target shape": (dict(target=torch.zeros(6, 5)), ValueError, "target must have the shape of input, (6, 4)"),
    "index shape": (dict(target=torch.zeros(5, dtype=torch.int64)), ValueError, "target must have shape (6,)"),
    "index type": (
        dict(target=torch.zeros(6)),
        ValueError,
        "target must have the shape of input, (6, 4), or (6,) with integer class indices, got (6,) with torch.float32",
    ),
    "bool index": (dict(target=torch.zeros(6, dtype=torch.bool)), TypeError, "target must hold class indices"),
    "complex target": (
        dict(target=DENSE.to(torch.complex64)),
        TypeError,
        "target must be bool, uint8, a signed integer or a float",
    ),
    "target no tensor": (dict(target=[0] * 6), ValueError, "target must be a tensor"),
    "mask shape": (
        dict(mask=torch.ones(5, dtype=torch.bool)),
        ValueError,
        "mask must have shape (6, 4) or (6,), or broadcast to it, got (5,)",
    ),
    "float mask": (
        dict(mask=torch.ones(6)),
        TypeError,
        "mask must be bool, where True counts, got torch.float32: pass mask > 0, or for weights "
        'reduction="none" and multiply the losses',
    ),
    "complex mask": (dict(mask=torch.ones(6, dtype=torch.complex64)), TypeError, "mask must be bool"),
    "integer mask": (dict(mask=torch.ones(6, dtype=torch.uint8)), TypeError, "mask must be bool, where True counts"),
    "mask no tensor": (dict(mask=1.0), TypeError, "mask must be a tensor, got float"),
    "integer input": (dict(input=torch.zeros(6, 4, dtype=torch.int64)), TypeError, "input must be float32"),
    "complex input": (dict(input=torch.zeros(6, 4, dtype=torch.complex64)), TypeError, "input must be float32"),
    "target device": (
        dict(target=LABELS.to("meta")),
        ValueError,
        "target must be on the device of input, cpu, got meta",
    ),
    "mask device": (
        dict(mask=torch.ones(6, device="meta").bool()),
        ValueError,
        "mask must be on the device of input",
    ),
    "unsigned target": (dict(target=LABELS.to(torch.uint32)), TypeError, "target must be bool, uint8, a signed"),
    "bins 0": (dict(bins=0), ValueError, "bins must be from 1 to 510, got 0"),
    "bins 511": (dict(bins=511), ValueError, "bins must be from 1 to 510, got 511"),
    "bins float": (dict(bins=30.0), TypeError, "bins must be an int, got 30.0"),
    "bins bool": (dict(bins=True), TypeError, "bins must be an int, got True"),
    "momentum 1": (dict(momentum=1.0), ValueError, "momentum must be in [0, 0.999], got 1.0"),
    "momentum 0.9999": (dict(momentum=0.9999), ValueError, "momentum must be in [0, 0.999], got 0.9999"),
    "momentum negative": (dict(momentum=-0.1), ValueError, "momentum must be in [0, 0.999], got -0.1"),
    "momentum nan": (dict(momentum=float("nan")), ValueError, "momentum must be in [0, 0.999], got nan"),
    "exponent 1.5": (dict(exponent=1.5), ValueError, "exponent must be in [0, 1], got 1.5"),
    "exponent -0.1": (dict(exponent=-0.1), ValueError, "exponent must be in [0, 1], got -0.1"),
    "exponent NaN": (dict(exponent=float("nan")), ValueError, "exponent must be in [0, 1], got nan"),
    "exponent text": (dict(exponent="1"), TypeError, "exponent must be a number, got '1' of type str"),
    "reduction": (dict(reduction="avg"), ValueError, "reduction must be one of 'mean', 'sum', 'none', got 'avg'"),
    "class_dim": (dict(class_dim=2), ValueError, "class_dim must be a dimension of input, which has 2, got 2"),
    "class_dim float": (dict(class_dim=1.0), TypeError, "class_dim must be an int, got 1.0"),
    "ignore_index": (dict(ignore_index=0.5), TypeError, "ignore_index must be an int, got 0.5"),
    "an index off by one": (
        dict(target=LABELS + 5),
        ValueError,
        "target must hold class indices from 0 to 3, or -1 or 4 for the background, got 5",
    ),
    "another background": (dict(target=LABELS - 100), ValueError, "or -1 or 4 for the background, got -100"),
    "a mask of 0 and 255": (
        dict(target=torch.full((6, 4), 255, dtype=torch.uint8)),
        ValueError,
        "target must hold values in [0, 1], or class indices without the class dimension, got 255: pass "
        "ignore_index=255, or divide a mask of 0 and 255 by 255",
    ),
    "class indices in the shape of the logits": (
        dict(target=torch.arange(24).view(6, 4) % 5),
        ValueError,
        "target must hold values in [0, 1], or class indices without the class dimension, got 2",
    ),
    "a target below 0": (dict(target=DENSE - 0.25), ValueError, "target must hold values in [0, 1]"),
    "float class indices": (dict(target=torch.zeros(6)), ValueError, "got (6,) with torch.float32: pass target.long()"),
    "segmentation": (
        dict(input=torch.zeros(2, 4, 3, 5), target=torch.zeros(2, 3, 5, dtype=torch.int64)),
        ValueError,
        "target must have shape (2, 4, 3) for class indices, got (2, 3, 5): pass class_dim=1",
    ),
    "ambiguous classes": (
        dict(input=torch.zeros(2, 4, 4, 4), target=torch.zeros(2, 4, 4, dtype=torch.int64)),
        ValueError,
        "class_dim must be given where both dimension 1 and the last of input could be the classes",
    ),
    "backend": (dict(backend="cuda"), ValueError, "backend must be one of 'triton', 'eager', got 'cuda'"),
    "no state": (dict(running_counts=None), ValueError, "running_counts must be a tensor of 31 zeros"),
    "state length": (dict(running_counts=torch.zeros(30)), ValueError, "running_counts must have shape (31,)"),
    "state dtype": (dict(running_counts=torch.zeros(31).half()), TypeError, "running_counts must be float32"),
    "state device": (dict(running_counts=torch.zeros(31, device="meta")), ValueError, "running_counts must be on"),
    "state strides": (dict(running_counts=torch.zeros(62)[::2]), ValueError, "running_counts must be contiguous"),
    "list and tensor": (dict(input=[X, X]), ValueError, "target must be a list of 2 tensors, as input is, got Tensor"),
    "tensor and list": (dict(target=[LABELS]), ValueError, "target must be a tensor, as input is, got list"),
    "levels": (
        dict(input=[X, X], target=[LABELS]),
        ValueError,
        "target must have as many levels as input, 2, got 1",
    ),
    "level shape": (
        dict(input=[X, X], target=[LABELS, LABELS[:3]]),
        ValueError,
        "target[1] must have shape (6,) for class indices, got (3,)",
    ),
    "level dtype": (dict(input=[X, X.double()], target=[LABELS] * 2), TypeError, "input[1] must have the dtype"),
    "level kinds": (dict(input=[X, X], target=[LABELS, DENSE]), ValueError, "target must hold class indices for all"),
    "no levels": (dict(input=[], target=[]), ValueError, "input must hold at least one level"),
}


@pytest.mark.parametrize("case", GHMC_CASES, ids=str)
def test_ghmc_loss(case):
    wrong, error, message = GHMC_CASES[case]
    state = STATE["running_counts"].clone()
    arguments = dict(input=X, target=LABELS, momentum=0.5, running_counts=state) | wrong
    with pytest.raises(error) as raised:
        ghm_triton.ghmc_loss(**arguments)
    assert message in str(raised.value)
    assert torch.equal(state, STATE["running_counts"])


def test_integers_beside_one_class():
    """They could be a mask, where 1 is the object, or class indices, where 0 is: the loss would learn the opposite."""
    x, labels = torch.tensor([-3.0, 4, 3, 2, -1, 1])[:, None], torch.arange(6) % 2
    for loss in (ghm_triton.ghmc_loss, ghm_triton.GHMCLoss()):
        with pytest.raises(ValueError, match="target must be bool or floating point beside one class.*class_dim=-1"):
            loss(x, labels)
        with pytest.raises(ValueError, match=r"target\[1\] must be bool or floating point beside one class"):
            loss([x.new_zeros(0, 2), x], [labels[:0], labels])
    mask = ghm_triton.ghmc_loss(x, labels.float().view(6, 1))
    indices = ghm_triton.ghmc_loss(x, labels, class_dim=-1)
    assert_close(indices, ghm_triton.ghmc_loss(x, 1 - labels.float().view(6, 1)).double(), LOSS)
    assert abs(indices - mask) > 0.1
    assert mmdet.GHMC()(x, labels, torch.ones(6)).isfinite()  # as mmdetection's, where 1 is the background


INTS = [numpy.int64, numpy.uint8, numpy.array, torch.tensor, lambda value: torch.tensor(value, dtype=torch.int32)]
FLOATS = [numpy.float32, numpy.float64, numpy.array, torch.tensor, fractions.Fraction]


@pytest.mark.parametrize("number", INTS)
def test_whole_numbers_of_other_types(number):
    """What has `__index__`: from YAML, hydra, or an array of settings."""
    logits = torch.linspace(-3, 3, 24).view(6, 4)
    expected = ghm_triton.ghm_cross_entropy(logits, LABELS + 1, bins=7, ignore_index=2, exponent=1)
    options = dict(bins=number(7), ignore_index=number(2), exponent=number(1))
    assert torch.equal(ghm_triton.ghm_cross_entropy(logits, LABELS + 1, **options), expected)
    module = ghm_triton.GHMCLoss(bins=number(7))
    assert type(module.bins) is int and module.running_counts.shape == (8,)
    assert type(mmdet.GHMC(bins=number(7)).bins) is int


@pytest.mark.parametrize("number", FLOATS)
def test_numbers_of_other_types(number):
    """What has `__float__`."""
    logits = torch.linspace(-3, 3, 24).view(6, 4)
    options = dict(mu=0.25, momentum=0.5, exponent=0.75, loss_weight=2.0)
    expected = ghm_triton.GHMRLoss(**options)
    module = ghm_triton.GHMRLoss(**{name: number(value) for name, value in options.items()})
    assert all(type(getattr(module, name)) is float for name in options)
    assert torch.equal(module(logits, DENSE), expected(logits, DENSE))
    module.exponent, expected.exponent = number(0.25), 0.25
    assert torch.equal(module(logits, DENSE), expected(logits, DENSE))


@pytest.mark.parametrize(
    "value", [numpy.bool_(True), torch.tensor(True), torch.ones(2), numpy.ones(2), 1j, "1"], ids=repr
)
@pytest.mark.parametrize("name, kind", [("bins", "an int"), ("exponent", "a number"), ("momentum", "a number")])
def test_what_is_no_number(name, kind, value):
    with pytest.raises(TypeError, match=f"{name} must be {kind}, got"):
        ghm_triton.GHMCLoss(**{name: value})


class WithoutFloat64(TorchDispatchMode):
    """A device such as Apple's MPS."""

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        kwargs = kwargs or {}
        if kwargs.get("dtype") == torch.float64:
            raise TypeError("Cannot convert a MPS Tensor to float64 dtype")
        return function(*args, **kwargs)


@pytest.mark.parametrize("call", [ghm_triton.ghmc_loss, ghm_triton.ghmr_loss, ghm_triton.ghm_cross_entropy])
def test_a_device_without_float64(call, monkeypatch):
    """A clear refusal, before the state has changed."""
    monkeypatch.setattr(backend, "HAVE_FLOAT64", ())
    backend._has_float64.cache_clear()
    target = DENSE if call is ghm_triton.ghmr_loss else LABELS
    state = torch.ones(31)
    with WithoutFloat64(), pytest.raises(RuntimeError, match="input must be on a device that has float64.*got cpu"):
        call(X, target, bins=30, momentum=0.5, running_counts=state, backend="eager")
    backend._has_float64.cache_clear()
    assert state.eq(1).all()
    assert call(X, target, bins=30, backend="eager").isfinite()  # the probe says yes
    backend._has_float64.cache_clear()


@pytest.mark.parametrize(
    "wrong, error, message",
    [
        (dict(target=torch.zeros(6, 4, dtype=torch.int64)), TypeError, "target must be a floating point tensor"),
        (dict(target=torch.zeros(6)), ValueError, "target must have the shape of input, (6, 4), got (6,)"),
        (dict(mu=0), ValueError, "mu must be positive and finite, got 0"),
        (dict(mu=-1.0), ValueError, "mu must be positive and finite, got -1.0"),
        (dict(mu=1e16), ValueError, "mu must be from 1e-15 to 1e12, got 1e+16"),
        (dict(mu="0.02"), TypeError, "mu must be a number, got '0.02'"),
    ],
    ids=str,
)
def test_ghmr_loss(wrong, error, message):
    state = torch.arange(11.0)
    with pytest.raises(error) as raised:
        ghm_triton.ghmr_loss(**dict(input=X, target=DENSE, momentum=0.5, running_counts=state) | wrong)
    assert message in str(raised.value)
    assert torch.equal(state, torch.arange(11.0))


@pytest.mark.parametrize(
    "make, error, message",
    [
        (lambda: ghm_triton.GHMCLoss(bins=0), ValueError, "bins"),
        (lambda: ghm_triton.GHMCLoss(momentum=1), ValueError, "momentum"),
        (lambda: ghm_triton.GHMCLoss(process_group="x"), TypeError, "process_group must be"),
        (lambda: ghm_triton.GHMCLoss(reduction="x"), ValueError, "reduction"),
        (lambda: ghm_triton.GHMCLoss(backend="x"), ValueError, "backend"),
        (lambda: ghm_triton.GHMCLoss(loss_weight="x"), TypeError, "loss_weight"),
        (lambda: ghm_triton.GHMCLoss(exponent=-1), ValueError, "exponent"),
        (
            lambda: ghm_triton.GHMCLoss(pos_weight=X[0]),
            TypeError,
            "pos_weight must be left out, got Tensor: the density",
        ),
        (lambda: ghm_triton.GHMCLoss(weight=X[0]), TypeError, "weight must be left out, .*multiply the losses"),
        (lambda: ghm_triton.GHMCrossEntropyLoss(weight=None), TypeError, "weight must be left out, got NoneType"),
        (lambda: ghm_triton.GHMCLoss(wight=1), TypeError, "unexpected keyword argument 'wight'"),
        (lambda: mmdet.GHMC(exponent=2), ValueError, "exponent"),
        (lambda: mmdet.GHMR(exponent="2"), TypeError, "exponent"),
        (lambda: ghm_triton.GHMRLoss(mu=0), ValueError, "mu"),
        (lambda: mmdet.GHMC(use_sigmoid=False), NotImplementedError, "use_sigmoid must be True"),
        (lambda: mmdet.GHMC(bins=2.5), TypeError, "bins"),
        (lambda: mmdet.GHMR(mu=-1), ValueError, "mu"),
        (lambda: mmdet.GHMR(reduction="x"), ValueError, "reduction"),
        (lambda: mmdet.GHMC()(X, LABELS, torch.ones(6), reduction_override="x"), ValueError, "reduction_override"),
        (lambda: mmdet.GHMC()(X.int(), LABELS, None), TypeError, "pred must be float32"),
        (lambda: mmdet.GHMC()(X, LABELS, torch.ones(5)), ValueError, r"label_weight must have shape \(6, 4\)"),
        (lambda: mmdet.GHMR()(X, DENSE[1:], None), ValueError, "target must have the shape of pred"),
        (lambda: mmdet.GHMC(momentum=0.7)(X.to("meta"), DENSE.to("meta"), None), ValueError, "acc_sum must be on"),
    ],
)
def test_modules(make, error, message):
    with pytest.raises(error, match=message):
        make()


def test_environment_variable(monkeypatch):
    monkeypatch.setenv("GHM_TRITON_BACKEND", "cuda")
    with pytest.raises(ValueError, match="GHM_TRITON_BACKEND must be one of 'triton', 'eager', got 'cuda'"):
        ghm_triton.ghmc_loss(X, LABELS)


def test_double_backward_is_refused():
    x = X.clone().requires_grad_()
    (grad,) = torch.autograd.grad(ghm_triton.ghmc_loss(x, LABELS), x, create_graph=True)
    with pytest.raises(RuntimeError, match="differentiated once"):
        grad.sum().backward()
