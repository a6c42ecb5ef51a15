"""What is known of a checkpoint file from elsewhere: the manifest's row, and the record kept beside a cached file."""

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from . import manifest


def marker(path: Path) -> Path:
    """The file beside a cached checkpoint that remembers its verification."""
    return path.with_name(f"{path.name}.json")


def recorded(path: Path) -> dict[str, Any]:
    """What was recorded when the file was verified; empty where nothing was, or nothing readable."""
    try:
        record = json.loads(marker(path).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    if not isinstance(record, dict):
        return {}
    kinds = {"size": int, "mtime_ns": int}
    return {key: value for key, value in record.items() if isinstance(value, kinds.get(key, str))}


def expected(path: Path) -> str:
    """``; as published it has 1,234 bytes, SHA-256 …`` for a message about a damaged file, or an empty string.

    The one row of the manifest whose file has this name tells it; else the record beside the file, which knows only
    what came at the first download.
    """
    name, size, sha256 = "as published it has", *_published(path)
    if size is None and sha256 is None:
        record = recorded(path)
        name, size, sha256 = "when it first came it had", record.get("size"), record.get("sha256")
    known = [f"{size:,} bytes"] if isinstance(size, int) else []
    known += [f"SHA-256 {sha256[:16]}"] if isinstance(sha256, str) else []
    return f"; {name} {', '.join(known)}" if known else ""


def _published(path: Path) -> tuple[int | None, str | None]:
    """Size and hash that the manifest has for a file of this name, as far as it has them."""
    rows = [
        entry for entry in manifest.entries() if entry.file and path.name in (entry.file, f"{entry.id}-{entry.file}")
    ]
    return (rows[0].size, rows[0].sha256 or rows[0].sha256_prefix) if len(rows) == 1 else (None, None)


def keys_sha256(state_dict: Mapping[str, torch.Tensor]) -> str:
    """SHA-256 over the sorted names with each tensor's shape and dtype: what a checkpoint holds, values aside."""
    lines = [f"{name} {tuple(tensor.shape)} {tensor.dtype}" for name, tensor in sorted(state_dict.items())]
    return hashlib.sha256("\n".join(lines).encode()).hexdigest()
