"""MMEngine's checkpoints through this package's reader: its own loader runs the code that a pickle holds.

MMEngine 0.10 tries ``weights_only=True`` and falls back to loading anything; on resuming it also executes the text
``meta["config"]`` of the file. :func:`install` replaces its loaders, so that ``load_from``, ``resume``, ``init_cfg``
and ``last_checkpoint`` are safe, also in MMDetection's and MMSegmentation's own tools.
"""

import hashlib
import re
from collections.abc import Callable, Mapping
from dataclasses import fields
from functools import cache
from pathlib import Path
from typing import Any

from .download import fetch
from .errors import CheckpointError
from .files import replace_file
from .layout import unwrap
from .manifest import Entry
from .reader import read_checkpoint
from .values import check_finite

_HASH = re.compile(r"-([0-9a-f]{8,64})\.pth$")


@cache
def install() -> None:
    """Replace MMEngine's checkpoint loaders and make its files whole or absent; a second call changes nothing.

    Raises:
        ModuleNotFoundError: MMEngine is not installed.
    """
    from mmengine.fileio import LocalBackend, register_backend
    from mmengine.runner.checkpoint import CheckpointLoader

    loaders: dict[Callable[..., dict[str, Any]], tuple[str, ...]] = {
        load_from_local: ("",),
        load_from_http: ("http://", "https://"),
        load_from_torchvision: ("modelzoo://", "torchvision://"),
        load_from_openmmlab: ("open-mmlab://", "openmmlab://"),
        load_from_mmcls: ("mmcls://",),
        load_from_nowhere: ("pavi://", r"(\S+\:)?s3://", r"(\S+\:)?petrel://"),
    }
    for loader, prefixes in loaders.items():
        CheckpointLoader.register_scheme(prefixes, loader, force=True)

    class WholeFiles(LocalBackend):
        """A checkpoint cut by a kill or a full disk never has its final name."""

        def put(self, obj: bytes, filepath: str | Path) -> None:
            path = Path(filepath)
            path.parent.mkdir(parents=True, exist_ok=True)
            replace_file(path, obj)

    register_backend("local", WholeFiles, force=True, prefixes="")


def load_from_local(filename: str, map_location: object = None) -> dict[str, Any]:
    """A checkpoint as MMEngine wants it, with weights under ``state_dict``.

    Args:
        filename: The file: torch.save's formats or safetensors.
        map_location: Not used; tensors come on the CPU, and loading a state dict moves them.

    Raises:
        CheckpointError: the file cannot be read, holds code, or has NaN or infinity among its weights.
    """
    path = Path(filename).expanduser()
    checkpoint = read_checkpoint(path)
    try:
        return _for_mmengine(checkpoint)
    except CheckpointError as error:
        raise CheckpointError(error.problem, path) from None


def load_from_http(filename: str, map_location: object = None) -> dict[str, Any]:
    """The same for an address."""
    return load_from_local(str(fetch_address(filename)))


def fetch_address(address: str) -> Path:
    """The file of an address, in the download cache (https only); a hash in its name, ``-0123abcd.pth``, is checked.

    Raises:
        CheckpointError: it cannot be had.
    """
    name = address.split("?")[0].rsplit("/", 1)[-1]
    known = _HASH.search(name)
    row = dict.fromkeys(field.name for field in fields(Entry)) | {
        "id": hashlib.sha256(address.encode()).hexdigest()[:16],
        "file": name or None,
        "url": address,
        "mirrors": (),
        "host": "direct",
        "sha256_prefix": known[1] if known else None,
    }
    return fetch(Entry(**row))


def load_from_torchvision(filename: str, map_location: object = None) -> dict[str, Any]:
    """The same for ``torchvision://NAME``."""
    from mmengine.runner.checkpoint import get_torchvision_models

    return load_from_http(_address(filename, get_torchvision_models()))


def load_from_openmmlab(filename: str, map_location: object = None) -> dict[str, Any]:
    """The same for ``open-mmlab://NAME``."""
    from mmengine.runner.checkpoint import _get_mmengine_home, get_deprecated_model_names, get_external_models

    prefix, name = filename.split("://", 1)
    address = _address(f"{prefix}://{get_deprecated_model_names().get(name, name)}", get_external_models())
    if "://" in address:
        return load_from_http(address)
    return load_from_local(str(Path(_get_mmengine_home()) / address))


def load_from_mmcls(filename: str, map_location: object = None) -> dict[str, Any]:
    """The same for ``mmcls://NAME``: the backbone of a classifier."""
    from mmengine.runner.checkpoint import get_mmcls_models

    return {"state_dict": unwrap(load_from_http(_address(filename, get_mmcls_models())))[0]}


def load_from_nowhere(filename: str, map_location: object = None) -> dict[str, Any]:
    """Refuses what cannot be checked before it is loaded."""
    raise CheckpointError(
        "is on a store that is not read directly; copy it to this machine and give its path", filename
    )


def _address(filename: str, addresses: Mapping[str, str]) -> str:
    name = filename.split("://", 1)[1]
    if name not in addresses:
        raise CheckpointError(f"MMEngine knows no checkpoint of the name '{name}'", filename)
    return addresses[name]


def _for_mmengine(checkpoint: dict[str, Any]) -> dict[str, Any]:
    if "message_hub" in checkpoint and isinstance(checkpoint.get("state_dict"), dict):
        _restore(checkpoint)
        check_finite(checkpoint["state_dict"])
        return checkpoint
    state_dict, _ = unwrap(checkpoint, whole=True)
    check_finite(state_dict)
    meta = checkpoint.get("meta")
    return {"state_dict": state_dict, "meta": _harmless(meta) if isinstance(meta, dict) else {}}


def _restore(checkpoint: dict[str, Any]) -> None:
    """Make the histories MMEngine's own again; the rest of a training state is plain."""
    from mmengine.logging import HistoryBuffer

    try:
        checkpoint["meta"] = _harmless(checkpoint["meta"])
        scalars = checkpoint["message_hub"]["log_scalars"]
        for name, history in scalars.items():
            scalars[name] = HistoryBuffer(**history)
    except (AssertionError, AttributeError, KeyError, TypeError) as error:
        raise CheckpointError(f"is no training state of MMEngine's ({type(error).__name__}: {error})") from None


def _harmless(meta: Mapping[str, Any]) -> dict[str, Any]:
    """Without the text that ``Runner.resume`` would execute as a config."""
    return {name: value for name, value in meta.items() if name != "config"}
