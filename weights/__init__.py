"""The one door for checkpoints: reading, converting, checking, writing and downloading them."""

from . import cache, manifest
from .convert import convert_checkpoint
from .download import fetch
from .errors import CheckpointError
from .layout import unwrap
from .load import LoadReport, load_checkpoint
from .match import best_match
from .pretrained import pretrained_file, pretrained_state_dict
from .reader import read_checkpoint
from .writer import save_safetensors

__all__ = [
    "CheckpointError",
    "LoadReport",
    "best_match",
    "cache",
    "convert_checkpoint",
    "fetch",
    "load_checkpoint",
    "manifest",
    "pretrained_file",
    "pretrained_state_dict",
    "read_checkpoint",
    "save_safetensors",
    "unwrap",
]
