"""Compiles every launch of tests/interp for a GPU that is not there, in place of interpreting it.

    python tests/aot/launches.py [sm_90] [PYTEST OPTION ...]

The gate compiles a few problems, each in all sizes; these are all the problems there are, some hundreds of kernels:
half an hour where none is cached. Nothing is computed, so the tests fail, which means nothing; what does not compile is
printed, with status 1.
"""

import importlib
import os
import pkgutil
import sys
from collections import defaultdict

# Kernels are compiled functions only if this is not set when they are defined.
os.environ.pop("TRITON_INTERPRET", None)

import gate
import pytest
import torch
import triton

import attnzoo.kernels
from attnzoo.kernels.fused import _launch


class Compiler:
    """A pytest plugin that compiles what is launched."""

    def __init__(self) -> None:
        self.launches = 0
        self.kernels: set[str] = set()
        self.failed: dict[str, list[str]] = defaultdict(list)
        self._test = ""

    def pytest_runtest_setup(self, item: pytest.Item) -> None:
        self._test = item.nodeid

    def run(self, launch: _launch.Launch, like: torch.Tensor) -> None:
        if not all(launch.grid):
            return
        self.launches += 1
        try:
            compiled = launch.kernel.warmup(**launch.arguments, grid=launch.grid, **launch.options)
            self.kernels.add(compiled.hash)
        except Exception as error:  # the compiler's own
            cause = error
            while cause.__cause__ is not None:
                cause = cause.__cause__
            self.failed[f"{launch.kernel.__name__}: {str(cause).strip().splitlines()[-1]}"].append(self._test)


def as_on_a_gpu(compiler: Compiler, target: str) -> None:
    """Ops take their kernels on tensors of the CPU, with the constants that a GPU's tensors get."""
    for package in (attnzoo.kernels.fused, attnzoo.kernels):
        for module in pkgutil.iter_modules(package.__path__):
            found = importlib.import_module(f"{package.__name__}.{module.name}")
            if hasattr(found, "why_not_fused"):
                found.why_not_fused = why_not_fused
    triton.runtime.driver.set_active(gate.StubDriver(target))
    _launch.FLOAT32_PRECISION = "ieee" if target.startswith("gfx") else "tf32x3"
    _launch.interpreted = lambda: False
    _launch.Launch.run = lambda launch, like: compiler.run(launch, like)
    # What tests/interp asks for.
    os.environ["TRITON_INTERPRET"] = "1"


def why_not_fused(x: torch.Tensor, widths: tuple[int, ...] = ()) -> str | None:
    most = _launch.MAX_WIDTH.get(x.dtype, 0)
    return "no kernel" if not most or any(n > most for n in widths) else None


def main(arguments: list[str]) -> int:
    target = arguments.pop(0) if arguments and arguments[0] in gate.TARGETS else "sm_90"
    compiler = Compiler()
    as_on_a_gpu(compiler, target)
    pytest.main(["tests/interp", "--quiet", "--tb=no", "-p", "no:cacheprovider", *arguments], plugins=[compiler])
    for problem, tests in compiler.failed.items():
        sys.stdout.write(f"{problem} ({len(tests)} launches, the first in {tests[0]})\n")
    failed = sum(map(len, compiler.failed.values()))
    sys.stdout.write(f"{target}: {compiler.launches} launches, {len(compiler.kernels)} kernels, {failed} at fault\n")
    return 1 if failed or not compiler.launches else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
