"""Puts together the results: the figures, and everything needed to get them again."""

import hashlib
import json
import platform
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

import numpy as np
import PIL
import timm
import torch
import torchvision

from ..._version import __version__
from ...weights import manifest
from ..cli import UserError
from .loop import State
from .models import Subject
from .results import FORMAT, plain
from .sources import Source

_VALIDATION_SIZE = {"imagenet-1k": 50_000}


def now() -> str:
    return datetime.now(timezone.utc).isoformat(timespec="seconds")


def versions() -> dict[str, str]:
    return {
        "attnzoo": __version__,
        "python": platform.python_version(),
        "torch": torch.__version__,
        "torchvision": torchvision.__version__,
        "timm": timm.__version__,
        "pillow": PIL.__version__,
        "numpy": np.__version__,
    }


def device_name(device: torch.device) -> str:
    return torch.cuda.get_device_name(device) if device.type == "cuda" else platform.machine()


def identity(subject: Subject, source: Source, config: dict[str, Any], settings: dict[str, Any]) -> dict[str, Any]:
    """What two runs must share for the one to go on where the other stopped."""
    index = source.classes.index if source.classes else {}
    return plain(
        {
            "model": subject.name,
            "weights_sha256": subject.weights_sha256,
            "data_sha256": source.digest,
            "class_map_sha256": hashlib.sha256(json.dumps(sorted(index.items())).encode()).hexdigest(),
            "data_config": config,
            "settings": settings,
            "torch": torch.__version__,
            "timm": timm.__version__,
            "pillow": PIL.__version__,
        }
    )


def run_id(identity: dict[str, Any]) -> str:
    return hashlib.sha256(json.dumps(identity, sort_keys=True).encode()).hexdigest()[:16]


def check_same(now: dict[str, Any], before: dict[str, Any], path: Any) -> None:
    """Raises UserError, naming what differs, unless a run can go on from the results in ``path``."""
    flat_now, flat_before = _flat(now), _flat(before)
    differing = [
        f"{key} was {flat_before.get(key)}, is {flat_now.get(key)}"
        for key in sorted(flat_now | flat_before)
        if flat_now.get(key) != flat_before.get(key)
    ]
    if differing:
        raise UserError(f"{path} is of another run: {'; '.join(differing[:3])}; --overwrite starts again")


def _flat(value: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    result = {}
    for key, item in value.items():
        result |= _flat(item, f"{prefix}{key}.") if isinstance(item, dict) else {f"{prefix}{key}": item}
    return result


def published(subject: Subject, source: Source, config: dict[str, Any], top1: float | None, complete: bool) -> Any:
    """The published top-1 of these weights, the difference, and why it may mean nothing; None where there is none."""
    entry = _entry(subject)
    if entry is None:
        return None
    why = [] if complete else ["not all images were evaluated"]
    if "file" in subject.weights and Path(subject.weights["file"]).name != entry.file:
        why.append(f"the weights are of another file than {entry.file}")
    expected = _VALIDATION_SIZE.get(entry.dataset.lower())
    if expected is not None and source.total != expected:
        why.append(f"{source.total:,} images, {entry.dataset} validation has {expected:,}")
    size = config["input_size"][1]
    if isinstance(entry.resolution, int) and (size, size) != (config["input_size"][2], entry.resolution):
        why.append(f"published at {entry.resolution} pixels")
    difference = None if top1 is None else round(top1 - entry.metrics["top1"], 4)
    return {
        "top1": entry.metrics["top1"],
        "difference": difference,
        "dataset": entry.dataset,
        "not_comparable": why,
        "source": entry.source,
    }


def _entry(subject: Subject) -> manifest.Entry | None:
    """The row of the manifest for the model's weights; for those of a file, the one of its name or of the model."""
    if subject.weights["source"] == "random":
        return None
    rows = [entry for entry in manifest.entries() if entry.model and "top1" in entry.metrics]
    exact = [entry for entry in rows if entry.model == subject.name]
    if "file" in subject.weights and not exact:
        exact = [entry for entry in rows if entry.model.split(".")[0] == subject.name]
        exact.sort(key=lambda entry: entry.file != Path(subject.weights["file"]).name)
    return exact[0] if exact else None


def compose(
    status: str,
    subject: Subject,
    source: Source,
    total: int,
    state: State,
    identity: dict[str, Any],
    data: dict[str, Any],
    run: dict[str, Any],
) -> dict[str, Any]:
    """The results as they are written; all but ``run`` is the same however often a run was interrupted."""
    summary = state.scores.summary()
    indices = summary.pop("non_finite_indices")
    top1, top5, loss = (summary.pop(name) for name in ("top1", "top5", "loss"))
    complete = status == "complete" and total == source.total and not state.excluded
    config = identity["data_config"]
    results = {
        "format": FORMAT,
        "status": status,
        "model": subject.name,
        "top1": top1,
        "top5": top5,
        "loss": loss,
        "published": published(subject, source, config, top1, complete),
        "counts": {**summary, "excluded": len(state.excluded), "seen": state.position, "total": total},
        "excluded": state.excluded,
        "non_finite": [source.name(index) for index in indices],
        "conversions": state.conversions,
        "events": state.events,
        "warnings": source.warnings,
        "data": {
            **data,
            "sha256": source.digest,
            "samples": source.total,
            "class_map": source.classes and {"source": source.classes.source, "index": source.classes.index},
            "left_out": {
                reason: {"count": len(paths), "files": paths[:100]} for reason, paths in sorted(source.skipped.items())
            },
        },
        "data_config": config,
        "settings": identity["settings"],
        "weights": subject.weights,
        "weights_sha256": subject.weights_sha256,
        "versions": versions(),
        "identity": identity,
        "run_id": run_id(identity),
        "state": {"position": state.position, "batch_size": state.batch_size, "workers": state.workers},
        "run": run,
    }
    return plain(results)


def restore(results: dict[str, Any], state: State) -> None:
    """Puts ``state`` where the run of ``results`` was; the scores are read by the caller."""
    state.position = results["state"]["position"]
    state.batch_size = results["state"]["batch_size"]
    state.excluded = results["excluded"]
    state.conversions = results["conversions"]
    state.events = results["events"]
