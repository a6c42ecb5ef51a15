"""Lists the images, classes and other files of a folder or a tar, before any of them is read."""

import os
import tarfile
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath

from timm.utils.misc import natural_key

from ..cli import UserError
from .images import EXTENSIONS

_COMPRESSED = {"gzip": b"\x1f\x8b", "bzip2": b"BZh", "xz": b"\xfd7zXZ\0", "zstd": b"\x28\xb5\x2f\xfd"}
_SPLITS = ("val", "valid", "validation", "eval", "evaluation")


@dataclass
class Listing:
    """What a place holds. Paths are relative to it, with forward slashes."""

    images: list[tuple[str, str]] = field(default_factory=list)
    """(path, label); a label is the name of the folder an image lies in, as in timm."""
    labels: list[str] = field(default_factory=list)
    """Every class folder in natural order, the empty ones too."""
    empty: list[str] = field(default_factory=list)
    skipped: dict[str, list[str]] = field(default_factory=dict)
    """Reason to paths."""

    def skip(self, reason: str, path: str) -> None:
        self.skipped.setdefault(reason, []).append(path)


def split_folder(root: Path, split: str) -> Path:
    """``root/split``, or one of its synonyms for a validation split, or ``root`` itself.

    Raises:
        UserError: ``root`` cannot be searched, or the name is too long for one.
    """
    for name in (split, *(_SPLITS if split in _SPLITS else ())):
        try:
            if (root / name).is_dir():
                return root / name
        except OSError as error:
            raise UserError(f"cannot look for the split {name} in {root}: {error.strerror}") from None
    return root


def scan_folder(root: Path) -> Listing:
    """Walks a folder level by level, following links but entering no folder twice.

    Raises:
        UserError: No image below ``root``, or one class name in two branches.
    """
    listing = Listing()
    visited = set()
    folders: set[str] = set()
    level = [(root, "", False)]
    while level:
        below = []
        # Real folders first: a link that leads to one of them is then the one that is left out.
        for folder, relative, _ in sorted(level, key=lambda item: (item[2], item[1])):
            stat = _stat(folder)
            if (stat.st_dev, stat.st_ino) in visited:
                listing.skip("folder reached twice by a link", relative)
                continue
            visited.add((stat.st_dev, stat.st_ino))
            folders.add(relative)
            below += _scan_one(folder, relative, listing)
        level = below
    return _finish(listing, folders, str(root))


def _scan_one(folder: Path, relative: str, listing: Listing) -> list[tuple[Path, str, bool]]:
    """Lists one folder; gives those in it, as path, relative path and whether it is a link."""
    below = []
    try:
        entries = sorted(os.scandir(folder), key=lambda entry: entry.name)
    except OSError as error:
        raise UserError(f"cannot read the folder {folder}: {error.strerror}") from None
    for entry in entries:
        path = f"{relative}/{entry.name}" if relative else entry.name
        if entry.name.startswith("."):
            listing.skip("hidden", path)
        elif _is_dir(entry):
            below.append((Path(entry.path), path, entry.is_symlink()))
        elif _is_file(entry):
            _add_file(listing, path)
        else:
            listing.skip("not a regular file", path)
    return below


def _stat(folder: Path) -> os.stat_result:
    try:
        return folder.stat()
    except OSError as error:
        raise UserError(f"cannot read the folder {folder}: {error.strerror}") from None


def _is_dir(entry: os.DirEntry) -> bool:
    try:
        return entry.is_dir()
    except OSError:  # a link to itself
        return False


def _is_file(entry: os.DirEntry) -> bool:
    """A regular file, or a link that leads nowhere: an image that cannot be read, and is counted when it is."""
    try:
        return entry.is_file() or (entry.is_symlink() and not Path(entry.path).exists())
    except OSError:  # a link to itself
        return entry.is_symlink()


def scan_tar(path: Path) -> Listing:
    """Lists a tar, and the tars in it, without unpacking anything.

    Raises:
        UserError: Not a tar, a compressed or damaged one, no images, or one class name in two branches.
    """
    listing = Listing()
    folders: set[str] = set()
    try:
        with tarfile.open(path, "r:") as archive:
            _scan_members(archive, "", listing, folders)
    except (tarfile.TarError, OSError, EOFError) as error:
        raise UserError(f"cannot read the tar {path}: {error}{_compression(path)}") from None
    return _finish(listing, folders, str(path))


def _compression(path: Path) -> str:
    """What to do about a compressed tar, which could only be read from its beginning for each image."""
    try:
        with path.open("rb") as file:
            head = file.read(6)
    except OSError:
        return ""
    known = next((name for name, magic in _COMPRESSED.items() if head.startswith(magic)), None)
    return f"; it is compressed by {known}: unpack that first" if known else ""


def _scan_members(archive: tarfile.TarFile, prefix: str, listing: Listing, folders: set[str]) -> None:
    for member in archive:
        name = str(PurePosixPath(prefix) / member.name)
        if member.isdir():
            folders.add(name)
        elif not member.isfile():
            listing.skip("not a regular file", name)
        elif name.lower().endswith(".tar"):
            with tarfile.open(fileobj=archive.extractfile(member), mode="r:") as child:
                _scan_members(child, name[: -len(".tar")], listing, folders)
        else:
            folders.add(str(PurePosixPath(name).parent))
            _add_file(listing, name)


def _add_file(listing: Listing, path: str) -> None:
    file = PurePosixPath(path)
    if file.suffix.lower() not in EXTENSIONS:
        listing.skip(f"not an image ({file.suffix or 'no extension'})", path)
    elif len(file.parts) == 1:
        listing.skip("image outside the class folders", path)
    else:
        listing.images.append((path, file.parent.name))


def _finish(listing: Listing, folders: set[str], where: str) -> Listing:
    if not listing.images:
        others = sum(map(len, listing.skipped.values()))
        raise UserError(
            f"no images in class folders below {where} ({others} other files); "
            f"expected {where}/CLASS/IMAGE with one of {' '.join(EXTENSIONS)}"
        )
    homes = {str(PurePosixPath(path).parent) for path, _ in listing.images}
    # A folder without images is a class when it is a leaf; otherwise it only groups classes.
    groups = {str(parent) for folder in folders for parent in PurePosixPath(folder).parents}
    leaves = {folder for folder in folders if folder not in groups and folder not in ("", ".")}
    for folder in sorted(leaves - homes):
        # Below images it is none: 3/x.jpg/ and 3/thumbs/ are of the class 3.
        if any(str(parent) in homes for parent in PurePosixPath(folder).parents):
            leaves.remove(folder)
            listing.skip("folder without images in a class folder", folder)
    by_label: dict[str, list[str]] = {}
    for folder in sorted(homes | leaves):
        by_label.setdefault(PurePosixPath(folder).name, []).append(folder)
    for label, places in by_label.items():
        if len(places) > 1:
            raise UserError(f"two class folders of {where} are named {label}: {places[0]} and {places[1]}; rename one")
    listing.labels = sorted(by_label, key=natural_key)
    listing.empty = [label for label in listing.labels if by_label[label][0] not in homes]
    listing.images.sort(key=lambda item: natural_key(item[0]))
    return listing
