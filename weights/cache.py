"""The download cache: which file belongs to which checkpoint, one process at a time, verified cheaply on each use."""

import contextlib
import hashlib
import json
from collections.abc import Iterator, Mapping
from os import PathLike
from pathlib import Path
from typing import Any

import torch

from .errors import CheckpointError
from .files import replace_file
from .kinds import sniff
from .manifest import Entry, Mirror
from .reader import check_whole
from .record import keys_sha256, marker, recorded

try:
    import fcntl
except ImportError:  # Windows
    fcntl = None  # type: ignore[assignment]


def cache_folder(cache_dir: str | PathLike[str] | None = None) -> Path:
    """The folder of downloads: ``cache_dir``, or torch.hub's (which TORCH_HOME moves)."""
    return Path(cache_dir) if cache_dir is not None else Path(torch.hub.get_dir()) / "checkpoints"


def cache_path(entry: Entry, cache_dir: str | PathLike[str] | None = None) -> Path:
    """Where a checkpoint lies in the cache; the entry's id leads, since hosts use the same file names."""
    name = f"{entry.id}-{entry.file}" if entry.file else f"{entry.id}.pth"
    return cache_folder(cache_dir) / name


def converted_path(entry: Entry, cache_dir: str | PathLike[str] | None = None) -> Path:
    """Where ``attnzoo weights convert`` puts a file that came through a browser, for ``pretrained=True`` to find."""
    return cache_folder(cache_dir) / f"{entry.id}.safetensors"


def file_sha256(path: str | PathLike[str]) -> str:
    """SHA-256 of a file as 64 hex digits."""
    digest = hashlib.sha256()
    with Path(path).open("rb") as file:
        while block := file.read(1 << 20):
            digest.update(block)
    return digest.hexdigest()


@contextlib.contextmanager
def exclusive(path: Path) -> Iterator[bool]:
    """Hold the lock that belongs to ``path``; yields whether there is one.

    A read-only folder or a file system without locks yields False: the rename at the end keeps files whole even so.
    """
    with contextlib.ExitStack() as stack:
        held = False
        if fcntl is not None:
            with contextlib.suppress(OSError):
                lock = stack.enter_context(path.with_name(f"{path.name}.lock").open("w"))
                fcntl.flock(lock, fcntl.LOCK_EX)
                held = True
        yield held


def record(path: Path, sha256: str, origin: str) -> None:
    """Remember a verified file; in a cache that cannot be written to it is verified again next time."""
    info = path.stat()
    _write(path, {"size": info.st_size, "mtime_ns": info.st_mtime_ns, "sha256": sha256, "origin": origin})


def _write(path: Path, known: dict[str, Any]) -> None:
    with contextlib.suppress(OSError):  # a cache that cannot be written to, or a full disk
        replace_file(marker(path), json.dumps(known).encode())


def is_verified(path: Path, source: Entry | Mirror) -> bool:
    """Whether the file is the one that was verified last, by its size and time alone."""
    known = recorded(path)
    try:
        info = path.stat()
    except OSError:
        return False
    if (known.get("size"), known.get("mtime_ns")) != (info.st_size, info.st_mtime_ns):
        return False
    return _hash_problem(str(known.get("sha256", "")), source) is None


def check(path: Path, source: Entry | Mirror) -> str:
    """Check a file against the manifest's size and hash, as far as known, and that it is a whole checkpoint.

    Returns:
        The file's SHA-256.

    Raises:
        CheckpointError: it is another file, or damaged.
    """
    size = path.stat().st_size
    if source.size is not None and size != source.size:
        raise CheckpointError(f"has {size:,} bytes where the manifest says {source.size:,}", path)
    known = source.sha256 or source.sha256_prefix or source.size is not None
    (sniff if known else check_whole)(path)
    sha256 = file_sha256(path)
    if problem := _hash_problem(sha256, source):
        raise CheckpointError(problem, path)
    return sha256


def verify(path: Path, source: Entry | Mirror) -> str:
    """Check a cached file, also against the hash recorded when it was first verified, and record it.

    Returns:
        The file's SHA-256.

    Raises:
        CheckpointError: it is another file, damaged, or no longer what it was.
    """
    sha256 = check(path, source)
    known = recorded(path)
    if not (source.sha256 or source.sha256_prefix) and known.get("sha256", sha256) != sha256:
        raise CheckpointError(f"has changed since it was first verified (SHA-256 was {known['sha256'][:16]}…)", path)
    record(path, sha256, str(known.get("origin", "placed by hand")))
    return sha256


def check_keys(path: Path, entry: Entry, state_dict: Mapping[str, torch.Tensor]) -> None:
    """Check names, shapes and dtypes of a cached file's tensors against the manifest, or against its first use.

    Args:
        path: The file as :func:`fetch` gave it, verified.
        entry: Its row of the manifest.
        state_dict: Its tensors, unwrapped.

    Raises:
        CheckpointError: they are others.
    """
    digest = keys_sha256(state_dict)
    known = recorded(path)
    published = entry.keys_sha256 if path.name != converted_path(entry).name else None
    wanted = published or known.get("keys_sha256")
    if wanted is not None and wanted != digest:
        origin = "manifest" if published else "first use"
        raise CheckpointError(
            f"holds other names, shapes or dtypes than before (digest {digest[:16]}, {origin}: {wanted[:16]})", path
        )
    if known and "keys_sha256" not in known:
        _write(path, {**known, "keys_sha256": digest})


def _hash_problem(sha256: str, source: Entry | Mirror) -> str | None:
    expected = source.sha256 or source.sha256_prefix or ""
    if sha256.startswith(expected):
        return None
    return f"has SHA-256 {sha256[:16]}… where the manifest says {expected[:16]}"


def quarantine(path: Path) -> Path:
    """Move a file that failed its check out of the way, as ``NAME.bad``."""
    bad = path.with_name(f"{path.name}.bad")
    path.replace(bad)
    marker(path).unlink(missing_ok=True)
    return bad
