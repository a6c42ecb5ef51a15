"""Runs a quick part of the tests on every supported Python that is here, with the oldest and newest torch and timm.

``make matrix`` runs it. Exit status: 0 where every present cell passed, 1 where one failed, 2 where none is present.
Cells are virtual environments in build/matrix, kept for the next run.
"""

import argparse
import os
import shutil
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
CELLS = ROOT / "build" / "matrix"
PYTHONS = ("3.10", "3.11", "3.12", "3.13")
# The floors of pyproject.toml; the newest are what pip finds.
OLDEST = ("torch==2.10.0", "torchvision==0.25.0", "timm==1.0.26", "safetensors==0.5.0", "pyyaml==6.0.1", "rich==13.0.0")
NEWEST = ("torch", "torchvision", "timm", "safetensors", "pyyaml", "rich")
# Whole: ops, of which torch.compile makes something else in each, and timm's backbones; of models and commands a few.
WHOLE = ("tests/kernels", "tests/zoo/test_dense_timm.py")
REST = ("tests/zoo/test_contract.py", "tests/weights/test_reader.py", "tests/tools/test_list_info.py")
RUNS = (WHOLE, (*REST, "-k", "structure or heads or reader or list_info"))
TOOLS = ("pytest>=8.2", "pytest-timeout>=2.3", "hypothesis>=6.100", "tomli; python_version < '3.11'")


def interpreter(version: str) -> Path | None:
    """A Python of that version: on the path, or one that pyenv or uv manages."""
    names = [shutil.which(f"python{version}")]
    pyenv = Path(os.environ.get("PYENV_ROOT", Path.home() / ".pyenv")) / "versions"
    names += sorted(pyenv.glob(f"{version}.*/bin/python{version}"), reverse=True)
    if shutil.which("uv"):
        found = subprocess.run(["uv", "python", "find", version], capture_output=True, text=True, check=False)
        names += found.stdout.split()
    for name in filter(None, names):
        probe = [name, "-c", "import sys, venv; print('%d.%d' % sys.version_info[:2])"]
        ran = subprocess.run(probe, capture_output=True, text=True, check=False)
        if ran.returncode == 0 and ran.stdout.strip() == version:
            return Path(name)
    return None


def run_cell(python: Path, version: str, age: str) -> bool:
    """Installs one cell where it is not yet, and runs the tests in it."""
    cell = CELLS / f"py{version}-{age}"
    packages = (OLDEST if age == "oldest" else NEWEST) + TOOLS
    installed = cell / "installed"
    if not installed.exists() or installed.read_text() != "\n".join(packages):
        shutil.rmtree(cell, ignore_errors=True)
        pip = [str(cell / "bin" / "python"), "-m", "pip", "install", "--quiet"]
        steps = (
            [str(python), "-m", "venv", str(cell)],
            [*pip, *packages],
            [*pip, "--no-deps", "--editable", str(ROOT)],
        )
        for step in steps:
            if subprocess.run(step, check=False).returncode:
                return False
        installed.write_text("\n".join(packages))
    pytest = [str(cell / "bin" / "python"), "-m", "pytest", "-q", "-p", "no:cacheprovider", "--tb=short"]
    return all(subprocess.run([*pytest, *tests], cwd=ROOT, check=False).returncode == 0 for tests in RUNS)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--python", action="append", choices=PYTHONS, help="only this version; may be repeated")
    parser.add_argument("--age", action="append", choices=("oldest", "newest"), help="only these packages")
    args = parser.parse_args()
    outcomes: dict[str, str] = {}
    for version in args.python or PYTHONS:
        python = interpreter(version)
        for age in args.age or ("oldest", "newest"):
            passed = None if python is None else run_cell(python, version, age)
            outcomes[f"Python {version}, {age}"] = {None: "absent", True: "passed", False: "FAILED"}[passed]
    sys.stdout.write("\n".join(f"{cell}: {outcome}" for cell, outcome in outcomes.items()) + "\n")
    if set(outcomes.values()) == {"absent"}:
        return 2
    return int("FAILED" in outcomes.values())


if __name__ == "__main__":
    sys.exit(main())
