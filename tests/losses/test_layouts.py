"""Where the classes are, what is ignored, and which elements a mask names: each call against the plain layout."""

import pytest
import torch

from compare import logits
from ghm_triton import GHMCLoss, ghmc_loss, ghmr_loss
from tolerances import GRADIENT, LOSS, SIGMOID, assert_close


def evaluate(function, x, *arguments, **options):
    """(loss, gradient)."""
    leaf = x.detach().clone(memory_format=torch.preserve_format).requires_grad_()
    value = function(leaf, *arguments, **options)
    (grad,) = torch.autograd.grad(value.sum(), leaf)
    return value.detach(), grad


def images(device, classes=4):
    """Logits [2, classes, 3, 5] and class indices [2, 3, 5] with background."""
    x = logits(2, classes, 3, 5).to(device)
    return x, torch.arange(30, device=device).view(2, 3, 5) % (classes + 1)


@pytest.mark.parametrize("reduction", ["mean", "none"])
@pytest.mark.parametrize("class_dim", [0, 1, 2, -3])
def test_class_dim(class_dim, reduction, backend, device):
    """Classes elsewhere than last: value, gradient and unreduced losses are those of the classes last, moved back."""
    x, labels = images(device)
    mask = torch.arange(30, device=device).view(2, 3, 5) % 7 > 0
    last = x.movedim(1, -1).contiguous()
    expected, grad = evaluate(ghmc_loss, last, labels, mask, reduction=reduction, backend=backend)
    moved = last.movedim(-1, class_dim).contiguous()
    options = dict(class_dim=class_dim, reduction=reduction, backend=backend)
    value, of_moved = evaluate(ghmc_loss, moved, labels, mask, **options)
    largest = grad.abs().max().item()  # torch.sigmoid rounds in another way where it cannot go along the memory
    assert_close(of_moved, grad.movedim(-1, class_dim), GRADIENT, SIGMOID * largest)
    assert_close(value, expected.movedim(-1, class_dim) if reduction == "none" else expected, GRADIENT)
    dense = (labels.unsqueeze(-1) == torch.arange(4, device=device)).float().movedim(-1, class_dim)
    full = mask.unsqueeze(class_dim if class_dim >= 0 else class_dim + 4)
    value, of_dense = evaluate(ghmc_loss, moved, dense, full, **options)
    assert_close(value, expected.movedim(-1, class_dim) if reduction == "none" else expected, 2 * GRADIENT, 1e-30)
    assert_close(of_dense, of_moved, 2 * GRADIENT, SIGMOID * largest)


def test_a_square_image_needs_class_dim(backend, device):
    """C = H = W: class indices would silently name the last dimension."""
    x, labels = logits(2, 4, 4, 4).to(device), torch.arange(32, device=device).view(2, 4, 4) % 5
    with pytest.raises(ValueError, match="class_dim must be given"):
        ghmc_loss(x, labels, backend=backend)
    first, last = (ghmc_loss(x, labels, class_dim=dim, backend=backend) for dim in (1, -1))
    assert_close(first, ghmc_loss(x.movedim(1, -1).reshape(32, 4), labels.flatten(), backend=backend), LOSS)
    assert (first - last).abs() > 1e-3


@pytest.mark.parametrize("kind", [torch.bool, torch.float32, torch.float16])
def test_binary_masks(kind, backend, device):
    """Logits [N, 1, H, W] with masks [N, H, W] or [N, 1, H, W], of which 1 is the object."""
    x, mask = logits(2, 1, 3, 5).to(device), torch.arange(30, device=device).view(2, 3, 5) % 3 == 0
    expected, grad = evaluate(ghmc_loss, x.flatten(), mask.flatten().float(), backend=backend)
    for target, options in ((mask, dict(class_dim=1)), (mask.unsqueeze(1), {})):
        value, found = evaluate(ghmc_loss, x, target.to(kind), backend=backend, **options)
        assert torch.equal(value, expected) and torch.equal(found.flatten(), grad)
    with pytest.raises(ValueError, match=r"target must have the shape of input, .*: pass class_dim=1"):
        ghmc_loss(x, mask.float(), backend=backend)


@pytest.mark.parametrize("reduction", ["mean", "sum", "none"])
@pytest.mark.parametrize("masked", [None, "rows", "elements"])
def test_ignore_index(masked, reduction, backend, device):
    """255 in class indices and in dense masks: as if a mask named these elements."""
    x, labels = images(device)
    ignored = torch.arange(30, device=device).view(2, 3, 5) % 4 == 1
    mask = {None: None, "rows": torch.arange(30, device=device).view(2, 3, 5) % 7 > 0}.get(masked)
    if masked == "elements":
        mask = torch.arange(120, device=device).view(2, 4, 3, 5) % 7 > 0
    counted = ~ignored if masked is None else mask & (~ignored if masked == "rows" else ~ignored.unsqueeze(1))
    options = dict(class_dim=1, reduction=reduction, backend=backend)
    expected = evaluate(ghmc_loss, x, labels, counted, **options)
    got = evaluate(ghmc_loss, x, torch.where(ignored, 255, labels), mask, ignore_index=255, **options)
    assert torch.equal(got[0], expected[0]) and torch.equal(got[1], expected[1])
    dense = (labels.unsqueeze(1) == torch.arange(4, device=device)[:, None, None]).to(torch.uint8)
    expected = evaluate(ghmc_loss, x, dense, counted, **options)
    spoiled = torch.where(ignored.unsqueeze(1), 255, dense).to(torch.uint8)
    for target in (spoiled, spoiled.float()):
        got = evaluate(ghmc_loss, x, target, mask, ignore_index=255, **options)
        assert torch.equal(got[0], expected[0]) and torch.equal(got[1], expected[1])


def test_ignore_index_that_the_targets_cannot_hold(device):
    """-100 does not fit uint8, where it would wrap around to 156."""
    x, target = logits(6, 200).to(device), torch.full((6,), 156, dtype=torch.uint8, device=device)
    assert torch.equal(ghmc_loss(x, target, ignore_index=-100), ghmc_loss(x, target))
    module = GHMCLoss(ignore_index=156, momentum=0.0)
    assert module(x, target) == 0


@pytest.mark.parametrize("dtype, index", [(torch.bfloat16, 257), (torch.float16, 2049), (torch.float32, 2**24 + 1)])
def test_ignore_index_is_not_rounded(dtype, index, device):
    """No mask of this dtype holds the index. Its rounded value is a wrong target; one that it holds is ignored."""
    x = logits(4, 1).to(device)
    target = torch.tensor([[0.0], [1.0], [1.0], [index - 1.0]], dtype=dtype, device=device)
    with pytest.raises(ValueError, match=f"target must hold values in .* got {index - 1}"):
        ghmc_loss(x, target, ignore_index=index, backend="eager")
    expected = ghmc_loss(x[:3], target[:3], backend="eager")
    assert torch.equal(ghmc_loss(x, target, ignore_index=index - 1, backend="eager"), expected)
    target[3] = 4 * index - 4  # more digits than the significand has, but zeros at the end
    assert torch.equal(ghmc_loss(x, target, ignore_index=4 * index - 4, backend="eager"), expected)


@pytest.mark.parametrize("function", [ghmc_loss, ghmr_loss])
@pytest.mark.parametrize("shape", [(), (5,), (1, 5), (6, 1), (1, 1), (6,), (4, 6, 1), (4, 1, 1), (1, 1, 5)])
def test_masks_that_broadcast(shape, function, backend, device):
    """To the shape of the input, or of its anchors: as their expansion."""
    x = logits(4, 6, 5).to(device)
    target = torch.zeros_like(x)
    shape = (4, 6) if shape == (6,) else shape  # the anchors; [6] alone would fit no dimension
    mask = torch.arange(max(1, torch.Size(shape).numel()), device=device).view(shape) % 3 > 0
    mask = mask | (mask.numel() == 1)
    full = (mask.unsqueeze(-1) if shape == (4, 6) else mask).expand(4, 6, 5)
    expected = evaluate(function, x, target, full, backend=backend)
    got = evaluate(function, x, target, mask, backend=backend)
    assert_close(got[0], expected[0], LOSS)
    assert_close(got[1], expected[1], GRADIENT, 1e-30)


def test_wrong_targets_that_do_not_count(device):
    """Only what counts is checked: padding may hold anything."""
    x, labels = logits(6, 4).to(device), torch.tensor([0, 1, 99, -100, 4, -1], device=device)
    counted = torch.tensor([1, 1, 0, 0, 1, 1], device=device).bool()
    expected = ghmc_loss(x, labels.clamp(-1, 4), counted, backend="eager")
    assert torch.equal(ghmc_loss(x, labels, counted, backend="eager"), expected)
    assert torch.equal(ghmc_loss(x, labels, counted[:, None].expand(6, 4), backend="eager"), expected)
    dense = torch.zeros(6, 4, device=device)
    dense[2] = 7.0
    clean = ghmc_loss(x, torch.zeros_like(dense), counted, backend="eager")
    assert torch.equal(ghmc_loss(x, dense, counted, backend="eager"), clean)
    with pytest.raises(ValueError, match="got 7.0"):
        ghmc_loss(x, dense, ~counted, backend="eager")


def test_wrong_targets_in_a_compiled_call():
    x, state = logits(6, 4), torch.zeros(31)
    compiled = torch.compile(ghmc_loss, fullgraph=True, backend="aot_eager")
    with pytest.raises(ValueError, match="got 9"):
        compiled(x, torch.full((6,), 9), momentum=0.5, running_counts=state)
    assert state.eq(0).all()


@pytest.mark.parametrize("dtype, classes, ignored", [(torch.uint8, 5, 255), (torch.int8, 200, -7)], ids=str)
def test_indices_of_small_types(dtype, classes, ignored, backend, device):
    """-1 and 200 cannot be compared with in these types: valid labels beside an ignored one were refused."""
    x = torch.randn(6, classes, generator=torch.Generator().manual_seed(0)).to(device)
    labels = torch.tensor([0, ignored, 3, 2, 4, 1], device=device)
    expected = ghmc_loss(x, labels, ignore_index=ignored, backend=backend)
    assert torch.equal(ghmc_loss(x, labels.to(dtype), ignore_index=ignored, backend=backend), expected)
    if backend == "eager":
        hint = r": pass ignore_index=255\?" if ignored == 255 else ""
        with pytest.raises(ValueError, match=f"class indices from 0 to {classes - 1}, .*, got {ignored}{hint}$"):
            ghmc_loss(x, labels.to(dtype), backend=backend)
