"""Reads the machine code of a kernel: resources, accesses, and instructions on its shortest and longest way.

A way leads through the loop that loads the input, or through the whole kernel if there is no such loop. Whole programs
take a branch together, so the shortest way is that of an easy tile and the longest that of a tile that needs every
branch. Inner loops (over the regions present) count once.
"""

import itertools
import re
import subprocess
import tempfile
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path

import triton
from triton.compiler import CompiledKernel

CLASSES = ("fp32", "integer", "special", "memory", "shared", "other")
_SASS = {
    "fp32": "FADD FMUL FFMA FADD32I FMUL32I FFMA32I FADD2 FMUL2 FFMA2 IMAD",  # the multiply-add pipe takes IMAD too
    "special": "MUFU I2F F2I F2F FRND I2FP POPC FLO",
    "memory": "LDG STG LD ST ATOMG RED REDG LDL STL",
    "shared": "LDS STS ATOMS SHFL REDUX CREDUX VOTE VOTEU LDSM STSM BAR",
    "other": "BRA EXIT BSSY BSYNC WARPSYNC S2R S2UR CS2R LDC LDCU ULDC NOP RET CALL YIELD MEMBAR BREAK",
}
_CLASS_OF_SASS = {op: name for name, ops in _SASS.items() for op in ops.split()}
_SPECIAL_AMD = ("v_exp", "v_log", "v_rcp", "v_rsq", "v_sqrt", "v_sin", "v_cos")


@dataclass
class Block:
    """A basic block: its instructions by class, its widest global accesses, and the blocks that may follow."""

    start: int
    instructions: Counter = field(default_factory=Counter)
    load: int = 0
    store: int = 0
    targets: list[int] = field(default_factory=list)


@dataclass
class MachineCode:
    """What a kernel uses: sizes in bytes, registers per thread, instructions per warp."""

    registers: int
    spills: int
    shared: int
    load: int
    store: int
    atomics: int
    shortest: Counter
    longest: Counter
    depth: int


def read(compiled: CompiledKernel) -> MachineCode:
    """Read the machine code of a kernel compiled for CUDA or HIP."""
    if "cubin" in compiled.asm:
        usage, code = (_dump(compiled, option) for option in ("-res-usage", "-sass"))
        instructions = _parse_sass(code)
        registers = int(re.search(r"REG:(\d+)", usage).group(1))
        spills = sum(int(re.search(rf"{name}:(\d+)", usage).group(1)) for name in ("STACK", "LOCAL"))
    else:
        code = compiled.asm["amdgcn"]
        instructions = _parse_amdgcn(code)
        registers = int(re.search(r"\.vgpr_count:\s*(\d+)", code).group(1))
        # scalar registers spill into lanes of a vector register; what reaches memory needs a private segment
        spills = sum(map(int, re.findall(r"\.(?:vgpr_spill_count|private_segment_fixed_size):\s*(\d+)", code)))
    blocks = _blocks(instructions)
    loop, depth = _input_loop(blocks)
    shortest, longest = _ways(blocks, loop)
    return MachineCode(
        registers=registers,
        spills=spills,
        shared=compiled.metadata.shared,
        load=max(block.load for block in blocks),
        store=max(block.store for block in blocks),
        atomics=sum(kind == "atomic" for _, _, kind, *_ in instructions),
        shortest=shortest,
        longest=longest,
        depth=depth,
    )


def _dump(compiled, option):
    tool = Path(triton.__file__).parent / "backends" / "nvidia" / "bin" / "cuobjdump"
    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        file.write(compiled.asm["cubin"])
        file.flush()
        return subprocess.run([tool, option, file.name], capture_output=True, text=True, check=True).stdout


def _parse_sass(code):
    """(address, class, kind, bytes, branch target or None, whether control may fall through) of each instruction."""
    parsed = []
    for line in code.splitlines():
        match = re.match(r"\s+/\*([0-9a-f]{4,})\*/\s+(@!?U?P\w+\s+)?([A-Z][\w.]*)\s*(.*?);", line)
        if not match or match.group(3) == "NOP":
            continue
        address, predicate, opcode, operands = match.groups()
        base, *modifiers = opcode.split(".")
        width = next((int(m) // 8 for m in modifiers if m in ("64", "128", "256")), 4)
        kind = {"LDG": "load", "STG": "store", "ATOMG": "atomic", "RED": "atomic", "REDG": "atomic"}.get(base)
        target, falls = None, not (base in ("EXIT", "RET") and not predicate)
        if base == "BRA" and "DIV" not in modifiers:  # BRA.DIV leaves only after a warp diverged, which never happens
            *conditions, goal = operands.split(",")
            target = int(re.search(r"0x([0-9a-f]+)", goal).group(1), 16)
            falls = bool(predicate or conditions)
        name = _CLASS_OF_SASS.get(base, "other" if base.startswith("U") or base == "R2UR" else "integer")
        parsed.append((int(address, 16), name, kind, width, target, falls))
    return parsed


def _parse_amdgcn(code):
    labels, lines, parsed = {}, [], []
    for line in code.split(".Lfunc_end")[0].splitlines():
        if label := re.match(r"(\.LBB\w+):", line):
            labels[label.group(1)] = len(lines)
        elif instruction := re.match(r"\t((?:v|s|global|buffer|flat|ds)_\w+)\s*([^;]*)", line):
            lines.append(instruction.groups())
    for address, (opcode, operands) in enumerate(lines):
        width = 4 * int((re.search(r"dwordx(\d)", opcode) or [0, 1])[1])
        memory = opcode.startswith(("global_", "buffer_", "flat_"))
        kind = next((k for k in ("load", "store", "atomic") if memory and f"_{k}" in opcode), None)
        target, falls = None, opcode != "s_endpgm"
        if opcode.startswith(("s_branch", "s_cbranch")):
            target, falls = labels[operands.strip()], opcode != "s_branch"
        if memory:
            name = "memory"
        elif opcode.startswith("ds_") or "dpp" in operands or "swizzle" in opcode:
            name = "shared"
        elif opcode.startswith("s_"):
            name = "other"  # the scalar unit, beside the vector one
        elif opcode.startswith(_SPECIAL_AMD):
            name = "special"
        else:
            name = "fp32" if "_f32" in opcode and "cmp" not in opcode else "integer"
        parsed.append((address, name, kind, width, target, falls))
    return parsed


def _blocks(instructions):
    starts = {instructions[0][0]} | {target for *_, target, _ in instructions if target is not None}
    starts |= {after[0] for before, after in itertools.pairwise(instructions) if before[4] is not None or not before[5]}
    blocks = []
    for position, (address, name, kind, width, target, falls) in enumerate(instructions):
        if address in starts:
            blocks.append(Block(address))
        block = blocks[-1]
        block.instructions[name] += 1
        if kind in ("load", "store"):
            setattr(block, kind, max(getattr(block, kind), width))
        if target is not None:
            block.targets.append(target)
        following = instructions[position + 1][0] if position + 1 < len(instructions) else None
        if following in starts and falls:
            block.targets.append(following)
    return blocks


def _input_loop(blocks):
    """((first, last) index of the shortest loop with one of the widest loads, or None; how many loops it is in).

    A loop is in itself. A jump back to code that does not lead to the jump again is no loop: masked loads on AMD may be
    laid out so.
    """
    at = {block.start: index for index, block in enumerate(blocks)}
    widest = max(block.load for block in blocks)
    loops = {
        (at[target], index)
        for index, block in enumerate(blocks)
        for target in block.targets
        if target in at and at[target] <= index and _leads_to(blocks, at, at[target], index)
    }
    loading = [loop for loop in loops if any(block.load == widest for block in blocks[loop[0] : loop[1] + 1])]
    if not loading:
        return None, 0
    first, last = min(loading, key=lambda loop: loop[1] - loop[0])
    starts = {start for start, end in loops if start <= first and end >= last}  # two jumps back to one start: one loop
    return (first, last), len(starts)


def _leads_to(blocks, at, start, goal):
    """Whether control can get from one block to another, through blocks between them in the code."""
    seen, ahead = set(), [start]
    while ahead:
        index = ahead.pop()
        if index == goal:
            return True
        if start <= index <= goal and index not in seen:
            seen.add(index)
            ahead += [at[target] for target in blocks[index].targets if target in at]
    return False


def _ways(blocks, loop):
    """Instructions of the shortest and longest way forward through a widest load (and, without a loop, store).

    If these lie on different ways, as masked accesses may, all ways are taken.
    """
    first, last = loop or (0, len(blocks) - 1)
    inside = blocks[first : last + 1]
    needs = [max(block.load for block in inside)]
    if loop is None:
        needs.append(max(block.store for block in inside))
    at = {block.start: index for index, block in enumerate(inside)}
    ways = [{} for _ in inside]  # by the accesses passed so far: the cheapest and dearest counts
    ends = []
    ways[0][(False,) * len(needs)] = (Counter(), Counter())
    for index, block in enumerate(inside):
        for passed, (cheap, dear) in ways[index].items():
            now = tuple(p or w == n for p, w, n in zip(passed, (block.load, block.store), needs))
            costs = (cheap + block.instructions, dear + block.instructions)
            following = [at[target] for target in block.targets if at.get(target, -1) > index]
            if index == len(inside) - 1 or not following:
                ends.append((now, costs))
            for target in following:
                old = ways[target].get(now)
                ways[target][now] = (
                    costs
                    if old is None
                    else (min(old[0], costs[0], key=Counter.total), max(old[1], costs[1], key=Counter.total))
                )
    complete = [costs for now, costs in ends if all(now)] or [costs for _, costs in ends]
    return min((c for c, _ in complete), key=Counter.total), max((d for _, d in complete), key=Counter.total)
