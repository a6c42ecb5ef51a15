"""Which versions of its dependencies the package runs with: the one place that compares them."""

import importlib
import importlib.util
import re
import sys
from functools import cache
from importlib import metadata
from pathlib import Path

# As in pyproject.toml, which only an installer reads: what is installed may have changed since.
LEAST = {"torch": "2.10", "torchvision": "0.25", "timm": "1.0.26", "safetensors": "0.5"}
LEAST_TRITON = "3.6"
_COMMAND_MODULES = ("attnzoo", "attnzoo.tools.main")
_TRITON_PACKAGES = ("triton", "pytorch-triton", "pytorch-triton-rocm", "triton-windows")


def check_versions() -> None:
    """Look at the versions of everything that the package cannot do without, before any of it is imported.

    Raises:
        ImportError: one line that names each package that is missing or too old, and the command that mends it.
        SystemExit: the same, as bad input, in the ``attnzoo`` command.
    """
    problems = {name: problem for name, least in LEAST.items() if (problem := _problem(name, least))}
    if problems:
        wanted = " ".join(f"'{name}>={LEAST[name]}'" for name in problems)
        said = f"attnzoo cannot run: {'; '.join(problems.values())}; pip install --upgrade {wanted}"
        if is_command():
            sys.stderr.write(f"{said}\n")
            raise SystemExit(2)
        raise ImportError(said)


def is_command() -> bool:
    """Whether this process is the ``attnzoo`` command, and not a program that imports the package."""
    if not sys.argv:
        return False
    if sys.argv[0] == "-m":  # and what follows it is not in sys.argv while the package is imported
        return any(module in _COMMAND_MODULES for module in sys.orig_argv[-len(sys.argv) :][:1])
    return Path(sys.argv[0]).stem == "attnzoo"


@cache
def triton_problem() -> str | None:
    """Why no Triton kernel can run here, whatever the device; None where one can. Then PyTorch's operators run."""
    if importlib.util.find_spec("triton") is None:
        return "Triton is not installed"
    installed = next((version for name in _TRITON_PACKAGES if (version := _version(name))), None)
    if installed and _numbers(installed) < _numbers(LEAST_TRITON):
        return f"Triton {installed} is installed, {LEAST_TRITON} or later is needed"
    try:
        importlib.import_module("triton.language")
    # A Triton built for another PyTorch or Python fails in whatever way its first import does.
    except Exception as error:
        return f"Triton cannot be imported ({type(error).__name__}: {' '.join(str(error).split())})"
    return None


def _problem(name: str, least: str) -> str | None:
    if importlib.util.find_spec(name) is None:
        return f"{name} is not installed"
    installed = _version(name)
    if installed and _numbers(installed) < _numbers(least):
        return f"{name} {installed} is installed, {least} or later is needed"
    return None


def _version(name: str) -> str | None:
    """What the package says of itself, or None where it came without metadata (a source tree on the path)."""
    try:
        return metadata.version(name)
    except metadata.PackageNotFoundError:
        return None


def _numbers(version: str) -> tuple[int, ...]:
    """``2.10.0a0+cu130`` → (2, 10, 0); pre-releases count as what they precede."""
    match = re.match(r"\d+(\.\d+)*", version)
    return tuple(map(int, match[0].split("."))) if match else ()
