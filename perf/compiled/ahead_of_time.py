"""Compiles kernels without a GPU, with the specializations that the launcher would choose on one.

TRITON_INTERPRET must not be set: the kernels have to be decorated for compilation.
"""

import functools
from collections.abc import Callable, Iterator
from typing import NamedTuple
from unittest import mock

import torch
import triton
from ghm_triton.kernels import grids
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource, CompiledKernel
from triton.runtime.jit import JITFunction, KernelParam

import ghm_triton
from ghm_triton import interpreter
from ghm_triton.losses.base import elementwise_loss
from ghm_triton.options import Options

TARGETS = {
    "sm_80": GPUTarget("cuda", 80, 32),
    "sm_89": GPUTarget("cuda", 89, 32),
    "sm_90": GPUTarget("cuda", 90, 32),
    "sm_100": GPUTarget("cuda", 100, 32),
    "gfx942": GPUTarget("hip", "gfx942", 64),
}
_TYPES = {
    torch.float32: "*fp32",
    torch.float16: "*fp16",
    torch.bfloat16: "*bf16",
    torch.int64: "*i64",
    torch.int32: "*i32",
    torch.int16: "*i16",
    torch.uint8: "*u8",
}


class Launch(NamedTuple):
    """One `kernel[grid](...)`: its arguments by name, and its launch options."""

    kernel: JITFunction
    arguments: dict
    options: dict

    @property
    def name(self) -> str:
        """The name of the kernel."""
        return self.kernel.fn.__name__

    @property
    def variant(self) -> tuple:
        """What the launcher specializes on: launches with the same variant share a compiled kernel."""
        kinds = {parameter.name: _kind(parameter, self.arguments[parameter.name]) for parameter in self.kernel.params}
        return self.name, tuple(kinds.items()), tuple(self.options.items())


def _kind(parameter: KernelParam, value):
    """Return the dtype of a tensor, the value of a constant, and for an integer whether it is 1 or divisible by 16."""
    if isinstance(value, torch.Tensor):
        return value.dtype
    if parameter.is_constexpr or value is None:
        return value
    if isinstance(value, int) and not parameter.do_not_specialize:
        return value == 1, value % 16 == 0
    return type(value)


def collect(call: Callable, target: GPUTarget) -> list[Launch]:
    """Return the launches that call() would make for `target`, from CPU tensors. Nothing is computed."""
    launches = []

    def record(self, *args, grid, warmup=False, **kwargs):
        arguments = dict(zip(self.arg_names, args)) | {k: v for k, v in kwargs.items() if k in self.arg_names}
        launches.append(Launch(self, arguments, {k: v for k, v in kwargs.items() if k not in self.arg_names}))

    with (
        mock.patch.object(JITFunction, "run", record),
        mock.patch.object(grids, "LANES", target.warp_size),
        mock.patch.object(grids, "ACCUMULATE", grids.Tile(8 * target.warp_size, 1)),
        mock.patch.object(interpreter, "interpreting", lambda: True),  # lets the public functions take CPU tensors
    ):
        call()
    return launches


def compile_launch(launched: Launch, target: GPUTarget) -> CompiledKernel:
    """Compile one launch. Pointers are taken to be aligned to 16 bytes, as PyTorch allocates them."""
    signature, constants, attributes = {}, {}, {}
    for index, parameter in enumerate(launched.kernel.params):
        name, value = parameter.name, launched.arguments[parameter.name]
        specialized = isinstance(value, int) and not (parameter.is_constexpr or parameter.do_not_specialize)
        if parameter.is_constexpr or value is None or (specialized and value == 1):
            signature[name], constants[name] = "constexpr", value
        elif isinstance(value, torch.Tensor):
            signature[name], attributes[(index,)] = _TYPES[value.dtype], [["tt.divisibility", 16]]
        else:
            signature[name] = "fp32" if isinstance(value, float) else "i32"
            if specialized and value % 16 == 0:
                attributes[(index,)] = [["tt.divisibility", 16]]
    source = ASTSource(fn=launched.kernel, signature=signature, constexprs=constants, attrs=attributes)
    return triton.compile(source, target=target, options=launched.options)


def configurations() -> Iterator[tuple[str, Callable]]:
    """Yield (name, call) of the uses whose kernels are reported. Together they launch every kernel."""
    for dtype in (torch.float32, torch.bfloat16):
        name = str(dtype).removeprefix("torch.")
        yield from ((f"{name} {use}", call) for use, call in _ghmc_calls(dtype).items())
        yield from ((f"{name} {use}", call) for use, call in _ghmr_calls(dtype).items())
        yield from ((f"{name} {use}", call) for use, call in _cross_entropy_calls(dtype).items())


def _ghmc_calls(dtype: torch.dtype) -> dict[str, Callable]:
    x = torch.zeros(4096, 80, dtype=dtype, requires_grad=True)
    labels, weight, dense = torch.zeros(4096, dtype=torch.int64), torch.zeros(4096), torch.zeros(4096, 80)
    paper = dict(momentum=0.75, running_counts=torch.zeros(31))
    mmdet = Options(loss="ghmc", bins=30, exponent=1.0, momentum=0.75, variant="mmdet")
    mmdet_sum = Options(loss="ghmc", bins=30, exponent=1.0, reduction="sum", variant="mmdet")
    loss = functools.partial(ghm_triton.ghmc_loss, exponent=1.0, backend="triton")
    return {
        "class index": lambda: loss(x, labels, **paper).backward(),
        "class index, anchor weight, mmdet": lambda: _mmdet(x, labels, weight, torch.zeros(30), mmdet),
        "dense, element weight, sum": lambda: _mmdet(x, dense, dense, None, mmdet_sum),
        "class index, none": lambda: loss(x, labels, reduction="none").sum().backward(),
        "class index, five levels": lambda: loss([x] * 5, [labels] * 5).backward(),
    }


def _ghmr_calls(dtype: torch.dtype) -> dict[str, Callable]:
    deltas = torch.zeros(4096, 4, dtype=dtype, requires_grad=True)
    target, weight = torch.zeros(4096, 4), torch.zeros(4096, 4)
    mmdet = Options(loss="ghmr", mu=0.02, bins=10, exponent=1.0, variant="mmdet")
    loss = functools.partial(ghm_triton.ghmr_loss, exponent=1.0, backend="triton")
    return {
        "deltas, element weight, mmdet": lambda: _mmdet(deltas, target, weight, None, mmdet),
        "deltas, none": lambda: loss(deltas, target, reduction="none").sum().backward(),
    }


def _cross_entropy_calls(dtype: torch.dtype) -> dict[str, Callable]:
    shapes = {
        "softmax of 10 classes": (4096, 10),
        "softmax of 1,000 classes": (4096, 1000),
        "softmax of 128,256 classes": (64, 128256),
        "softmax of 19 classes, channels second": (8, 19, 64, 64),
    }
    given = {name: torch.zeros(shape, dtype=dtype, requires_grad=True) for name, shape in shapes.items()}
    labels = {name: torch.zeros(shape[0], *shape[2:], dtype=torch.int64) for name, shape in shapes.items()}
    loss = functools.partial(ghm_triton.ghm_cross_entropy, exponent=1.0, backend="triton")
    calls = {name: functools.partial(_backward, loss, x, labels[name]) for name, x in given.items()}
    for name in ("softmax of 1,000 classes", "softmax of 19 classes, channels second"):
        x, target = given[name], labels[name]
        calls[f"{name}, smoothed"] = functools.partial(_backward, loss, x, target, label_smoothing=0.1)
        calls[f"{name}, probabilities"] = functools.partial(_backward, loss, x, x.detach())
        calls[f"{name}, none"] = functools.partial(_backward, loss, x, target, reduction="none")
    return calls


def _mmdet(input, target, weight, running_counts, options: Options) -> None:
    """As ghm_triton.mmdet, whose classes have no argument for the backend."""
    elementwise_loss(input, target, weight, running_counts, options, "triton").backward()


def _backward(loss: Callable, *args, **options) -> None:
    loss(*args, **options).sum().backward()
