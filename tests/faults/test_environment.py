"""Folders in circles, workers that die, and other packages of other versions."""

import json
import os
import re
import signal
import subprocess
import sys
from pathlib import Path

import pytest
from evaluation_data import arguments, make_folder
from torch.utils.data import get_worker_info
from training_runs import rows, write_recipe

from attnzoo import _requirements
from attnzoo.tools.evaluation import loading
from attnzoo.tools.training import trainer

ROOT = Path(__file__).parents[2]


@pytest.mark.fault(41)
def test_links_in_a_loop(attnzoo, tmp_path):
    data = make_folder(tmp_path / "data", wrong=0)
    (data / "a" / "up").symlink_to(data, target_is_directory=True)
    (data / "b" / "sideways").symlink_to(data / "c", target_is_directory=True)
    (data / "a" / "self").symlink_to(data / "a" / "self")
    file = tmp_path / "results.json"
    status, _, err = attnzoo(*arguments(data, "--results", file))
    results = json.loads(file.read_text())
    assert (status, results["top1"], results["counts"]["total"]) == (0, 100.0, 20)
    left_out = results["data"]["left_out"]["folder reached twice by a link"]
    assert left_out == {"count": 2, "files": ["a/up", "b/sideways"]}
    assert "2 folder reached twice by a link" in err


@pytest.mark.fault(42)
@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGBUS], ids=["killed", "bus error"])
def test_dead_workers_of_an_evaluation(attnzoo, tmp_path, monkeypatch, number):
    data = make_folder(tmp_path / "data")
    decode = loading.decode

    def deadly(*args):
        if get_worker_info() is not None:
            os.kill(os.getpid(), number)
        return decode(*args)

    monkeypatch.setattr(loading, "decode", deadly)
    file = tmp_path / "results.json"
    status, _, err = attnzoo(*arguments(data, "--results", file, "--workers", 2))
    results = json.loads(file.read_text())
    assert (status, results["top1"], results["counts"]["evaluated"]) == (0, 75.0, 20)
    assert results["events"] == ["loader workers died at sample 0: went on without workers"]
    assert "attnzoo eval: loader workers died at sample 0: went on without workers" in err
    assert "Traceback" not in err


@pytest.mark.fault(42)
def test_dead_workers_of_a_training(attnzoo, tmp_path, monkeypatch):
    get, parent = trainer.data.SeededSamples.__getitem__, os.getpid()

    def dying(self, sample):
        if os.getpid() != parent:
            os.kill(os.getpid(), signal.SIGBUS)
        return get(self, sample)

    recipe = write_recipe(tmp_path, epochs=1)
    assert attnzoo("train", recipe, "--output", tmp_path / "whole", "--cpu")[0] == 0
    monkeypatch.setattr(trainer.data.SeededSamples, "__getitem__", dying)
    status, out, _ = attnzoo("train", recipe, "--output", tmp_path / "o", "--cpu", "--workers", 1)
    assert status == 0
    assert "going on with data.workers 0" in out
    assert rows(tmp_path / "o") == rows(tmp_path / "whole")


def python(code: str, *paths: Path) -> subprocess.CompletedProcess:
    """Python code in a process of its own, with ``paths`` before all others."""
    path = os.pathsep.join([*map(str, paths), os.environ.get("PYTHONPATH", "")])
    environment = {**os.environ, "PYTHONPATH": path, "OMP_NUM_THREADS": "1"}
    return subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env=environment)


@pytest.mark.fault(43)
def test_a_later_timm_has_our_name():
    """A made-up module of timm's registers one of our names before we come."""
    done = python(
        """
import sys, types, warnings
from torch import nn
from timm.models import register_model
module = types.ModuleType("timm.models.van")
def van_b0(pretrained=False, **kwargs):
    return nn.Flatten()
van_b0.__module__ = module.__name__
module.van_b0, module.__all__ = van_b0, ["van_b0"]
sys.modules[module.__name__] = module
register_model(van_b0)
with warnings.catch_warnings(record=True) as said:
    warnings.simplefilter("always")
    import attnzoo, timm, torch
print(*[str(each.message) for each in said if "attnzoo" in str(each.message)], sep="\\n")
print(type(timm.create_model("van_b0")).__module__)
print(type(timm.create_model("attnzoo_van_b0")).__module__)
print("van_b0" in attnzoo.zoo.list_models(), "attnzoo_van_b0" in attnzoo.zoo.list_models())
"""
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines() == [
        "timm has a model named van_b0; attnzoo's is registered as attnzoo_van_b0",
        "torch.nn.modules.flatten",
        "attnzoo.zoo.van",
        "False True",
    ]


def pretend(folder: Path, name: str, version: str) -> Path:
    """Metadata of a package in another version, as an installer would have left it."""
    info = folder / f"{name}-{version}.dist-info"
    info.mkdir(parents=True)
    (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {name}\nVersion: {version}\n")
    return folder


@pytest.mark.fault(44)
@pytest.mark.parametrize(
    ("versions", "said"),
    [
        ({"timm": "1.0.3"}, "timm 1.0.3 is installed, 1.0.26 or later is needed; pip install --upgrade 'timm>=1.0.26'"),
        ({"torch": "2.9.1"}, "torch 2.9.1 is installed, 2.10 or later is needed; pip install --upgrade 'torch>=2.10'"),
        (
            {"torch": "1.13.0+cu117", "timm": "0.4.12"},
            "torch 1.13.0+cu117 is installed, 2.10 or later is needed; timm 0.4.12 is installed, 1.0.26 or later is "
            "needed; pip install --upgrade 'torch>=2.10' 'timm>=1.0.26'",
        ),
    ],
    ids=["timm", "torch", "both"],
)
def test_versions_that_do_not_fit(tmp_path, versions, said):
    for name, version in versions.items():
        pretend(tmp_path, name, version)
    done = python("import attnzoo", tmp_path)
    assert done.returncode == 1
    assert done.stderr.splitlines()[-1] == f"ImportError: attnzoo cannot run: {said}"
    assert "torch/" not in done.stderr  # nothing was imported that would fail deep inside
    command = python("import sys; sys.argv[0] = '/usr/bin/attnzoo'; import attnzoo", tmp_path)
    assert (command.returncode, command.stderr) == (2, f"attnzoo cannot run: {said}\n")


@pytest.mark.fault(44)
def test_an_old_triton_turns_the_fused_kernels_off(tmp_path):
    done = python(
        """
import torch
from attnzoo.kernels import explain, neighborhood_attention
from attnzoo.kernels.fused._launch import why_not_fused
from torch._subclasses import FakeTensorMode
with FakeTensorMode():
    print(why_not_fused(torch.empty(2, device="cuda")))
x = torch.randn(1, 5, 6, 2, 8)
print(explain(neighborhood_attention, x, x, x, 3).chosen, bool(neighborhood_attention(x, x, x, 3).isfinite().all()))
""",
        pretend(tmp_path, "triton", "2.1.0"),
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines() == ["Triton 2.1.0 is installed, 3.6 or later is needed", "torch True"]


@pytest.mark.fault(44)
def test_a_triton_that_cannot_be_imported(tmp_path):
    (tmp_path / "triton").mkdir()
    (tmp_path / "triton" / "__init__.py").write_text("raise ImportError('libcuda.so.1: built for another PyTorch')\n")
    module = str(ROOT / "_requirements.py")
    done = python(f"import runpy; print(runpy.run_path({module!r})['triton_problem']())", tmp_path)
    assert done.returncode == 0, done.stderr
    assert "Triton cannot be imported (ImportError: libcuda.so.1: built for another PyTorch)" in done.stdout


@pytest.mark.fault(44)
def test_the_least_versions_are_the_installers():
    listed = (ROOT / "pyproject.toml").read_text().partition("\ndependencies = [")[2].partition("]")[0]
    least = dict(re.findall(r'"(\w+)>=([\d.]+)"', listed))
    assert {name: least[name] for name in _requirements.LEAST} == _requirements.LEAST
