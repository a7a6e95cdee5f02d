"""Compiles kernels without a GPU, specialised as the launcher specialises them on a real one.

Must run without TRITON_INTERPRET: the kernels have to be decorated for compilation.
"""

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
    """One `kernel[grid](...)`: the arguments by name and the launch options."""

    kernel: JITFunction
    arguments: dict
    options: dict

    @property
    def name(self) -> str:
        return self.kernel.fn.__name__

    @property
    def variant(self) -> tuple:
        """What the launcher compiles anew for: equal for launches that share a compiled kernel."""
        kinds = {
            name: value.dtype if isinstance(value, torch.Tensor) else value
            for name, value in self.arguments.items()
            if isinstance(value, torch.Tensor)
            or value is None
            or self.kernel.params[self.kernel.arg_names.index(name)].is_constexpr
        }
        return self.name, tuple(kinds.items()), tuple(self.options.items())


def collect(call: Callable, target: GPUTarget) -> list[Launch]:
    """The launches that call() makes on CPU tensors, as for `target`; nothing is computed."""
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
    """Compiles one launch, pointers taken as aligned to 16 bytes, as PyTorch allocates them."""
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
    """(name, call) of the uses whose kernels are reported; between them they launch every kernel."""
    for dtype in (torch.float32, torch.bfloat16):
        x = torch.zeros(4096, 80, dtype=dtype, requires_grad=True)
        labels, anchors, dense = torch.zeros(4096, dtype=torch.int64), torch.zeros(4096), torch.zeros(4096, 80)
        deltas = torch.zeros(4096, 4, dtype=dtype, requires_grad=True)
        aims, weights = torch.zeros(4096, 4), torch.zeros(4096, 4)
        state, acc_sum = torch.zeros(31), torch.zeros(30)
        name = str(dtype).removeprefix("torch.")

        def ghmc(*args, x=x, **options):
            return ghm_triton.ghmc_loss(x, *args, backend="triton", **options)

        def ghmr(*args, deltas=deltas, **options):
            return ghm_triton.ghmr_loss(deltas, *args, backend="triton", **options)

        averaged = dict(momentum=0.75, running_counts=state)
        mmdet = dict(momentum=0.75, running_counts=acc_sum, variant="mmdet")
        yield f"{name} class index", lambda: ghmc(labels, **averaged).backward()
        yield f"{name} class index, anchor weight, mmdet", lambda: ghmc(labels, anchors, **mmdet).backward()
        yield f"{name} dense, element weight, sum", lambda: ghmc(dense, dense, reduction="sum").backward()
        yield f"{name} class index, none", lambda: ghmc(labels, reduction="none").sum().backward()
        yield (
            f"{name} class index, five levels",
            lambda: ghm_triton.ghmc_loss([x] * 5, [labels] * 5, backend="triton").backward(),
        )
        yield f"{name} deltas, element weight, mmdet", lambda: ghmr(aims, weights, variant="mmdet").backward()
        yield f"{name} deltas, none", lambda: ghmr(aims, reduction="none").sum().backward()
