"""The density over several processes: gradients, losses and state as of one process that has everything."""

import copy
import datetime
import pickle
import time

import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing
from torch.nn.parallel import DistributedDataParallel

from calls import ghmc_loss, ghmr_loss
from compare import logits
from ghm_triton import GHMCLoss, GHMCrossEntropyLoss, GHMRLoss
from ghm_triton.backend import kernels
from processes import SIZES, part, run
from tolerances import LOSS

pytestmark = [pytest.mark.slow, pytest.mark.skipif(not dist.is_available(), reason="needs torch.distributed")]
BACKENDS = ["eager"] + ["triton"] * (kernels is not None and not torch.cuda.is_available())  # gloo, CPU tensors
EXACT = 1e-5  # a sum over processes is in another order, and two roundings of fp32 longer


@pytest.mark.parametrize("size", [2, 3])
def test_processes(size, tmp_path):
    """What the docstrings of the checks say."""
    run(
        size,
        tmp_path,
        check_backends,
        check_data_parallel,
        check_compiled,
        check_evaluation,
        check_copies,
        check_failing,
    )


@pytest.mark.skipif(not hasattr(torch.cpu.Stream, "record_event"), reason="FSDP2 on the CPU needs a newer PyTorch")
def test_fully_sharded(tmp_path):
    run(2, tmp_path, check_fully_sharded)


def test_sharded_with_cast_buffers(tmp_path):
    run(2, tmp_path, check_sharded_with_cast_buffers)


def problem(size, kind):
    """(input, target, weight, options) of the whole batch; a third of it is ignored, all of it in process 1 of 2."""
    n = sum(SIZES[size])
    x, weight = logits(n, 4, seed=n), torch.rand(n, generator=torch.Generator().manual_seed(1)) - 0.3
    if size == 2:
        weight[SIZES[2][0] :] -= 1
    if kind == "c":
        return x, torch.randint(-1, 4, (n,), generator=torch.Generator().manual_seed(2)), weight
    return x * 0.1, x.flip(0) * 0.1, weight.clamp(min=0)


def averaged(value):
    value = value.detach().clone()
    dist.all_reduce(value)
    return value / dist.get_world_size()


def check_backends(rank, size):
    for backend in BACKENDS:
        check_functions(rank, size, backend)
        check_levels_and_nan(rank, size, backend)
        check_collectives(rank, size, backend)
        check_cross_entropy(rank, size, backend)


def check_functions(rank, size, backend):
    """Uneven parts, an empty one, one with everything ignored; losses, variants, exponents, three steps of momentum."""
    for kind, function, bins in (("c", ghmc_loss, 30), ("r", ghmr_loss, 10)):
        x, target, weight = problem(size, kind)
        for variant in ("paper", "mmdet"):
            states = [torch.zeros(bins + (variant == "paper")) for _ in range(2)]
            for reduction, exponent in (("mean", 1.0), ("sum", 1.0), ("none", 1.0), ("mean", 0.5)):
                options = dict(bins=bins, variant=variant, reduction=reduction, exponent=exponent)
                options |= dict(momentum=0.75, backend=backend)
                whole = x.clone().requires_grad_()
                expected = function(whole, target, weight, running_counts=states[0], **options)
                expected.sum().backward()
                mine = part(x, rank, size).clone().requires_grad_()
                arguments = [part(tensor, rank, size) for tensor in (target, weight)]
                got = function(mine, *arguments, running_counts=states[1], process_group=dist.group.WORLD, **options)
                got.sum().backward()
                share = 1 if reduction == "none" else size
                torch.testing.assert_close(mine.grad / share, part(whole.grad, rank, size), rtol=EXACT, atol=0)
                if reduction == "none":
                    torch.testing.assert_close(got, part(expected, rank, size), rtol=EXACT, atol=0)
                else:
                    torch.testing.assert_close(averaged(got), expected.detach(), rtol=LOSS * 5, atol=0)
                assert torch.equal(*states)


def check_levels_and_nan(rank, size, backend):
    """One density over levels and processes; a NaN stays with its process, and is one of the N elements of all."""
    x, labels, _ = problem(size, "c")
    whole = x.clone().requires_grad_()
    expected = ghmc_loss(whole, labels, backend=backend)
    expected.backward()
    mine = part(x, rank, size)
    levels = [level.clone().requires_grad_() for level in mine.split([1, max(0, len(mine) - 1)] if len(mine) else [0])]
    aims = part(labels, rank, size).split([len(level) for level in levels])
    ghmc_loss(levels, aims, backend=backend, process_group=dist.group.WORLD).backward()
    got = torch.cat([level.grad for level in levels]) / size
    torch.testing.assert_close(got, part(whole.grad, rank, size), rtol=EXACT, atol=0)

    poisoned = mine.clone()
    if rank == 0:
        poisoned[0, 0] = float("nan")
    state = torch.zeros(31)
    arguments = dict(momentum=0.5, running_counts=state, backend=backend, process_group=dist.group.WORLD)
    loss = ghmc_loss(poisoned.requires_grad_(), part(labels, rank, size), **arguments)
    loss.backward()
    assert loss.isnan() == (rank == 0) and poisoned.grad.isnan().sum() == (rank == 0)
    assert state[:30].sum() == (x.numel() - 1) / 2


def check_cross_entropy(rank, size, backend):
    """One density over the examples of all processes, and the state."""
    x, labels, _ = problem(size, "c")
    one, several = (
        GHMCrossEntropyLoss(exponent=0.5, backend=backend, process_group=group) for group in (None, dist.group.WORLD)
    )
    labels = torch.where(labels < 0, -100, labels)
    for _ in range(2):
        whole, mine = x.clone().requires_grad_(), part(x, rank, size).clone().requires_grad_()
        expected, got = one(whole, labels), several(mine, part(labels, rank, size))
        expected.backward(), got.backward()
        torch.testing.assert_close(averaged(got), expected.detach(), rtol=LOSS * 5, atol=0)
        torch.testing.assert_close(mine.grad / size, part(whole.grad, rank, size), rtol=EXACT, atol=1e-9)
        assert torch.equal(one.running_counts, several.running_counts)


class Head(torch.nn.Module):
    def __init__(self, group):
        super().__init__()
        self.classify, self.regress = torch.nn.Linear(4, 6), torch.nn.Linear(4, 4)
        self.class_loss, self.box_loss = GHMCLoss(process_group=group), GHMRLoss(process_group=group)

    def forward(self, x, labels, boxes):
        positive = labels >= 0
        return self.class_loss(self.classify(x), labels) + self.box_loss(self.regress(x[positive]), boxes[positive])


def _heads():
    torch.manual_seed(0)
    one = Head(None)
    several = Head(dist.group.WORLD)
    several.load_state_dict(one.state_dict())
    return one, several


def check_data_parallel(rank, size):
    """DistributedDataParallel with a process_group: gradients and running counts of one process with all elements."""
    x, labels, _ = problem(size, "c")
    labels[SIZES[size][0] :] = -1  # only process 0 has positives
    boxes = x.flip(0)
    one, several = _heads()
    wrapped = DistributedDataParallel(several)
    for _ in range(3):
        one.zero_grad(), wrapped.zero_grad()
        one(x, labels, boxes).backward()
        wrapped(*[part(tensor, rank, size) for tensor in (x, labels, boxes)]).backward()
        for expected, got in zip(one.parameters(), several.parameters()):
            torch.testing.assert_close(got.grad, expected.grad, rtol=1e-4, atol=1e-7)
    for name, expected in one.named_buffers():
        assert torch.equal(several.get_buffer(name), expected), name


def check_fully_sharded(rank, size):
    """FSDP2 leaves the running counts whole on each process."""
    from torch.distributed.fsdp import fully_shard

    x, labels, _ = problem(size, "c")
    boxes = x.flip(0)
    one, several = _heads()
    fully_shard(several, mesh=dist.init_device_mesh("cpu", (size,)))
    for _ in range(2):
        one(x, labels, boxes).backward()
        several(*[part(tensor, rank, size) for tensor in (x, labels, boxes)]).backward()
    for expected, got in zip(one.parameters(), several.parameters()):
        torch.testing.assert_close(got.grad.full_tensor(), expected.grad, rtol=1e-4, atol=1e-7)
    for name, expected in one.named_buffers():
        assert torch.equal(several.get_buffer(name), expected), name
    with pytest.raises(TypeError, match="input must be a plain tensor, got a DTensor"):
        ghmc_loss(several.classify.weight, torch.zeros(6, dtype=torch.int64))


def check_collectives(rank, size, backend):
    """As many on every process, whatever it has: otherwise they wait for one another for ever."""
    calls, all_reduce = [], dist.all_reduce

    def counted(tensor, *args, **kwargs):
        calls.append(tensor.numel())
        return all_reduce(tensor, *args, **kwargs)

    dist.all_reduce = counted
    try:
        x, labels, _ = problem(size, "c")
        mine, aim = part(x, rank, size).requires_grad_(), part(labels, rank, size)
        ghmc_loss(mine, aim, backend=backend, process_group=dist.group.WORLD).backward()
    finally:
        dist.all_reduce = all_reduce
    assert calls == [31]


def check_compiled(rank, size):
    """The all-reduce is part of the operator: no graph break."""
    x, labels, _ = problem(size, "c")
    mine, aim = part(x, rank, size), part(labels, rank, size)
    plain, other = (GHMCLoss(process_group=dist.group.WORLD) for _ in range(2))
    compiled = torch.compile(other, fullgraph=True, backend="aot_eager")
    for _ in range(2):
        a, b = (mine.clone().requires_grad_() for _ in range(2))
        plain(a, aim).backward()
        compiled(b, aim).backward()
        assert torch.equal(a.grad, b.grad) and torch.equal(plain.running_counts, compiled.running_counts)


def check_evaluation(rank, size):
    """In eval() a module with a moving average does not communicate: one process alone may evaluate."""
    x, labels, _ = problem(size, "c")
    for reduction, share in (("mean", size), ("sum", size), ("none", 1)):
        one, several = (
            GHMCLoss(exponent=0.5, process_group=group, reduction=reduction) for group in (None, dist.group.WORLD)
        )
        one(x, labels), several(part(x, rank, size), part(labels, rank, size))
        one.eval(), several.eval()
        if rank == 0:
            mine, aim = part(x, rank, size), part(labels, rank, size)
            more = 1 if reduction == "mean" else size  # N: as if each process had as many elements as this one
            torch.testing.assert_close(several(mine, aim), one(mine, aim) * share * more, rtol=EXACT, atol=0)
            assert torch.equal(one.running_counts, several.running_counts)
    dist.barrier()


def check_sharded_with_cast_buffers(rank, size):
    """FSDP1's MixedPrecision casts buffers too: the counts are float32 again in each call."""
    from torch.distributed.fsdp import FullyShardedDataParallel, MixedPrecision

    x, labels, _ = problem(size, "c")
    boxes = x.flip(0)
    precision = MixedPrecision(buffer_dtype=torch.bfloat16)
    one, several = _heads()
    wrapped = FullyShardedDataParallel(several, mixed_precision=precision, device_id=torch.device("cpu"))
    for _ in range(3):
        one(x, labels, boxes).backward()
        wrapped(*[part(tensor, rank, size) for tensor in (x, labels, boxes)]).backward()
    for name, expected in one.named_buffers():
        assert torch.equal(several.get_buffer(name), expected), name


def check_copies(rank, size):
    """A copy shares the group, which cannot be copied. A pickled module has none: another program has other groups."""
    loss = GHMCLoss(process_group=dist.group.WORLD)
    loss.running_counts += 1
    copied, loaded = copy.deepcopy(torch.nn.Sequential(loss))[0], pickle.loads(pickle.dumps(loss))
    assert copied.process_group is dist.group.WORLD and loaded.process_group is None
    for other in (copied, loaded):
        assert other.running_counts is not loss.running_counts
        assert torch.equal(other.running_counts, loss.running_counts)


def check_failing(rank, size):
    """They wait as long as the group's timeout says (3 s; the bound leaves room for a busy machine)."""
    group = dist.new_group(timeout=datetime.timedelta(seconds=3))
    start = time.monotonic()
    with pytest.raises(Exception) as raised:
        if rank == 0:
            ghmc_loss(torch.zeros(3, 4), torch.zeros(2, dtype=torch.int64), process_group=group)
        else:
            ghmc_loss(torch.zeros(3, 4), torch.zeros(3, dtype=torch.int64), process_group=group)
    assert isinstance(raised.value, ValueError if rank == 0 else RuntimeError)
    assert time.monotonic() - start < 30
    dist.barrier()


@pytest.mark.parametrize("value", [1, "world", object()], ids=["int", "str", "object"])
def test_bad_groups(value):
    state = torch.zeros(31)
    with pytest.raises(TypeError, match="process_group must be a torch.distributed.ProcessGroup"):
        ghmc_loss(
            torch.zeros(3, 4),
            torch.zeros(3, dtype=torch.int64),
            momentum=0.5,
            running_counts=state,
            process_group=value,
        )
    assert state.eq(0).all()
    with pytest.raises(TypeError, match="process_group must be a torch.distributed.ProcessGroup"):
        GHMCLoss(process_group=value)
