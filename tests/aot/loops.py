"""Prints how many instructions the fused kernels' loops take on an NVIDIA GPU, by kind, from their machine code.

    python tests/aot/loops.py linear --width 32

Where there is no GPU to time on, the instructions that a program issues are the nearest thing to its time: a
multiprocessor issues four a cycle, whatever memory does.
"""

import argparse
import re
import sys
from collections import Counter

import gate
import triton

from attnzoo.kernels.fused._launch import MAX_WIDTH

_KINDS = {
    "matrix": ("HMMA", "HGMMA", "WGMMA", "UTCHMMA", "UTCQMMA"),
    "float": ("FADD", "FMUL", "FFMA", "FMNMX", "FSEL", "FSETP", "F2F", "FSET", "HADD", "HMUL", "HFMA"),
    "special": ("MUFU",),
    "shuffle": ("SHFL",),
    "shared": ("LDS", "STS"),
    "global": ("LDG", "STG", "LD.", "ST."),
}


def kind_of(opcode: str) -> str:
    return next((kind for kind, starts in _KINDS.items() if opcode.startswith(starts)), "other")


def read(sass: str) -> tuple[list[str], list[tuple[int, int]]]:
    """The opcodes of a kernel, and its loops as (first, past the last): jumps back to a label."""
    opcodes: list[str] = []
    labels: dict[str, int] = {}
    loops = []
    for line in sass.splitlines():
        if label := re.fullmatch(r"(\w+):", line):
            labels[label[1]] = len(opcodes)
        elif found := re.match(r"\S+\t\s*(?:@!?U?P\w+ )?\s*([A-Z][\w.]*)(.*);", line):
            opcodes.append(found[1])
            target = found[2].split()[-1] if found[2] else ""
            # The last jump of a kernel is to itself.
            if found[1].startswith("BRA") and labels.get(target, len(opcodes)) < len(opcodes) - 1:
                loops.append((labels[target], len(opcodes)))
    return opcodes, loops


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("cases", nargs="*", metavar="CASE", help="of the table; default all")
    parser.add_argument("--dtype", choices=list(gate.DTYPES), default="bf16")
    parser.add_argument("--width", type=int, default=32, help="channels of a head")
    parser.add_argument("--target", choices=[name for name in gate.TARGETS if name.startswith("sm")], default="sm_90")
    args = parser.parse_args(arguments)
    known = [case.name for case in gate.cases()]
    if unknown := [name for name in args.cases if name not in known]:
        parser.error(f"no case {unknown[0]!r}, only {', '.join(known)}")
    most = MAX_WIDTH[gate.DTYPES[args.dtype]]
    if not 1 <= args.width <= most:
        parser.error(f"--width must be from 1 to {most} in {args.dtype}, got {args.width}")
    triton.runtime.driver.set_active(gate.StubDriver(args.target))
    for case in gate.cases():
        if args.cases and case.name not in args.cases:
            continue
        for launch in case.build(gate.DTYPES[args.dtype], args.width):
            compiled = launch.kernel.warmup(**launch.arguments, grid=launch.grid, **launch.options)
            opcodes, loops = read(compiled.asm["sass"])
            line = f"{case.name} {launch.kernel.__name__}: {launch.num_warps} warps of {len(opcodes)} instructions"
            for first, last in loops:
                kinds = Counter(kind_of(opcode) for opcode in opcodes[first:last])
                line += f"\n  loop of {last - first}: " + ", ".join(f"{n} {kind}" for kind, n in kinds.most_common())
            sys.stdout.write(line + "\n")
            sys.stdout.flush()
    return 0


if __name__ == "__main__":
    sys.exit(main())
