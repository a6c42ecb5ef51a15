"""Tells the kind of a checkpoint file by its content, and whether the file is whole as far as its structure says."""

import difflib
import re
import stat
import zipfile
import zlib
from os import PathLike
from pathlib import Path
from typing import NoReturn

from safetensors import SafetensorError, safe_open

from .errors import CheckpointError, DamagedError
from .record import expected

_OTHER_TYPES = (
    (b"\x1f\x8b", "a gzip archive; unpack it and pass the checkpoint inside"),
    (b"BZh", "a bzip2 archive; unpack it and pass the checkpoint inside"),
    (b"\xfd7zXZ", "an xz archive; unpack it and pass the checkpoint inside"),
    (b"\x28\xb5\x2f\xfd", "a zstandard archive; unpack it and pass the checkpoint inside"),
    (b"7z\xbc\xaf", "a 7-Zip archive; unpack it and pass the checkpoint inside"),
    (b"Rar!", "a RAR archive; unpack it and pass the checkpoint inside"),
    (b"\x93NUMPY", "a NumPy array, not a PyTorch checkpoint"),
    (b"\x89HDF", "an HDF5 (Keras) file, not a PyTorch checkpoint"),
    (b"version https://git-lfs.github.com/spec", "a git-lfs pointer, not the file itself; run 'git lfs pull' there"),
)
_HTML = re.compile(
    rb"(\xef\xbb\xbf)?\s*(<\?xml[^>]*>\s*)?(<!doctype\s+html|<html|<head|<body|<title|<meta|<script|<!--)",
    re.IGNORECASE,
)
_XML = re.compile(rb"(\xef\xbb\xbf)?\s*<\?xml")
_PICKLE = re.compile(rb"\x80[\x02-\x05]")
# Of protocols 0 and 1, which have no first byte of their own: a dictionary, a list or a class.
_OLD_PICKLE = re.compile(
    rb"\([dl]p\d+\n|[}\]]q.\(|c(__builtin__|builtins|collections|numpy|torch|os|posix)[\w.]*\n\w+\n", re.DOTALL
)
_SAFETENSORS_HEADER_LIMIT = 100_000_000
_FOLDER = 0x10  # of a zip member's attributes, as MS-DOS had them
_BLOCK = 1 << 20


def sniff(path: str | PathLike[str]) -> str:
    """The kind of a checkpoint file: ``"zip"``, ``"safetensors"`` or ``"pickle"``, by its content and not its name.

    A zip archive's directory and a safetensors header are read, so a file cut short is found here.

    Raises:
        CheckpointError: the file is missing, empty, cut short or of any other type (named in the message).
    """
    path = Path(path)
    try:
        info = path.stat()
        if not stat.S_ISREG(info.st_mode):
            raise CheckpointError("is a folder or a device, not a checkpoint file", path)
        with path.open("rb") as file:
            head = file.read(512)
    except OSError as error:
        problem = f"cannot be read ({error.strerror})"
        if isinstance(error, FileNotFoundError):
            problem = f"no such file{_nearby(path)}"
        raise CheckpointError(problem, path) from None
    if not head:
        raise DamagedError(f"is an empty file (0 bytes{expected(path)}); download it again", path)
    if head.startswith(b"PK\x03\x04"):
        _check_zip(path, info.st_size)
        return "zip"
    if page := "HTML" if _HTML.match(head) else "XML" if _XML.match(head) else "":
        raise CheckpointError(
            f"is an {page} page, not a checkpoint: the link needs a login or has moved; download it in a browser", path
        )
    if _is_safetensors(head, info.st_size, path):
        return "safetensors"
    if _PICKLE.match(head):
        return "pickle"
    _reject_other(head, path)


def check_sums(path: Path) -> None:
    """Read a zip archive through and compare its members with the check sums that torch.save wrote beside them.

    torch.load does not; this takes half of its time.

    Raises:
        CheckpointError: a byte has changed; names the member.
    """
    name = ""
    try:
        with zipfile.ZipFile(path) as archive:
            for member in archive.infolist():
                name = member.filename
                # torch.serialization.set_crc32_options(False), and skip_data, leave zeros in their place.
                if member.CRC:
                    with archive.open(member) as file:
                        while file.read(_BLOCK):
                            pass
    except (zipfile.BadZipFile, zlib.error, EOFError, OSError, ValueError, RuntimeError, NotImplementedError):
        raise DamagedError(
            f"is damaged ({name} differs from its check sum; {path.stat().st_size:,} bytes{expected(path)})", path
        ) from None


def _nearby(path: Path) -> str:
    """Where a missing file was looked for, and what lies there under a similar name."""
    folder = path.absolute().parent
    if not folder.is_dir():
        return f": there is no folder {folder}"
    if path.is_symlink():
        return f": it is a link to {path.readlink()}"
    try:
        names = [file.name for file in folder.iterdir()]
    except OSError:  # one may be let into a folder without being let see it
        names = []
    near = difflib.get_close_matches(path.name, names, n=3, cutoff=0.6)
    return f" in {folder}" + (f"; did you mean {', '.join(near)}?" if near else "")


def _check_zip(path: Path, size: int) -> None:
    try:
        with zipfile.ZipFile(path) as archive:
            members = archive.infolist()
    except (zipfile.BadZipFile, OSError, ValueError, NotImplementedError):
        raise DamagedError(
            f"is cut short or damaged (a zip archive of {size:,} bytes without its end{expected(path)})", path
        ) from None
    names = [member.filename for member in members]
    if any(name.endswith("/constants.pkl") for name in names):
        raise CheckpointError(
            "is a TorchScript program, which holds code; save its state_dict() with torch.save and pass that", path
        )
    if not any(name.endswith("data.pkl") for name in names):
        raise CheckpointError("is a zip archive that torch.save did not write; unpack it and pass a file inside", path)
    # One flipped bit makes a folder of a tensor's bytes: torch.load then takes memory as it finds it in their place.
    files = [member for member in members if not member.filename.endswith("/")]
    if hollow := [member.filename for member in files if member.external_attr & _FOLDER]:
        raise DamagedError(f"is damaged ({hollow[0]} is marked as a folder{expected(path)})", path)
    # torch.save stores without compression; anything that unpacks to much more than the file is a bomb.
    if sum(member.file_size for member in members) > 2 * size + 1_000_000:
        raise CheckpointError("is a compressed zip archive that unpacks to far more than its size; not read", path)


def _is_safetensors(head: bytes, size: int, path: Path) -> bool:
    if len(head) < 9 or head[8:9] != b"{":
        return False
    header = int.from_bytes(head[:8], "little")
    if header > _SAFETENSORS_HEADER_LIMIT:
        return False
    if header + 8 > size:
        raise DamagedError(
            f"is cut short (safetensors header of {header:,} bytes in a file of {size:,} bytes{expected(path)})", path
        )
    try:
        with safe_open(path, framework="pt"):  # reads the header, and that the tensors end where the file does
            return True
    except (SafetensorError, OSError, ValueError) as error:
        raise damaged_safetensors(error, path) from None


def damaged_safetensors(error: Exception, path: Path) -> DamagedError:
    """The error for what the safetensors library says of a file."""
    return DamagedError(
        f"is cut short or damaged ({path.stat().st_size:,} bytes; safetensors says: {error}{expected(path)})", path
    )


def _reject_other(head: bytes, path: Path) -> NoReturn:
    for magic, what in _OTHER_TYPES:
        if head.startswith(magic):
            raise CheckpointError(f"is {what}", path)
    if head[257:262] == b"ustar":
        raise CheckpointError("is a tar archive; unpack it and pass the checkpoint inside", path)
    if _OLD_PICKLE.match(head):
        raise CheckpointError(
            "is a pickle that torch.save did not write, which can run code and is never loaded;"
            " ask its author for a state dict or a safetensors file",
            path,
        )
    raise CheckpointError(
        f"is no checkpoint: neither torch.save's format nor safetensors (begins with {head[:8]!r})", path
    )
