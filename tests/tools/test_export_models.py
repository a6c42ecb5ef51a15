"""Every family as an ONNX file: it agrees with the model at two image sizes and at batches that were not traced."""

from pathlib import Path

import pytest
import timm
import torch
from torch import nn

from attnzoo.tools.exporting.check import TOLERANCE
from attnzoo.tools.exporting.job import Request, export
from attnzoo.zoo import list_models


def _smallest() -> list[str]:
    """One name a family file, the smallest of those that take images of ImageNet's size."""
    best: dict[str, tuple[int, str]] = {}
    for name in list_models():
        if timm.get_pretrained_cfg(name).input_size[-1] >= 224:
            with torch.device("meta"):
                size = sum(p.numel() for p in timm.create_model(name).parameters())
            family = timm.model_entrypoint(name).__module__
            best[family] = min(best.get(family, (10**12, "")), (size, name))
    return sorted(name for _, name in best.values())


def _shallow(name: str) -> nn.Module:
    """The model with the first two blocks of each stage: every kind of layer, in a fraction of the exporter's time."""
    torch.manual_seed(0)
    model = timm.create_model(name, num_classes=10).eval().requires_grad_(False)
    parts = [module for module in model.modules() if isinstance(getattr(module, "blocks", None), nn.Module)]
    for part in parts:
        part.blocks = part.blocks[:2]
    if not parts:  # one resolution: the stages are the blocks
        model.stages = model.stages[:2]
    return model


@pytest.mark.slow
@pytest.mark.compiles
@pytest.mark.parametrize("name", _smallest())
def test_agrees_at_two_sizes(name: str, tmp_path: Path) -> None:
    model = _shallow(name)
    for img_size in ((64, 96), (128, 96)):
        outcome = export(model, Request("onnx", img_size), {"model": name}, tmp_path / "model.onnx")
        assert {comparison.batch for comparison in outcome.comparisons} == {1, 3}
        assert outcome.error <= TOLERANCE, outcome.comparisons
