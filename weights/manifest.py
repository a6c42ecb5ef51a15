"""The published checkpoints: addresses, sizes, hashes, licences and accuracies, from weights_manifest.json.

The manifest is the source of truth; weights_manifest.schema.json says what each field means.
"""

import difflib
import json
from dataclasses import dataclass, fields
from functools import cache
from pathlib import Path
from typing import Any

from .errors import CheckpointError

_MANIFEST = Path(__file__).parents[1] / "weights_manifest.json"


@dataclass(frozen=True)
class Mirror:
    """Another address of a checkpoint.

    Attributes:
        url: Address of the file or of its page.
        file: File name there, or None where it is not known.
        host: ``"direct"``, or ``"page"`` where only a browser gets the file.
        layout: ``"published"`` for the same file; ``"mmpretrain"`` or ``"transformers"`` for a copy under the names
            of that library, which the zoo does not convert and the downloader does not try.
        size: Bytes, or None.
        sha256: Full hash, or None.
        sha256_prefix: First digits of the hash, or None.
        notes: Remarks.
    """

    url: str
    file: str | None = None
    host: str = "direct"
    layout: str = "published"
    size: int | None = None
    sha256: str | None = None
    sha256_prefix: str | None = None
    notes: str = ""


@dataclass(frozen=True)
class Entry:
    """One published result, with its checkpoint where there is one.

    Attributes:
        id: Unique name; equal to ``model`` where there is one.
        model: timm name with tag that loads this checkpoint with ``pretrained=True``, or None, as where nobody says
            how many classes the head has.
        backbone: Zoo model, without tag, that the figures belong to, or None.
        host: ``"direct"`` for a file that a program can fetch, ``"page"`` for a share page, ``"none"`` for figures
            without a checkpoint.
        size: Bytes, or None where unknown; the same for ``sha256`` and ``sha256_prefix``.
        top_level_key: Wrapper key of the weights; "" where the file is the state dict itself, None where unknown.
        metrics: Published figures: top1, top5, AP_box, mIoU, …, in per cent.
        num_classes: Classes of the published head, or None.
        params_m: Published parameters in millions (of the whole detector or segmenter in its rows).
        flops_g: Published multiply-adds in units of 10^9, at ``resolution``.
        keys_sha256: Digest of the tensors' names, shapes and dtypes (``record.keys_sha256``), or None where unknown.
    """

    id: str
    model: str | None
    backbone: str | None
    family: str
    task: str
    dataset: str
    resolution: int | str | None
    file: str | None
    url: str | None
    mirrors: tuple[Mirror, ...]
    host: str
    size: int | None
    sha256: str | None
    sha256_prefix: str | None
    license: str
    top_level_key: str | None
    metrics: dict[str, float]
    num_classes: int | None
    params_m: float | None
    flops_g: float | None
    pretrain: str | None
    method: str | None
    source: str
    notes: str
    keys_sha256: str | None = None


def _entry(row: dict[str, Any]) -> Entry:
    values = {field.name: row[field.name] for field in fields(Entry) if field.name != "keys_sha256"}
    values["keys_sha256"] = row.get("keys_sha256")
    if row["num_classes"] is None:
        values["model"] = None  # no model can be made that it is sure to fit
    return Entry(**{**values, "mirrors": tuple(Mirror(**mirror) for mirror in row["mirrors"])})


@cache
def entries() -> tuple[Entry, ...]:
    """All rows of the manifest, in its order."""
    return tuple(_entry(row) for row in json.loads(_MANIFEST.read_text(encoding="utf-8"))["entries"])


def find(name: str) -> Entry:
    """The row of a name: an id, a tagged model name, or a bare model name for its first checkpoint.

    Raises:
        CheckpointError: no such row; names the nearest.
    """
    rows = entries()
    for entry in rows:
        if name in (entry.id, entry.model):
            return entry
    for entry in rows:
        if entry.task == "classification" and entry.host != "none" and entry.id.split(".")[0] == name:
            return entry
    if name.endswith(".untrained"):
        raise CheckpointError(_untrained(name.removesuffix(".untrained")))
    near = difflib.get_close_matches(name, [entry.id for entry in rows], n=3, cutoff=0.5)
    hint = f"; did you mean {', '.join(near)}?" if near else ""
    raise CheckpointError(f"no published checkpoint is called '{name}'{hint} ('attnzoo weights list' shows all)")


def _untrained(base: str) -> str:
    """Why timm's tag of a model without weights has none, and where a file is that has no tag."""
    shared = [entry.id for entry in entries() if entry.backbone == base and entry.host == "page" and not entry.model]
    hint = f"; 'attnzoo weights pull {shared[0]}' says how to get a file" if shared else ""
    return f"{base} has no published weights to load by name{hint}"
