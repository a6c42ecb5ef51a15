"""Fetches published checkpoints: from the cache, else from the first address that gives the right file."""

import contextlib
import errno
import logging
import os
import shlex
import shutil
from os import PathLike
from pathlib import Path

from . import cache
from .errors import CheckpointError
from .files import sync
from .manifest import Entry, Mirror
from .transfer import Interrupted, Progress, Refused, note_of, transfer, validator_of

TIMEOUT = 30.0
_OFFLINE = "ATTNZOO_OFFLINE"
_CONVERTED = Mirror(url="")  # nothing is known in advance of a file that the user's own conversion made
_logger = logging.getLogger(__name__)


def fetch(
    entry: Entry,
    cache_dir: str | PathLike[str] | None = None,
    offline: bool = False,
    progress: Progress | None = None,
    *,
    timeout: float = TIMEOUT,
) -> Path:
    """The checkpoint's file on this machine, downloaded if need be and verified.

    One process downloads, others wait for it. A cut connection is resumed, a wrong file is set aside as ``.bad`` and
    tried once more, mirrors follow in order. A verified file is known again by its size and time.

    Args:
        entry: Row of the manifest.
        cache_dir: Folder of downloads; torch.hub's by default. It may be read-only if the file is there.
        offline: Only look in the cache; also set by the environment variable ATTNZOO_OFFLINE.
        progress: Called with the bytes so far and in all (None where the server does not say).
        timeout: Seconds without an answer after which a try is given up.

    Returns:
        The published file, or the safetensors file that ``attnzoo weights convert`` put into the cache.

    Raises:
        CheckpointError: the file cannot be had; says where to put it by hand.
    """
    path = cache.cache_path(entry, cache_dir)
    wanted = {path: entry, cache.converted_path(entry, cache_dir): _CONVERTED}
    for file, known in wanted.items():
        if cache.is_verified(file, known):
            return file
    sources = _sources(entry)
    unreachable = not sources or offline or os.environ.get(_OFFLINE, "0") not in ("", "0")
    if unreachable and not any(file.exists() for file in wanted):
        raise CheckpointError(_unavailable(entry, path))
    with contextlib.suppress(OSError):
        path.parent.mkdir(parents=True, exist_ok=True)
    with cache.exclusive(path) as locked:
        rejected = ""
        for file, known in wanted.items():
            if file.exists():
                rejected = _rejected(file, known)
                if not rejected:
                    return file
        if unreachable:
            raise CheckpointError(rejected + _unavailable(entry, path))
        if not os.access(path.parent, os.W_OK):
            raise CheckpointError(f"the cache folder {path.parent} cannot be written to; set TORCH_HOME to another")
        return _download(entry, sources, path, locked, progress, timeout)


def _rejected(file: Path, known: Entry | Mirror) -> str:
    """Check a cached file; why it was set aside, or an empty string where it is good."""
    if cache.is_verified(file, known):
        return ""
    try:
        cache.verify(file, known)
    except CheckpointError as error:
        try:
            bad = cache.quarantine(file)
        except OSError:
            raise error from None
        _logger.warning("%s; set aside as %s", error, bad.name)
        return f"{error}; set aside as {bad.name}; "
    return ""


def _sources(entry: Entry) -> list[Entry | Mirror]:
    """The addresses of the published file that a program can fetch, in order."""
    mirrors = [mirror for mirror in entry.mirrors if mirror.host == "direct" and mirror.layout == "published"]
    return [entry, *mirrors] if entry.host == "direct" else [*mirrors]


def _unavailable(entry: Entry, path: Path) -> str:
    if entry.host == "none" and not entry.mirrors:
        return f"{entry.id} has published figures but no published checkpoint"
    if _sources(entry):
        return f"offline, and {entry.id} is not in the cache; {_by_hand(entry, path)}"
    return f"{entry.id} lies on a share page that a program cannot fetch from; {_by_hand(entry, path)}"


def _by_hand(entry: Entry, path: Path) -> str:
    get = f"get {entry.file or 'the file'} from {entry.url}"
    name = entry.model or entry.backbone
    if entry.host != "page" or name is None:
        return f"{get} and put it at {path}"
    out = cache.converted_path(entry, path.parent)
    command = shlex.join(["attnzoo", "weights", "convert", name, entry.file or "FILE", str(out)])
    return f"{get} in a browser{_untagged(entry)} and run: {command}"


def _untagged(entry: Entry) -> str:
    """What to know of a classifier's file that no tagged name loads."""
    if entry.model is not None or entry.task != "classification":
        return ""
    return " (it loads with --checkpoint only; the classes of its head are not stated, 1,000 are tried)"


def _download(
    entry: Entry, sources: list[Entry | Mirror], path: Path, locked: bool, progress: Progress | None, timeout: float
) -> Path:
    """Try the addresses in order; a wrong file is tried once more."""
    problems: list[str] = []
    part = path.with_name(f"{path.name}.{os.getpid()}.part")
    keep_part = locked
    try:
        for source in sources:
            if locked:
                _adopt_part(path, part, str(source.url))
            if sha256 := _from_source(source, part, path, problems, progress, timeout):
                part.replace(path)
                sync(path.parent)
                cache.record(path, sha256, str(source.url))
                keep_part = False
                return path
    except OSError as error:
        keep_part = False
        free = f"{shutil.disk_usage(path.parent).free:,} bytes free in {path.parent}"
        full = error.errno in (errno.ENOSPC, errno.EDQUOT)
        problem = f"disk full: {error.strerror}, {free}" if full else f"cannot be written ({error.strerror or error})"
        raise CheckpointError(problem, path) from None
    finally:
        if not keep_part:
            _discard_parts(path, part, locked)
    tried = "; ".join(dict.fromkeys(problems))
    raise CheckpointError(f"{entry.id} cannot be downloaded ({tried}); {_by_hand(entry, path)}")


def _from_source(
    source: Entry | Mirror, part: Path, path: Path, problems: list[str], progress: Progress | None, timeout: float
) -> str | None:
    """Bring one address's file into ``part`` and check it; its SHA-256, or None with the reason in ``problems``."""
    for _ in range(2):
        try:
            transfer(str(source.url), part, source.size, progress, timeout)
            sync(part)
            return cache.check(part, source)
        except (Refused, Interrupted) as error:
            problems.append(f"{source.url}: {error}")
            return None
        except CheckpointError as error:
            problems.append(f"{source.url}: {error.problem}")
            part.replace(path.with_name(f"{path.name}.bad"))
            note_of(part).unlink(missing_ok=True)
            _logger.warning("%s: %s; set aside as %s.bad", source.url, error.problem, path.name)
    return None


def _left(path: Path) -> list[Path]:
    prefix, suffix = f"{path.name}.", ".part"
    return [file for file in path.parent.iterdir() if file.name.startswith(prefix) and file.name.endswith(suffix)]


def _adopt_part(path: Path, part: Path, url: str) -> None:
    """Take over what an interrupted process left of the same address; only under the file's lock."""
    for left in _left(path):
        if left != part and validator_of(left, url):
            note_of(left).replace(note_of(part))
            left.replace(part)
            return


def _discard_parts(path: Path, part: Path, locked: bool) -> None:
    """Remove this process's partial file and, where no other can be at work, those of dead ones."""
    with contextlib.suppress(OSError):
        for file in _left(path) if locked else []:
            file.unlink(missing_ok=True)
            note_of(file).unlink(missing_ok=True)
        part.unlink(missing_ok=True)
        note_of(part).unlink(missing_ok=True)
