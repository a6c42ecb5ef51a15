"""The best model of a run as one file that any tool of attnzoo and timm reads."""

import json
from pathlib import Path

import torch
from torch import nn

from ..._version import __version__
from ...weights import save_safetensors
from . import schema
from .config import as_tree


def export_model(model: nn.Module, path: Path, recipe: schema.Recipe, *, epoch: int, top1: float) -> None:
    """Writes the weights under the model's own keys, in the recipe's ``export_dtype``, with the recipe in the header.

    Raises:
        CheckpointError: the file cannot be written; an earlier one is as it was.
    """
    dtype = getattr(torch, recipe.export_dtype)
    state = model.state_dict()
    state = {name: value.to(dtype) if value.is_floating_point() else value for name, value in state.items()}
    metadata = {
        "model": recipe.model.name,
        "num_classes": str(recipe.model.num_classes),
        "data": recipe.data.source,
        "epoch": str(epoch),
        "val_top1": f"{top1:.4f}",
        "attnzoo": __version__,
        "recipe": json.dumps(as_tree(recipe)),
    }
    save_safetensors(state, path, metadata)
