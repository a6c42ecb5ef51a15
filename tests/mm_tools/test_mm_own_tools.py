"""MMDetection's and MMSegmentation's own tools on the same configs, in processes that nothing else prepared."""

import importlib.util
import os
import re
from pathlib import Path

import pytest
import torch

from attnzoo.weights import read_checkpoint

ROOT = Path(__file__).parents[2]


def tool(scope: str, name: str) -> Path:
    return Path(importlib.util.find_spec(scope).origin).parent / f".mim/tools/{name}.py"


@pytest.mark.parametrize(("scope", "end", "short"), [
    ("mmdet", "epoch_1", "train_cfg.max_epochs=1"), ("mmseg", "iter_2", "train_cfg.max_iters=2"),
])  # fmt: skip
def test_training(scope: str, end: str, short: str, config, python, tmp_path: Path) -> None:
    status, output = python(
        tool(scope, "train"), config(scope), "--work-dir", tmp_path, "--cfg-options", short, "val_evaluator=None",
        "val_cfg=None", "val_dataloader=None",
    )  # fmt: skip
    assert status == 0, output[-3000:]
    state = read_checkpoint(tmp_path / f"{end}.pth")["state_dict"]
    assert any(name.startswith("backbone.body.stages.3") for name in state)


def documented() -> str:
    """What docs/dense.md has before a tool that imports MMPretrain's models."""
    return re.search(r'python -c "(.*)" TOOL.py', (ROOT / "docs/dense.md").read_text(encoding="utf-8"))[1]


class Evil:
    def __init__(self, mark: Path) -> None:
        self.mark = mark

    def __reduce__(self) -> tuple:
        return os.mkdir, (str(self.mark),)


@pytest.mark.parametrize("scope", ["mmdet", "mmseg"])
def test_their_test_runs_no_code(scope: str, config, python, tmp_path: Path) -> None:
    torch.save({"state_dict": {"weight": torch.zeros(2)}, "extra": Evil(tmp_path / "ran")}, tmp_path / "evil.pth")
    command = [tool(scope, "test"), config(scope), tmp_path / "evil.pth", "--work-dir", tmp_path]
    if scope == "mmdet":
        # Before it reads the config it imports MMPretrain, which fails beside transformers 5 (see zoo/mm/compat.py).
        command = ["-c", documented(), *command]
    status, output = python(*command)
    assert status != 0
    assert "holds pickled objects" in output
    assert not (tmp_path / "ran").exists()
