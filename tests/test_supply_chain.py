"""What is built and what it is built with: the wheel, the locked environment, the verdict of make audit."""

import email
import json
import os
import re
import shutil
import subprocess
import sys
import tarfile
import zipfile
from pathlib import Path

import pytest
from audit import locked, verdict
from matrix import OLDEST

import attnzoo

ROOT = Path(attnzoo.__file__).parent
BUILD = """
import shutil, sys
for name in ("cc", "gcc", "g++", "c++", "clang", "nvcc"):
    assert shutil.which(name) is None, name
from setuptools import build_meta
out = sys.argv[1]  # setuptools puts arguments of its own there
build_meta.build_wheel(out)
build_meta.build_sdist(out)
"""
COPIED = (
    "*.py",
    "kernels",
    "layers",
    "weights",
    "zoo",
    "tools",
    "configs",
    "pyproject.toml",
    "README.md",
    "LICENSE",
    "MANIFEST.in",
    "tests",
    "*.json",
)
USE = """
import timm, torch, attnzoo
print(attnzoo.__file__)
print(timm.create_model("nat_mini").eval()(torch.zeros(1, 3, 32, 32)).shape)
"""


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Wheel and source distribution, built from a copy where no compiler can be found."""
    source, out = tmp_path_factory.mktemp("source"), tmp_path_factory.mktemp("out")
    for pattern in COPIED:
        for path in ROOT.glob(pattern):
            (source / path.name).symlink_to(path)
    environment = {**os.environ, "PATH": str(Path(sys.executable).parent)}
    ran = subprocess.run(
        [sys.executable, "-c", BUILD, str(out)],
        cwd=source,
        env=environment,
        capture_output=True,
        text=True,
        check=False,
    )
    assert ran.returncode == 0, ran.stderr[-2000:]
    return {kind: next(out.glob(f"*{kind}")) for kind in (".whl", ".tar.gz")}


def test_the_wheel_installs_nothing_outside_the_package(built: dict[str, Path]) -> None:
    with zipfile.ZipFile(built[".whl"]) as wheel:
        names = wheel.namelist()
        top = {name.split("/")[0] for name in names}
        metadata = email.message_from_bytes(wheel.read(next(n for n in names if n.endswith("METADATA"))))
        assert b"Root-Is-Purelib: true" in wheel.read(next(n for n in names if n.endswith("/WHEEL")))
    assert built[".whl"].name.endswith("-py3-none-any.whl")
    assert top == {"attnzoo", f"attnzoo-{metadata['Version']}.dist-info"}
    assert {Path(name).suffix for name in names if name.startswith("attnzoo/")} <= {
        ".py",
        ".json",
        ".yaml",
        ".safetensors",
    }
    assert not [name for name in names if "tests/" in name or "/build/" in name]
    for name in (
        "__main__.py",
        "zoo/nat.py",
        "kernels/fused/neighborhood.py",
        "weights_manifest.json",
        "tools/main.py",
    ):
        assert f"attnzoo/{name}" in names


def test_the_wheel_works_where_there_is_no_compiler(built: dict[str, Path], tmp_path: Path) -> None:
    with zipfile.ZipFile(built[".whl"]) as wheel:
        wheel.extractall(tmp_path)
    environment = {**os.environ, "PATH": str(tmp_path / "none"), "PYTHONPATH": str(tmp_path)}
    ran = subprocess.run(
        [sys.executable, "-c", USE], cwd=tmp_path, env=environment, capture_output=True, text=True, check=False
    )
    assert ran.returncode == 0, ran.stderr[-2000:]
    assert ran.stdout.splitlines() == [str(tmp_path / "attnzoo" / "__init__.py"), "torch.Size([1, 1000])"]


def test_the_source_distribution_holds_the_code_and_no_surprise(built: dict[str, Path]) -> None:
    with tarfile.open(built[".tar.gz"]) as archive:
        names = [name.partition("/")[2] for name in archive.getnames()]
    assert {"pyproject.toml", "zoo/nat.py", "LICENSE"} <= set(names)
    assert not [name for name in names if name.startswith((".", "build/", "results/", "tests/"))]
    assert not [name for name in names if name.endswith(".pth")]


def test_the_hooks_run_where_nothing_is_activated(tmp_path: Path) -> None:
    """As CONTRIBUTING tells: ruff is in .venv and nowhere on the path."""
    (tmp_path / ".pre-commit-config.yaml").symlink_to(ROOT / ".pre-commit-config.yaml")
    (tmp_path / ".venv").mkdir()
    (tmp_path / ".venv/bin").symlink_to(Path(sys.executable).parent)
    (tmp_path / "a.py").write_text("x = 1\n")
    environment = {
        **os.environ,
        "PATH": str(Path(shutil.which("git")).parent),
        "PRE_COMMIT_HOME": str(tmp_path / "home"),
    }
    for command in (["git", "init", "-q"], ["git", "add", "a.py"]):
        subprocess.run(command, cwd=tmp_path, check=True)
    ran = subprocess.run(
        [tmp_path / ".venv/bin/pre-commit", "run", "--all-files"],
        cwd=tmp_path, env=environment, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert ran.returncode == 0, ran.stdout + ran.stderr
    assert ran.stdout.count("Passed") == 4


def test_every_locked_package_has_a_hash() -> None:
    lock = ROOT / "pylock.dev.toml"
    text = lock.read_text(encoding="utf-8")
    files = text.count("[[packages.wheels]]") + text.count("[packages.sdist]")
    assert files >= len(locked(lock)) > 100
    assert len(re.findall(r'^sha256 = "[0-9a-f]{64}"$', text, re.MULTILINE)) == files
    assert set(re.findall(r'^url = "(https://[^/]+/)', text, re.MULTILINE)) == {"https://files.pythonhosted.org/"}
    names = {package.split("==")[0] for package in locked(lock)}
    assert {"torch", "timm", "pytest", "pip-audit", "ruff"} <= names


def test_the_matrix_has_the_floors_of_the_package() -> None:
    text = (ROOT / "pyproject.toml").read_text(encoding="utf-8")
    for pin in OLDEST:
        name, version = pin.split("==")
        floor = re.search(rf'^    "{name}>=([\d.]+)",', text, re.MULTILINE)[1]
        assert (version + ".").startswith(floor + "."), pin


def _answer(*rows: dict) -> str:
    return json.dumps({"dependencies": list(rows)})


@pytest.mark.parametrize(
    ("run", "answer", "status", "line"),
    [
        (0, _answer({"name": "a", "version": "1", "vulns": []}), 0, "1 packages, no known vulnerability"),
        (1, _answer({"name": "a", "version": "1", "vulns": [{"id": "CVE-1"}]}), 1, "a 1: CVE-1"),
        (0, _answer({"name": "a", "skip_reason": "not found"}), 2, "no verdict"),
        (0, _answer(), 2, "no verdict"),
        (1, "", 2, "no advisories"),
    ],
)
def test_no_answer_is_no_clean_audit(run: int, answer: str, status: int, line: str) -> None:
    found, text = verdict(run, answer, expected=1)
    assert found == status
    assert line in text
