"""Rules of the layout: what is packaged, which folder may import which, and where checkpoints are opened."""

import ast
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

import attnzoo

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

ROOT = Path(attnzoo.__file__).parent
FOLDERS = ("kernels", "layers", "weights", "zoo", "tools")
SOURCES = [path for folder in FOLDERS for path in sorted((ROOT / folder).rglob("*.py"))]
MAY_IMPORT = {
    "kernels": {"kernels", "_requirements"},
    "layers": {"layers", "kernels"},
    "weights": {"weights"},
    "zoo": {"zoo", "layers", "kernels", "weights"},
    "tools": {"tools", "zoo", "layers", "kernels", "weights", "diffusion", "_version", "registry"},
}


def _imported(path: Path) -> set[str]:
    """The package's own folders that a file imports from, wherever in the file."""
    found = set()
    here = path.relative_to(ROOT).parent.parts
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.ImportFrom) and node.level:
            target = [*here[: len(here) - node.level + 1], *(node.module or "").split(".")]
            target = [part for part in target if part]
            found |= {target[0]} if target else {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and (node.module or "").split(".")[0] == "attnzoo":
            found |= {(node.module.split(".") + ["attnzoo"])[1]}
    return found


def test_every_folder_with_code_is_packaged() -> None:
    listed = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["tool"]["setuptools"]["packages"]
    folders = {".".join(["attnzoo", *path.parent.relative_to(ROOT).parts]) for path in SOURCES}
    assert sorted(listed) == sorted(folders | {"attnzoo"})


@pytest.mark.parametrize("folder", FOLDERS)
def test_dependencies_point_one_way(folder: str) -> None:
    allowed = MAY_IMPORT[folder]
    wrong = {
        str(path.relative_to(ROOT)): sorted(_imported(path) - allowed)
        for path in SOURCES
        if path.relative_to(ROOT).parts[0] == folder and _imported(path) - allowed
    }
    assert not wrong


def test_the_clone_hides_no_package_of_the_same_name() -> None:
    """Python started in the clone's root: transformers tries ``import kernels`` and looks for a version."""
    code = "import kernels; assert not hasattr(kernels, 'explain') and not hasattr(kernels, '__version__')"
    result = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True)
    assert result.returncode == 0, result.stderr


def test_layers_and_zoo_know_nothing_of_triton() -> None:
    for path in SOURCES:
        if path.relative_to(ROOT).parts[0] in ("layers", "zoo"):
            assert "triton" not in path.read_text(encoding="utf-8").lower(), path


def test_checkpoints_are_opened_in_one_place() -> None:
    calls = [path for path in SOURCES if "torch.load(" in path.read_text(encoding="utf-8")]
    assert [str(path.relative_to(ROOT)) for path in calls] == ["weights/reader.py"]


def test_block_pointers_which_triton_no_longer_has_are_not_used() -> None:
    assert not [path for path in SOURCES if "make_block_ptr" in path.read_text(encoding="utf-8")]


@pytest.mark.parametrize(("started_as", "status"), [("attnzoo", 130), ("program", -signal.SIGINT)])
def test_ctrl_c_while_the_command_still_imports(tmp_path: Path, started_as: str, status: int) -> None:
    (tmp_path / "timm").mkdir()
    (tmp_path / "timm" / "__init__.py").write_text("raise KeyboardInterrupt\n")
    code = f"import sys; sys.argv[0] = '/usr/bin/{started_as}'; import attnzoo"
    environment = {**os.environ, "PYTHONPATH": str(tmp_path)}
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env=environment)
    assert done.returncode == status
    assert (done.stderr == "attnzoo: interrupted\n") == (started_as == "attnzoo")
