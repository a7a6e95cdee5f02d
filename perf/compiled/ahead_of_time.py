"""Compiles kernels without a GPU, with the specializations that the launcher would choose on one.

TRITON_INTERPRET must not be set: the kernels have to be decorated for compilation.
"""

import functools
from collections.abc import Callable, Iterator
from typing import NamedTuple

import torch
import triton
from ghm_triton.kernels import grids
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource, CompiledKernel
from triton.runtime.jit import JITFunction

import ghm_triton

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
    torch.uint8: "*u8",
}


class Launch(NamedTuple):
    """One `kernel[grid](...)`: its arguments by name, and its launch options."""

    kernel: JITFunction
    arguments: dict
    options: dict

    @property
    def name(self) -> str:
        return self.kernel.fn.__name__

    @property
    def variant(self) -> tuple:
        """What the launcher specializes on: launches with the same variant share a compiled kernel."""
        kinds = {
            name: value.dtype if isinstance(value, torch.Tensor) else value
            for name, value in self.arguments.items()
            if isinstance(value, torch.Tensor)
            or value is None
            or self.kernel.params[self.kernel.arg_names.index(name)].is_constexpr
        }
        return self.name, tuple(kinds.items()), tuple(self.options.items())


def collect(call: Callable, target: GPUTarget) -> list[Launch]:
    """The launches that call() would make for `target`, from CPU tensors. Nothing is computed."""
    launches = []

    def record(self, *args, grid, warmup=False, **kwargs):
        arguments = dict(zip(self.arg_names, args)) | {k: v for k, v in kwargs.items() if k in self.arg_names}
        launches.append(Launch(self, arguments, {k: v for k, v in kwargs.items() if k not in self.arg_names}))

    run, tile = JITFunction.run, grids.ACCUMULATE
    JITFunction.run, grids.ACCUMULATE = record, grids.Tile(8 * target.warp_size, 1)
    triton.knobs.runtime.interpret = True  # lets the public functions take CPU tensors
    try:
        call()
    finally:
        JITFunction.run, grids.ACCUMULATE = run, tile
        triton.knobs.runtime.interpret = False
    return launches


def compile_launch(launched: Launch, target: GPUTarget) -> CompiledKernel:
    """Compile one launch. Pointers are taken to be aligned to 16 bytes, as PyTorch allocates them."""
    signature, constants, attributes = {}, {}, {}
    for index, parameter in enumerate(launched.kernel.params):
        name, value = parameter.name, launched.arguments[parameter.name]
        if parameter.is_constexpr or value is None:
            signature[name], constants[name] = "constexpr", value
        elif isinstance(value, torch.Tensor):
            signature[name], attributes[(index,)] = _TYPES[value.dtype], [["tt.divisibility", 16]]
        else:
            signature[name] = "fp32" if isinstance(value, float) else "i32"
    source = ASTSource(fn=launched.kernel, signature=signature, constexprs=constants, attrs=attributes)
    return triton.compile(source, target=target, options=launched.options)


def configurations() -> Iterator[tuple[str, Callable]]:
    """(name, call) of the uses whose kernels are reported. Together they launch every kernel."""
    for dtype in (torch.float32, torch.bfloat16):
        name = str(dtype).removeprefix("torch.")
        yield from ((f"{name} {use}", call) for use, call in _ghmc_calls(dtype).items())
        yield from ((f"{name} {use}", call) for use, call in _ghmr_calls(dtype).items())


def _ghmc_calls(dtype: torch.dtype) -> dict[str, Callable]:
    x = torch.zeros(4096, 80, dtype=dtype, requires_grad=True)
    labels, weight, dense = torch.zeros(4096, dtype=torch.int64), torch.zeros(4096), torch.zeros(4096, 80)
    paper = dict(momentum=0.75, running_counts=torch.zeros(31))
    mmdet = dict(momentum=0.75, running_counts=torch.zeros(30), variant="mmdet")
    loss = functools.partial(ghm_triton.ghmc_loss, backend="triton")
    return {
        "class index": lambda: loss(x, labels, **paper).backward(),
        "class index, anchor weight, mmdet": lambda: loss(x, labels, weight, **mmdet).backward(),
        "dense, element weight, sum": lambda: loss(x, dense, dense, reduction="sum").backward(),
        "class index, none": lambda: loss(x, labels, reduction="none").sum().backward(),
        "class index, five levels": lambda: loss([x] * 5, [labels] * 5).backward(),
    }


def _ghmr_calls(dtype: torch.dtype) -> dict[str, Callable]:
    deltas = torch.zeros(4096, 4, dtype=dtype, requires_grad=True)
    target, weight = torch.zeros(4096, 4), torch.zeros(4096, 4)
    loss = functools.partial(ghm_triton.ghmr_loss, backend="triton")
    return {
        "deltas, element weight, mmdet": lambda: loss(deltas, target, weight, variant="mmdet").backward(),
        "deltas, none": lambda: loss(deltas, target, reduction="none").sum().backward(),
    }
