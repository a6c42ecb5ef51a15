"""Commands in processes of their own, for faults that a process does not survive: a full disk, SIGKILL, no privileges.

A child is forked from a server that has imported everything, so that it starts within a tenth of a second.
"""

import ctypes
import json
import multiprocessing
import os
import random
import resource
import signal
import sys
import traceback
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import evaluation_data  # its model has to be known to the children too

CONTEXT = multiprocessing.get_context("forkserver")
CONTEXT.set_forkserver_preload(
    [
        "attnzoo.tools.main", "attnzoo.tools.eval", "attnzoo.tools.evaluation.session", "attnzoo.tools.train",
        "attnzoo.tools.training.run", "attnzoo.tools.weights", "accelerate",
    ]
)  # fmt: skip

_CLONE_NEWNS, _CLONE_NEWUSER = 0x00020000, 0x10000000
_MS_REC, _MS_PRIVATE = 0x4000, 0x40000
_CAPABILITY_VERSION_3 = 0x20080522

FILLERS: list[Path] = []

Step = tuple[Callable[..., str | None], tuple[Any, ...]]


@dataclass
class Ended:
    """How a child ended: exit status (negative: the signal), what it wrote, and what its steps said of themselves."""

    status: int
    out: str = ""
    err: str = ""
    files: dict[str, int] = field(default_factory=dict)
    """Of the folder that was watched, at the end: name to size."""
    how: str = ""


def run(
    words: Sequence[object], log: Path, *steps: Step, watch: Path | None = None, again: Sequence[object] = ()
) -> Ended:
    """Runs ``attnzoo WORDS`` in a child after ``steps`` have prepared it, then ``attnzoo AGAIN`` where it is given.

    Args:
        words: of the command.
        log: folder for what the child prints.
        steps: functions of this module with their arguments, called in the child.
        watch: a folder whose files are listed at the end, in the child, which may be the only one to see them.
        again: a second command whose status counts, such as a resumed run on the same small disk.
    """
    return wait(start(words, log, *steps, watch=watch, again=again), log)


def start(
    words: Sequence[object], log: Path, *steps: Step, watch: Path | None = None, again: Sequence[object] = ()
) -> Any:
    """As :func:`run`, without waiting: for several at once."""
    log.mkdir(exist_ok=True)
    for name in ("out", "err", "ended.json"):
        (log / name).write_text("")
    command, second = ([str(word) for word in line] for line in (words, again))
    child = CONTEXT.Process(target=_child, args=(command, log, steps, watch, second))
    child.start()
    return child


def wait(child: Any, log: Path) -> Ended:
    """The end of a child that :func:`start` began."""
    child.join(120)
    status = child.exitcode
    child.kill()
    assert status is not None, "the child did not end"
    report = (log / "ended.json").read_text()
    return Ended(status, (log / "out").read_text(), (log / "err").read_text(), **(json.loads(report) if report else {}))


def _child(words: list[str], log: Path, steps: Sequence[Step], watch: Path | None, again: list[str]) -> None:
    for number, name in ((1, "out"), (2, "err")):
        os.dup2(os.open(log / name, os.O_WRONLY), number)
    sys.stdout, sys.stderr = (open(number, "w", closefd=False) for number in (1, 2))  # noqa: SIM115
    # The fork server's environment is older than what the fixtures have set.
    os.environ |= {"NO_PROXY": "127.0.0.1", "no_proxy": "127.0.0.1"}
    report = os.open(log / "ended.json", os.O_WRONLY)
    how = ", ".join(said for step, args in steps if (said := step(*args)))
    status = _status(words)
    if again:
        for filler in FILLERS:
            filler.unlink()
        status = _status(again)
    files = {path.name: path.stat().st_size for path in watch.rglob("*") if path.is_file()} if watch else {}
    os.write(report, json.dumps({"files": files, "how": how}).encode())
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(status)


def _status(words: list[str]) -> int:
    from attnzoo.tools.main import main

    try:
        return main(words)
    except SystemExit as error:
        return int(error.code or 0)
    except BaseException:
        traceback.print_exc()
        return 1


def small_disk(folder: Path, size: int, limit: int) -> str:
    """A tmpfs of ``size`` bytes on ``folder``, seen by this process alone; without the right, no file over ``limit``.

    Returns:
        Which of the two it is.
    """
    libc = ctypes.CDLL(None, use_errno=True)
    user, group = os.getuid(), os.getgid()
    for flags in (_CLONE_NEWNS, _CLONE_NEWNS | _CLONE_NEWUSER):
        if libc.unshare(flags) != 0:
            continue
        if flags & _CLONE_NEWUSER:
            Path("/proc/self/setgroups").write_text("deny")
            Path("/proc/self/uid_map").write_text(f"0 {user} 1")
            Path("/proc/self/gid_map").write_text(f"0 {group} 1")
        libc.mount(b"none", b"/", None, _MS_REC | _MS_PRIVATE, None)
        if libc.mount(b"tmpfs", os.fsencode(folder), b"tmpfs", 0, f"size={size}".encode()) == 0:
            return "a tmpfs"
    resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limit))
    return "a file size limit (no tmpfs allowed here)"


def fill(folder: Path, size: int) -> None:
    """A file of ``size`` bytes, which is removed before the second command."""
    FILLERS.append(folder / "filler")
    FILLERS[-1].write_bytes(bytes(size))


def without_privileges() -> str | None:
    """Root becomes as bound by permissions as any user: it gives up its capabilities."""
    if os.getuid() != 0:
        return None
    libc = ctypes.CDLL(None, use_errno=True)
    header = (ctypes.c_uint32 * 2)(_CAPABILITY_VERSION_3, 0)
    none = (ctypes.c_uint32 * 6)()
    if libc.capset(header, none) != 0:
        raise OSError(ctypes.get_errno(), "capset")
    return "root without capabilities"


def die_somewhere(seed: int, forwards: int, writes: int) -> None:
    """SIGKILL in one of the first ``forwards`` forward passes of the probe, or as one of the ``writes`` first syncs."""
    generator = random.Random(seed)
    if generator.random() < 0.5:
        evaluation_data.at(generator.randrange(forwards))
        return
    fsync, left = os.fsync, generator.randrange(1, writes + 1)

    def deadly(descriptor: int) -> None:
        nonlocal left
        left -= 1
        if not left:
            os.kill(os.getpid(), signal.SIGKILL)
        fsync(descriptor)

    os.fsync = deadly


def environment(values: dict[str, str]) -> None:
    os.environ.update(values)


def from_manifest(entry: Any) -> None:
    """A manifest of one row."""
    from attnzoo.weights import manifest

    manifest.entries = lambda: (entry,)
