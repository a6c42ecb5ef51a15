"""What ``attnzoo`` does about a full disk, closed streams, paths, memory and text, whatever the subcommand."""

import errno
import json
import os
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

import attnzoo
from attnzoo.tools import list as listing
from attnzoo.tools.cli import MOST_SEED, printable, up_to, whole_number
from attnzoo.tools.main import main

ROOT = Path(attnzoo.__file__).parent
LONG = "x" * 300


def attnzoo_command(*words: str, **options: Any) -> subprocess.CompletedProcess:
    """``python -m attnzoo`` in a process of its own."""
    environment = {**os.environ, "PYTHONPATH": str(ROOT.parent), **options.pop("env", {})}
    options = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True, **options}
    return subprocess.run([sys.executable, "-m", "attnzoo", *words], env=environment, timeout=60, **options)


def fail_with(error: BaseException) -> Callable[[Any], int]:
    def run(args: Any) -> int:
        raise error

    return run


@pytest.mark.parametrize("unbuffered", ["", "1"])
def test_a_full_disk_under_the_output(unbuffered: str) -> None:
    with Path("/dev/full").open("w") as full:
        done = attnzoo_command("list", "van_b0", stdout=full, env={"PYTHONUNBUFFERED": unbuffered})
    assert (done.returncode, done.stderr) == (2, "attnzoo list: cannot write the output: No space left on device\n")


def test_a_closed_output_is_no_error() -> None:
    words = ["sh", "-c", f"exec '{sys.executable}' -m attnzoo list van_b0 >&-"]
    done = subprocess.run(words, env={**os.environ, "PYTHONPATH": str(ROOT.parent)}, capture_output=True, text=True)
    assert (done.returncode, done.stderr) == (0, "")


def test_a_full_disk_under_the_messages() -> None:
    with Path("/dev/full").open("w") as full:
        assert attnzoo_command("info", "no_such_model", stderr=full).returncode == 2


def test_text_that_the_locale_cannot_encode() -> None:
    posix = {"PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0", "LC_ALL": "POSIX"}
    done = attnzoo_command("weights", "list", "--json", env=posix)
    assert done.returncode == 0, done.stderr
    assert done.stdout.isascii() and any(not str(row).isascii() for row in json.loads(done.stdout))


@pytest.mark.parametrize(
    "words",
    [
        ["eval", "dinat_nano.digits", "--data", LONG],
        ["eval", "dinat_nano.digits", "--data", "digits", "--results", f"{LONG}.json"],
        ["train", LONG],
        ["export", "dinat_nano.digits", "--output", f"{LONG}.onnx"],
        ["weights", "verify", LONG],
    ],
)
def test_a_name_that_is_too_long(words: list[str], capsys: pytest.CaptureFixture) -> None:
    assert main(words) == 2
    said = capsys.readouterr().err
    assert said.count("\n") == 1 and LONG in said and "File name too long" in said


@pytest.mark.parametrize(
    ("error", "said"),
    [
        (PermissionError(errno.EACCES, "Permission denied", "/locked/x"), "/locked/x: Permission denied"),
        (PermissionError(errno.EACCES, "Permission denied", Path("/locked/x")), "/locked/x: Permission denied"),
        (OSError(errno.EXDEV, "Invalid cross-device link", "a", None, "b\x1b[31m"), r"a -> b\x1b[31m: Invalid cross-d"),
        (OSError(errno.ENOSPC, "No space left on device"), "cannot write the output: No space left on device"),
        (MemoryError("Unable to allocate 3 TiB"), "out of memory: Unable to allocate 3 TiB"),
        (MemoryError(), "out of memory\n"),
    ],
)
def test_errors_of_the_users_machine_are_one_line(
    error: Exception, said: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    monkeypatch.setattr(listing, "run", fail_with(error))
    assert main(["list"]) == 2
    err = capsys.readouterr().err
    assert err.startswith(f"attnzoo list: {said}") and err.count("\n") == 1


@pytest.mark.parametrize("error", [OSError("no number"), OSError(errno.EBADF, "Bad", 7), KeyError("x"), ValueError()])
def test_other_errors_keep_their_traceback(error: Exception, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(listing, "run", fail_with(error))
    with pytest.raises(type(error)):
        main(["list"])


def test_pictures_are_drawn_without_a_display(monkeypatch: pytest.MonkeyPatch) -> None:
    """What a notebook leaves in the environment fails in matplotlib's first import elsewhere."""
    monkeypatch.setenv("MPLBACKEND", "module://no_such_backend")
    assert main(["list", "van_b0"]) == 0
    assert os.environ["MPLBACKEND"] == "agg"


def test_names_cannot_move_the_cursor() -> None:
    assert printable("a\nb\x1b[2J\u202e\udcff ü–漢.png") == r"a\nb\x1b[2J\u202e\udcff ü–漢.png"


@pytest.mark.parametrize("text", ["0", "-3", "4294967296", "9" * 30, "9" * 5000, "1.5", "one", ""])
def test_numbers_that_are_refused(text: str) -> None:
    with pytest.raises(Exception, match="is not a whole number of at least 1|is too large; 4294967295 is the most"):
        whole_number(1, MOST_SEED)(text)


def test_numbers_that_are_taken() -> None:
    assert whole_number(1, MOST_SEED)("4294967295") == MOST_SEED
    assert up_to(10)("-10") == -10


@pytest.mark.parametrize(
    "words",
    [
        ["eval", "dinat_nano.digits", "--data", "digits", "--seed"],
        ["eval", "dinat_nano.digits", "--data", "digits", "--threads"],
        ["eval", "dinat_nano.digits", "--data", "digits", "--batch-size"],
        ["eval", "dinat_nano.digits", "--data", "digits", "--img-size"],
        ["eval", "dinat_nano.digits", "--data", "digits", "--num-classes"],
        ["visualize", "dinat_nano", "--list-layers", "--seed"],
        ["visualize", "dinat_nano", "--list-layers", "--img-size"],
        ["visualize", "dinat_nano", "--list-layers", "--num-classes"],
        ["info", "dinat_nano", "--img-size"],
        ["export", "dinat_nano", "--img-size"],
        ["bench", "ops", "--threads"],
        ["bench", "ops", "--batch"],
        ["bench", "diffusion", "--sizes"],
        ["demo", "--threads"],
        ["demo-dense", "--seed"],
        ["toys", "--seed"],
        ["mm", "train", "x.py", "--seed"],
    ],
    ids=lambda words: f"{words[0]} {words[-1]}",
)
def test_a_number_of_thirty_digits(words: list[str], capsys: pytest.CaptureFixture) -> None:
    with pytest.raises(SystemExit) as ended:
        main([*words, "9" * 30])
    assert ended.value.code == 2 and "is too large; " in capsys.readouterr().err


def test_ctrl_c_that_an_import_swallows(tmp_path: Path) -> None:
    """As NumPy does: what its extension modules raise becomes an ImportError."""
    (tmp_path / "timm").mkdir()
    body = "import os, signal\ntry:\n    os.kill(os.getpid(), signal.SIGINT)\n    os.getpid()\n"
    (tmp_path / "timm" / "__init__.py").write_text(f"{body}except KeyboardInterrupt:\n    raise ImportError('twice')\n")
    done = attnzoo_command("list", env={"PYTHONPATH": os.pathsep.join([str(tmp_path), str(ROOT.parent)])})
    assert (done.returncode, done.stderr) == (130, "attnzoo: interrupted\n")


def test_after_the_imports_ctrl_c_is_an_exception_again() -> None:
    code = "import sys; sys.argv[0] = 'attnzoo'; import attnzoo, signal; print(signal.getsignal(signal.SIGINT))"
    environment = {**os.environ, "PYTHONPATH": str(ROOT.parent)}
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env=environment)
    assert done.stdout == f"{signal.default_int_handler}\n", done.stderr
