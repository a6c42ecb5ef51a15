"""Compiles every fused kernel for GPUs that are not there and says what each takes of them.

    python tests/aot/gate.py            what every test run compiles, compared with results/aot.json
    python tests/aot/gate.py --full     every dtype and head width as well
    python tests/aot/gate.py --full --write [MODULE...]    and writes the table

A stub stands in for the driver, so a launch on meta tensors compiles what it would on a GPU. The kernels are those of
the ``CASES`` of every module in kernels/fused/.
"""

from __future__ import annotations

import argparse
import importlib
import json
import pkgutil
import re
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import triton
from triton.backends.compiler import GPUTarget
from triton.backends.driver import DriverBase

import attnzoo.kernels.fused
from attnzoo.kernels.fused import _launch

TABLE = Path(attnzoo.__file__).parent / "results" / "aot.json"
TARGETS = {
    "sm_80": GPUTarget("cuda", 80, 32),
    "sm_90": GPUTarget("cuda", 90, 32),
    "sm_100": GPUTarget("cuda", 100, 32),
    "gfx942": GPUTarget("hip", "gfx942", 64),
}
# Shared memory of a block, in bytes.
SHARED = {"sm_80": 163 << 10, "sm_90": 227 << 10, "sm_100": 227 << 10, "gfx942": 64 << 10}
DTYPES = {"bf16": torch.bfloat16, "fp32": torch.float32, "fp16": torch.float16}
_INSTRUCTIONS = ("wgmma", "tcgen05.mma", "mma.sync", "cp.async")


class StubDriver(DriverBase):
    """A driver of no device. Every target is a device of its own: binaries are cached by device."""

    def __init__(self, target: str) -> None:
        self.target, self.utils = target, None

    def get_current_target(self) -> GPUTarget:
        return TARGETS[self.target]

    def get_current_device(self) -> int:
        return list(TARGETS).index(self.target)

    def get_current_stream(self, device: int | None = None) -> int:
        return 0

    def get_active_torch_device(self) -> torch.device:
        return torch.device("meta")

    def get_benchmarker(self) -> Any:
        return lambda *args, **kwargs: [1.0] * 3

    def map_python_to_cpp_type(self, ty: str) -> str:
        return ty

    @classmethod
    def is_active(cls) -> bool:
        return False


@dataclass(frozen=True)
class Row:
    """A kernel compiled for a target: its name in the table, what it takes, and what is wrong with that."""

    name: str
    found: dict[str, Any]
    faults: list[str]


def cases(modules: list[str] | None = None) -> list[_launch.Case]:
    """The cases of all fused modules, or of those named."""
    names = modules or [m.name for m in pkgutil.iter_modules(attnzoo.kernels.fused.__path__) if m.name[0] != "_"]
    return [case for name in names for case in importlib.import_module(f"attnzoo.kernels.fused.{name}").CASES]


def full_sweep(case: _launch.Case) -> list[tuple[str, int]]:
    """Every (dtype, channels) of a case that the kernels take."""
    return [(d, n) for d in DTYPES for n in case.widths if n <= _launch.MAX_WIDTH[DTYPES[d]]]


def compile_case(case: _launch.Case, dtype: str, width: int, target: str) -> Iterator[Row]:
    """Compiles each launch of a case for a target."""
    triton.runtime.driver.set_active(StubDriver(target))
    precision = _launch.FLOAT32_PRECISION
    _launch.FLOAT32_PRECISION = "ieee" if target.startswith("gfx") else "tf32x3"
    try:
        launches = list(case.build(DTYPES[dtype], width))
    finally:
        _launch.FLOAT32_PRECISION = precision
    seen: dict[str, int] = {}
    for launch in launches:
        kernel = launch.kernel.__name__
        seen[kernel] = seen.get(kernel, 0) + 1
        ordinal = f"#{seen[kernel]}" if seen[kernel] > 1 else ""
        name = f"{case.name} {kernel}{ordinal} {dtype} {width} {target}"
        try:
            compiled = launch.kernel.warmup(**launch.arguments, grid=launch.grid, **launch.options)
        except Exception as error:
            yield Row(name, {}, [f"does not compile: {str(error).strip().splitlines()[-1]}"])
            continue
        found = _resources(compiled, target)
        yield Row(name, found, _faults(found, launch, target, case.allowed.get(f"{kernel} {dtype} {width}")))


def _resources(compiled: Any, target: str) -> dict[str, Any]:
    if target.startswith("gfx"):
        usage = dict(re.findall(r"\.(vgpr_count|vgpr_spill_count):\s+(\d+)", compiled.asm["amdgcn"]))
        registers, spilled = int(usage["vgpr_count"]), 4 * int(usage["vgpr_spill_count"])
        return {"registers": registers, "spilled": spilled, "shared": compiled.metadata.shared}
    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        file.write(compiled.asm["cubin"])
        file.flush()
        command = [triton.knobs.nvidia.cuobjdump.path, "-res-usage", file.name]
        log = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    # No kernel has local arrays: what lies on the stack is spilled.
    registers, stack = re.search(r"REG:(\d+) STACK:(\d+)", log).groups()
    used = [name for name in _INSTRUCTIONS if name in compiled.asm["ptx"]]
    tensor_memory = getattr(compiled.metadata, "tmem_size", None) or 0
    return {
        "registers": int(registers),
        "spilled": int(stack),
        "shared": compiled.metadata.shared,
        **({"tensor_memory": tensor_memory} if tensor_memory else {}),
        "uses": " ".join(used),
    }


def _faults(found: dict[str, Any], launch: _launch.Launch, target: str, allowed: str | None) -> list[str]:
    faults = []
    if found["spilled"] and not allowed:
        faults.append(f"spills {found['spilled']} bytes")
    if found["shared"] > SHARED[target]:
        faults.append(f"takes {found['shared']} bytes of shared memory, a block has {SHARED[target]}")
    if found.get("tensor_memory", 0) > 512:
        faults.append(f"takes {found['tensor_memory']} columns of tensor memory, there are 512")
    if target.startswith("sm") and launch.num_warps * 32 * found["registers"] > 65536:
        faults.append(f"takes {found['registers']} registers in each of {launch.num_warps} warps")
    return faults


def read_table() -> dict[str, Any]:
    """``{"triton": version, "kernels": {row: what it takes}}``."""
    return json.loads(TABLE.read_text()) if TABLE.exists() else {"triton": None, "kernels": {}}


def compare(row: Row, table: dict[str, Any]) -> list[str]:
    """How a row differs from the table; another Triton's table says nothing about this one's code."""
    listed, found = table["kernels"].get(row.name, {}), row.found
    if "uses" not in found:
        # AMD's compiler assigns a few registers more or fewer from one run to the next.
        listed, found = ({k: v for k, v in each.items() if k != "registers"} for each in (listed, found))
    if table["triton"] != triton.__version__ or listed == found:
        return []
    return [f"takes {found}, the table says {listed or 'nothing'}"]


def write_table(rows: list[Row]) -> None:
    """Replaces these rows in the table."""
    table = read_table()
    kept = table["kernels"] if table["triton"] == triton.__version__ else {}
    merged = dict(sorted({**kept, **{row.name: row.found for row in rows}}.items()))
    lines = ",\n".join(f"  {json.dumps(name)}: {json.dumps(found)}" for name, found in merged.items())
    TABLE.parent.mkdir(exist_ok=True)
    part = TABLE.with_suffix(".part")
    part.write_text(f'{{\n "triton": "{triton.__version__}",\n "kernels": {{\n{lines}\n }}\n}}\n')
    part.replace(TABLE)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("modules", nargs="*", metavar="MODULE", help="of kernels/fused/; default all")
    parser.add_argument("--full", action="store_true", help="every dtype and head width")
    parser.add_argument("--write", action="store_true", help="put the rows into the table instead of comparing")
    parser.add_argument("--target", choices=list(TARGETS), nargs="*", default=list(TARGETS))
    args = parser.parse_args()
    rows, table, failed = [], read_table(), 0
    for case in cases(args.modules):
        sizes = full_sweep(case) if args.full else case.every_run
        for dtype, width in sizes:
            for target in args.target:
                for row in compile_case(case, dtype, width, target):
                    faults = row.faults + ([] if args.write or not row.found else compare(row, table))
                    failed += bool(faults)
                    sys.stdout.write(f"{row.name}: {'; '.join(faults) or row.found}\n")
                    sys.stdout.flush()
                    rows.append(row)
    if args.write:
        write_table([row for row in rows if row.found])
    sys.stdout.write(f"{len(rows)} kernels, {failed} at fault\n")
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
