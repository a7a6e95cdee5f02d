"""Compiles, without a GPU, every kernel that a few calls of the public functions launch, and prints what came out.

Run as `python compile_ahead.py cuda 90` in a process of its own, without TRITON_INTERPRET. One JSON list: a launch each,
with name, inputs' dtype, registers, spills, widths of global accesses in bytes, and the assembly's atomic instructions.
"""

import json
import re
import subprocess
import sys
import tempfile
from pathlib import Path

import torch
import triton
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource
from triton.runtime.jit import JITFunction

import ghm_triton
from ghm_triton.kernels import launch

TYPES = {
    torch.float32: "*fp32",
    torch.float16: "*fp16",
    torch.bfloat16: "*bf16",
    torch.int64: "*i64",
    torch.int32: "*i32",
    torch.uint8: "*u8",
}
POINTER_IS_ALIGNED = [["tt.divisibility", 16]]


def collect_launches(call):
    """The (kernel, arguments, options) of every `kernel[grid](...)` that call() makes; nothing runs."""
    launches = []

    def record(self, *args, grid, warmup=False, **kwargs):
        names = [parameter.name for parameter in self.params]
        arguments = dict(zip(names, args)) | {name: value for name, value in kwargs.items() if name in names}
        launches.append((self, arguments, {name: value for name, value in kwargs.items() if name not in names}))

    run, JITFunction.run = JITFunction.run, record
    try:
        call()
    finally:
        JITFunction.run = run
    return launches


def compile_launch(kernel, arguments, options, target):
    signature, constants, attributes = {}, {}, {}
    for index, parameter in enumerate(kernel.params):
        value = arguments[parameter.name]
        if parameter.is_constexpr or value is None:
            signature[parameter.name] = "constexpr"
            constants[parameter.name] = value
        elif isinstance(value, torch.Tensor):
            signature[parameter.name] = TYPES[value.dtype]
            attributes[(index,)] = POINTER_IS_ALIGNED
        else:
            signature[parameter.name] = "fp32" if isinstance(value, float) else "i32"
    source = ASTSource(fn=kernel, signature=signature, constexprs=constants, attrs=attributes)
    return triton.compile(source, target=target, options=options)


def describe_cuda(compiled):
    tools = Path(triton.__file__).parent / "backends" / "nvidia" / "bin"
    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        file.write(compiled.asm["cubin"])
        file.flush()
        usage = subprocess.run([tools / "cuobjdump", "-res-usage", file.name], capture_output=True, text=True, check=True)
    ptx = compiled.asm["ptx"]
    widths = {}
    for kind, vector, bits in re.findall(r"\b(ld|st)\.global(?:\.\w+)*?(?:\.v(\d))?\.b(\d+)", ptx):
        widths.setdefault(kind, set()).add(int(vector or 1) * int(bits) // 8)
    return {
        "registers": int(re.search(r"REG:(\d+)", usage.stdout).group(1)),
        "spills": int(re.search(r"STACK:(\d+)", usage.stdout).group(1)) + int(re.search(r"LOCAL:(\d+)", usage.stdout).group(1)),
        "load": max(widths["ld"]),
        "store": max(widths["st"]),
        "atomics": re.findall(r"\b(?:atom|red)\.global[.\w]*", ptx),
    }


def describe_hip(compiled):
    assembly = compiled.asm["amdgcn"]
    width = {"": 4, "x2": 8, "x3": 12, "x4": 16}
    # scalar registers "spill" into lanes of a vector register; what reaches memory takes a private segment
    spills = re.findall(r"\.(?:vgpr_spill_count|private_segment_fixed_size):\s*(\d+)", assembly)
    found = {
        kind: [width[w] for w in re.findall(rf"(?:global|buffer)_{kind}_dword(x\d)?\b", assembly)] for kind in ("load", "store")
    }
    return {
        "registers": int(re.search(r"\.vgpr_count:\s*(\d+)", assembly).group(1)),
        "spills": sum(map(int, spills)),
        "load": max(found["load"]),
        "store": max(found["store"]),
        "atomics": re.findall(r"(?:global|buffer|flat)_atomic\w*", assembly),
    }


def calls(dtype):
    """Calls that between them launch every kernel, in the configurations that detectors use."""
    options = dict(backend="triton", bins=30, momentum=0.75)
    x = torch.zeros(4096, 80, dtype=dtype, requires_grad=True)
    labels, by_anchor, by_element = torch.zeros(4096, dtype=torch.int64), torch.zeros(4096), torch.zeros(4096, 80)
    state, mmdet_state = torch.zeros(31), torch.zeros(30)
    deltas = torch.zeros(4096, 4, dtype=dtype, requires_grad=True)
    targets, delta_weights = torch.zeros(4096, 4), torch.zeros(4096, 4)

    yield lambda: ghm_triton.ghmc_loss(x, labels, running_counts=state, **options).backward()
    yield lambda: ghm_triton.ghmc_loss(
        x, labels, by_anchor, running_counts=mmdet_state, variant="mmdet", **options
    ).backward()
    yield lambda: ghm_triton.ghmc_loss(x, by_element, by_element, reduction="sum", backend="triton").backward()
    yield lambda: ghm_triton.ghmc_loss([x] * 5, [labels] * 5, backend="triton", reduction="none")[0].sum().backward()
    yield lambda: ghm_triton.ghmr_loss(deltas, targets, delta_weights, variant="mmdet", backend="triton").backward()
    yield lambda: ghm_triton.ghmr_loss(deltas, targets, backend="triton", reduction="none").sum().backward()


def main():
    backend, architecture = sys.argv[1], sys.argv[2]
    hip = backend == "hip"
    target = GPUTarget(backend, architecture if hip else int(architecture), 64 if hip else 32)
    if hip:
        launch.ACCUMULATE_BLOCK = 8 * target.warp_size  # as the launcher has it in a ROCm build of PyTorch
    triton.knobs.runtime.interpret = True  # lets the public functions take CPU tensors; the launches are only recorded
    described = []
    seen = set()
    for dtype in (torch.float32, torch.bfloat16):
        for number, call in enumerate(calls(dtype)):
            launches = collect_launches(call)
            for kernel, arguments, options in launches:
                key = (kernel.fn.__name__, str({k: v.dtype if isinstance(v, torch.Tensor) else v for k, v in arguments.items()}))
                if key in seen:
                    continue
                seen.add(key)
                compiled = compile_launch(kernel, arguments, options, target)
                described.append(
                    {"kernel": kernel.fn.__name__, "dtype": str(dtype), "call": number, "launches": len(launches)}
                    | (describe_hip if hip else describe_cuda)(compiled)
                )
    print(json.dumps(described))


if __name__ == "__main__":
    main()
