"""The snippets of docs/heads.md run, one after another, as a reader would run them."""

import re
from pathlib import Path

import pytest
import torch

DOC = Path(__file__).parents[2] / "docs" / "heads.md"


def test_snippets(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.chdir(tmp_path)
    torch.manual_seed(0)
    snippets = re.findall(r"```python\n(.*?)```", DOC.read_text(encoding="utf-8"), re.DOTALL)
    assert len(snippets) == 3
    names: dict = {}
    for snippet in snippets:
        exec(compile(snippet, str(DOC), "exec"), names)
    assert {"loss_mask", "loss_classifier", "loss_objectness"} <= set(names["losses"])
    assert capsys.readouterr().out.endswith("torch.Size([1, 5, 97, 131])\ntorch.Size([3, 5, 97, 131])\n")
    assert (tmp_path / "detector.safetensors").is_file()
