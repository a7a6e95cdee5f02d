"""The addresses of the kernels in Triton's interpreter: only inside their arguments, also past 2^31 elements."""

import builtins

import numpy
import pytest
import torch

from calls import ghm_cross_entropy, ghmc_loss, ghmr_loss
from compare import logits
from conftest import POISON
from ghm_triton.backend import kernels
from ghm_triton.interpreter import interpreting
from ghm_triton.options import Options
from ghm_triton.population import Level, Population
from tolerances import assert_close

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(kernels is None or not interpreting(), reason="needs Triton's interpreter"),
]
if kernels is not None:
    from ghm_triton.kernels import ghmr, grids, launch
    from triton.runtime import interpreter


@pytest.fixture
def watched(monkeypatch):
    """Raises on any access outside of the tensors of the launch; returns the number of accesses of each launch."""
    buffers, accesses = [], []
    start = interpreter.GridExecutor._init_args_hst
    builder = interpreter.InterpreterBuilder

    def entered(self, args, kwargs):
        args, kwargs = start(self, args, kwargs)
        tensors = [arg for arg in (*args, *kwargs.values()) if isinstance(arg, torch.Tensor)]
        buffers[:] = [(t.data_ptr(), t.data_ptr() + t.numel() * t.element_size()) for t in tensors]
        accesses.append(0)
        return args, kwargs

    def check(pointers, mask):
        size = max(1, pointers.get_element_ty().primitive_bitwidth // 8)
        address = pointers.data[numpy.broadcast_to(mask.data.astype(bool), pointers.data.shape)].astype(numpy.uint64)
        inside = numpy.zeros(address.shape, bool)
        for low, high in buffers:
            inside |= (address >= low) & (address + numpy.uint64(size) <= high)
        assert inside.all(), f"{(~inside).sum()} of {address.size} accesses are outside of the arguments"
        accesses[-1] += address.size

    for name in ("create_masked_load", "create_masked_store"):
        original, is_load = getattr(builder, name), name.endswith("load")

        def masked(self, pointers, value_or_mask, *args, original=original, load=is_load):
            check(pointers, value_or_mask if load else args[0])
            return original(self, pointers, value_or_mask, *args)

        monkeypatch.setattr(builder, name, masked)
    monkeypatch.setattr(interpreter.GridExecutor, "_init_args_hst", entered)
    return accesses


@pytest.mark.parametrize("shape", [(1, 1), (3, 7), (51, 5), (13, 20), (2, 255), (1, 2049)], ids=str)
def test_no_access_outside_of_the_arguments(shape, watched):
    """Around the block sizes 256 and 2048, for each kind of target and weight; forward, backward and unreduced."""
    x = logits(*shape).to(torch.bfloat16 if shape[1] % 2 else torch.float32).requires_grad_()
    labels = torch.arange(shape[0]) % (shape[1] + 1)
    targets = {"index": labels, "dense": x.detach().sigmoid()}
    for target in targets.values():
        for weight, reduction in (None, "none"), (torch.rand(shape) - 0.3, "none"), (labels > 0, "mean"):
            options = dict(reduction=reduction, momentum=0.5, running_counts=torch.zeros(31), backend="triton")
            ghmc_loss(x, target, weight, class_dim=-1 if target is labels else None, **options).sum().backward()
            ghmr_loss(x, x.detach() * 0.9, weight, bins=30, **options).sum().backward()
    assert min(watched) > 0


@pytest.mark.parametrize("shape", [(1, 1), (3, 7), (129, 3), (2, 2049), (1, 3, 1), (2, 5, 131)], ids=str)
def test_no_access_of_cross_entropy_outside(shape, watched):
    """Odd tiles of both layouts, for each kind of target; forward, backward and unreduced."""
    x = logits(*shape).to(torch.bfloat16 if shape[1] % 2 else torch.float32).requires_grad_()
    labels = torch.arange(x.numel() // shape[1]).view(shape[0], *shape[2:]) % (shape[1] + 1) - 1
    for target in (labels, x.detach().softmax(1)):
        for smoothing, reduction in ((0.0, "none"), (0.1, "mean")):
            options = dict(label_smoothing=smoothing, reduction=reduction, ignore_index=-1, backend="triton")
            ghm_cross_entropy(x, target, **options).sum().backward()
    assert min(watched) > 0


def test_the_watch_sees_an_access_outside(watched):
    """One number more than the tensor has."""
    x = logits(300)
    with pytest.raises(Exception, match="1 of 44 accesses are outside"):
        arguments = (x[:299], x.clone(), None, torch.zeros(32), torch.ones(()), torch.empty(300), 300, 0.02, 0.0004)
        options = Options(loss="ghmr", mu=0.02, bins=30, exponent=1.0)
        constants = grids.specialize(Level(x, x, None), options, grids.Tile(256, 1)) | dict(ELEMENT_GRAD=False)
        ghmr._ghmr_gradient_kernel[(2,)](*arguments, **constants)


@pytest.fixture
def last_programs_only(monkeypatch):
    """The interpreter runs the last two programs of a long grid, and leaves alone what the others would touch."""
    monkeypatch.setattr(
        interpreter,
        "range",
        lambda *args: (
            builtins.range(args[0] - 2, args[0]) if len(args) == 1 and args[0] > 10**5 else builtins.range(*args)
        ),
        raising=False,
    )
    monkeypatch.setattr(interpreter.GridExecutor, "_restore_args_dev", lambda *args: None)  # a copy onto itself
    monkeypatch.setattr(grids, "resident_programs", lambda device: 2**62)


@pytest.mark.parametrize("kind", ["index", "dense", "boxes"])
def test_past_2_to_31_elements(kind, last_programs_only, monkeypatch):
    """The last tiles of 2^31 + 4096 + 80 elements; memory that is not touched is never there."""
    monkeypatch.setattr(torch, "empty", POISON["empty"])
    monkeypatch.setattr(torch, "empty_like", POISON["empty_like"])
    monkeypatch.setattr(
        torch.Tensor,
        "new_empty",
        lambda self, *size, dtype=None, **kw: POISON["empty"](*size, dtype=dtype or self.dtype),
    )
    rows = (2**31 + 4096) // 80 + 1
    tail, bins = 20, 30
    x = torch.empty(rows, 80, dtype=torch.bfloat16)
    small = logits(tail, 80).bfloat16()
    labels = torch.arange(tail) % 81
    aim = small * 0.9 if kind == "boxes" else (labels[:, None] == torch.arange(80)).bfloat16()
    target = torch.empty(rows, dtype=torch.int64) if kind == "index" else torch.empty(rows, 80, dtype=torch.bfloat16)
    weight, few = torch.empty(rows), torch.arange(tail) % 3 - 1.0
    x[-tail:], target[-tail:], weight[-tail:] = small, labels if kind == "index" else aim, few
    coefficients = torch.linspace(0.1, 1, 32)
    options = Options(loss="ghmr" if kind == "boxes" else "ghmc", mu=0.02, bins=bins, exponent=1.0)
    whole = Population([x], [target], [weight])
    (grad,) = launch.launch_gradient([torch.ones(())], whole, [coefficients], options)
    part = Population([small], [labels if kind == "index" else aim], [few])
    (expected,) = launch.launch_gradient([torch.ones(())], part, [coefficients], options)
    block = (grids.ELEMENTWISE if kind == "boxes" else grids.ACCUMULATE).block
    done = x.numel() % block + block  # by the last two programs
    kept = min(done, tail * 80)
    assert_close(grad.view(-1)[-kept:], expected.view(-1)[-kept:].double(), 0)
    assert grad.view(-1)[-kept:].abs().sum() > 0

    rows_of_sums = launch.accumulate(whole, [[]], options)
    tiles = x.numel() % grids.ACCUMULATE.block
    cut = grids.ACCUMULATE.block + tiles  # elements of the last two programs
    counts = rows_of_sums.counts[-2:].sum(0)
    wide = few[:, None].expand(tail, 80).reshape(-1)[-cut:]
    assert counts[: bins + 1].sum() == (wide > 0).sum()


def test_channels_second_past_2_to_31_elements(last_programs_only, watched, monkeypatch):
    """[1, 3, 2^30 + 40]: the logits of the third class are 2^31 elements after those of the first."""
    monkeypatch.setattr(torch, "empty_like", POISON["empty_like"])
    space, tail = 2**30 + 40, 30
    x = POISON["empty"](1, 3, space, dtype=torch.bfloat16)
    small, labels = logits(1, 3, tail).bfloat16(), torch.arange(tail)[None] % 3
    maximum, factor = small.float().amax(1), 1 / (small.float() - small.float().amax(1, keepdim=True)).exp().sum(1)
    of_tail = [maximum, factor, torch.arange(tail)[None].to(torch.int16) % 30]
    kept = [torch.linspace(0.1, 1, 32), *(POISON["empty"](1, space, dtype=each.dtype) for each in of_tail)]
    target = POISON["empty"](1, space, dtype=torch.int64)
    for whole, part in zip([x, target, *kept[1:]], [small, labels, *of_tail]):
        whole[..., -tail:] = part
    options = Options(loss="cross_entropy", bins=30, exponent=1.0, ignore_index=-100)
    (grad,) = launch.launch_gradient([torch.ones(())], Population([x], [target], []), kept, options)
    part = Population([small], [labels], [])
    (expected,) = launch.launch_gradient([torch.ones(())], part, [kept[0], *of_tail], options)
    assert torch.equal(grad[..., -tail:], expected) and expected.abs().sum() > 0
