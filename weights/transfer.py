"""One file over HTTP into a partial file beside its place: resumed, its length checked, its failures sorted."""

import contextlib
import email.message
import errno
import http.client
import logging
import shutil
import socket
import ssl
import time
import urllib.error
import urllib.parse
import urllib.request
from collections.abc import Callable, Iterator
from pathlib import Path

from .pace import Http, Https

Progress = Callable[[int, int | None], None]

TRIES = 4
BACKOFF = 0.5
LARGEST = 16 << 30  # bytes taken of a file whose length nobody states; published ones have 1 GB at most
_BLOCK = 1 << 20
_LOOPBACK = ("127.0.0.1", "::1", "localhost")
_logger = logging.getLogger(__name__)


class Interrupted(Exception):
    """The transfer failed in a way that another try may mend; what came so far is kept."""


class Refused(Exception):
    """This address will not give the file."""


class _StaleRange(Interrupted):
    """What came so far is no beginning of what the server has: it must start anew."""


def note_of(part: Path) -> Path:
    """The file that says which address a partial file is from, and the server's validator for ``If-Range``."""
    return part.with_name(f"{part.name}.from")


def transfer(url: str, part: Path, size: int | None, progress: Progress | None, timeout: float) -> None:
    """Bring an address's file into ``part``, going on where an earlier connection to the same address broke.

    Args:
        url: https, or http on this machine.
        part: The partial file; kept when the transfer is interrupted.
        size: Bytes that it must have, or None.
        progress: Called with the bytes so far and in all (None where the server does not say).
        timeout: Seconds without an answer after which a try is given up.

    Raises:
        Interrupted: the last of several tries failed for a reason that may pass.
        Refused: the address is not allowed, gives an error, a web page or a file of another length, or more than fits.
        OSError: the file cannot be written.
    """
    for attempt in range(TRIES):
        before = _length(part)
        try:
            return _receive(url, part, size, progress, timeout)
        except Interrupted as error:
            if isinstance(error, _StaleRange):
                note_of(part).unlink(missing_ok=True)
            if attempt == TRIES - 1:
                raise
            _logger.info("%s: %s; trying again", url, error)
            if _length(part) <= before:
                time.sleep(BACKOFF * 2**attempt)


def _length(part: Path) -> int:
    return part.stat().st_size if part.exists() else 0


def validator_of(part: Path, url: str) -> str:
    """What the server sent to recognise the version of the file by, or "" where the part is of no use."""
    try:
        origin, validator = note_of(part).read_text(encoding="utf-8").split("\n")
    except (OSError, ValueError):
        return ""
    return validator if origin == url else ""


def _receive(url: str, part: Path, size: int | None, progress: Progress | None, timeout: float) -> None:
    """One request: the rest of the file if the server still has the same one, else all of it."""
    validator = validator_of(part, url)
    start = _length(part) if validator else 0
    headers = {"User-Agent": "attnzoo", "Accept-Encoding": "identity"}
    if start:
        headers |= {"Range": f"bytes={start}-", "If-Range": validator}
    with _open(url, headers, timeout) as reply:
        if "text/html" in reply.headers.get("Content-Type", ""):
            raise Refused("answers with an HTML page: the link needs a login or has moved")
        start = _start(reply, start, validator)
        total = _total(reply.headers, reply.status)
        if total is not None and size is not None and total != size:
            raise Refused(f"offers {total:,} bytes where the manifest says {size:,}")
        if total is not None and shutil.disk_usage(part.parent).free < total - start:
            raise OSError(errno.ENOSPC, f"{total - start:,} bytes needed")
        note_of(part).write_text(f"{url}\n{_strong_validator(reply.headers)}", encoding="utf-8")
        done = _copy(reply, part, start, total, total if total is not None else size, progress)
    if total is not None and done != total:
        raise Interrupted(f"cut off at {done:,} of {total:,} bytes")


def _start(reply: http.client.HTTPResponse, asked: int, validator: str) -> int:
    """Where in the file the reply begins: where it was asked to, or at 0."""
    first = _range_start(reply.headers) if reply.status == 206 else 0
    if not asked:
        if first > 0:
            raise Refused(f"sends the file from byte {first:,} on where all of it was asked for")
        return 0
    if first == 0:
        return 0
    # Some servers ignore If-Range, and would have two versions spliced.
    now = reply.headers.get("ETag" if validator.startswith('"') else "Last-Modified", validator)
    if first != asked or now != validator:
        raise _StaleRange("the file changed between two tries")
    return asked


def _copy(
    reply: http.client.HTTPResponse,
    part: Path,
    start: int,
    total: int | None,
    stated: int | None,
    progress: Progress | None,
) -> int:
    """Write a reply's bytes from ``start`` on; as many as ``stated``, by the server or the manifest, at the most."""
    done = start
    most = stated if stated is not None else start + min(LARGEST, shutil.disk_usage(part.parent).free * 9 // 10)
    with part.open("r+b" if start else "wb", buffering=0) as file:
        file.seek(start)
        file.truncate()
        for block in _blocks(reply):
            if done + len(block) > most:
                break
            file.write(block)
            done += len(block)
            if progress is not None:
                progress(done, total)
        else:
            return done
    part.unlink()  # nothing of it is worth the space
    note_of(part).unlink()
    if stated is None and most < start + LARGEST:
        raise OSError(errno.ENOSPC, f"more than {most:,} bytes needed")
    said = "that it should have" if stated is not None else "that are taken of a file of unknown length"
    raise Refused(f"sends more than the {most:,} bytes {said}")


def _blocks(reply: http.client.HTTPResponse) -> Iterator[bytes]:
    while True:
        try:
            block = reply.read1(_BLOCK)
        except (OSError, http.client.HTTPException) as error:
            raise Interrupted(_reason(error)) from None
        if not block:
            return
        yield block


def _range_start(headers: email.message.Message) -> int:
    """First byte of a partial reply (``Content-Range: bytes 5-9/10``)."""
    first = _number(headers.get("Content-Range", "").removeprefix("bytes ").split("-")[0])
    return -1 if first is None else first


def _total(headers: email.message.Message, status: int) -> int | None:
    """Length of the whole file, as far as the reply says."""
    text = headers.get("Content-Range", "").rpartition("/")[2] if status == 206 else headers.get("Content-Length", "")
    return _number(text)


def _number(text: str) -> int | None:
    """A header's number of bytes; none that is meant has more than 18 digits."""
    return int(text) if text.isdecimal() and len(text) <= 18 else None


def _strong_validator(headers: email.message.Message) -> str:
    etag = headers.get("ETag", "")
    return etag if etag and not etag.startswith("W/") else headers.get("Last-Modified", "")


class _Redirects(urllib.request.HTTPRedirectHandler):
    def redirect_request(
        self,
        req: urllib.request.Request,
        fp: http.client.HTTPResponse,
        code: int,
        msg: str,
        headers: email.message.Message,
        newurl: str,
    ) -> urllib.request.Request | None:
        _check_address(newurl)
        fp.close()  # urllib would read the body, whatever its length
        return super().redirect_request(req, fp, code, msg, headers, newurl)


def _check_address(url: str) -> None:
    parts = urllib.parse.urlsplit(url)
    if parts.scheme != "https" and not (parts.scheme == "http" and parts.hostname in _LOOPBACK):
        raise Refused(f"only https is fetched, not {parts.scheme}://{parts.hostname or ''}")


@contextlib.contextmanager
def _open(url: str, headers: dict[str, str], timeout: float) -> Iterator[http.client.HTTPResponse]:
    """An open reply of an address; sorts failures into those worth another try and the rest."""
    try:
        _check_address(url)
        request = urllib.request.Request(url, headers=headers)
        reply = urllib.request.build_opener(_Redirects, Http, Https).open(request, timeout=timeout)
    except urllib.error.HTTPError as error:
        error.close()
        raise _status_error(error.code) from None
    except urllib.error.URLError as error:
        final = isinstance(error.reason, (socket.gaierror, ssl.SSLCertVerificationError, str))
        raise (Refused if final else Interrupted)(_reason(error.reason)) from None
    except http.client.InvalidURL as error:
        raise Refused(_reason(error)) from None
    except (OSError, http.client.HTTPException) as error:
        raise Interrupted(_reason(error)) from None
    except ValueError as error:  # of urllib's and of the encoding of host names
        raise Refused(f"leads to an address that cannot be read ({_reason(error)})") from None
    with reply:
        yield reply


def _status_error(code: int) -> Exception:
    if code == 416:
        return _StaleRange("the server has nothing beyond what came so far")
    passing = code in (408, 429) or code >= 500
    return (Interrupted if passing else Refused)(f"HTTP status {code}")


def _reason(error: object) -> str:
    if isinstance(error, socket.gaierror):
        return "no network, or no such host"
    if isinstance(error, TimeoutError):
        return "no answer in time"
    return " ".join(str(error).split()) or type(error).__name__
