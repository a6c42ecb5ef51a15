"""The ``attnzoo`` command: finds the subcommand, runs it and turns its errors into one line."""

import argparse
import ast
import errno
import importlib
import io
import os
import sys
from collections.abc import Sequence
from pathlib import Path

from .._version import __version__
from ..weights import CheckpointError
from .cli import EXIT_BAD_INPUT, EXIT_BROKEN_PIPE, EXIT_INTERRUPTED, HelpFormatter, UserError, printable
from .files import DISK_FULL

COMMANDS = (
    "list",
    "info",
    "eval",
    "train",
    "weights",
    "mm",
    "table",
    "diffuse",
    "bench",
    "export",
    "visualize",
    "app",
    "toys",
    "demo",
    "demo-dense",
)


def _module(command: str) -> str:
    return command.replace("-", "_")


def _summary(command: str) -> str:
    """First line of a subcommand's docstring, read without importing it: what one needs is not every one's."""
    source = Path(__file__).with_name(f"{_module(command)}.py").read_text(encoding="utf-8")
    return (ast.get_docstring(ast.parse(source)) or "").split("\n")[0]


def build_parser(command: str | None = None) -> argparse.ArgumentParser:
    """The parser for all subcommands; only ``command`` gets its own options, since that imports it."""
    parser = argparse.ArgumentParser("attnzoo", description="Efficient-attention vision backbones.")
    parser.add_argument("--version", action="version", version=f"attnzoo {__version__}")
    subparsers = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")
    for name in COMMANDS:
        summary = _summary(name)
        sub = subparsers.add_parser(name, help=summary, description=summary, formatter_class=HelpFormatter)
        if name == command:
            importlib.import_module(f".{_module(name)}", __package__).add_arguments(sub)
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    argv = list(sys.argv[1:] if argv is None else argv)
    command = next((word for word in argv if not word.startswith("-")), None)
    # Every picture is drawn without a display; a notebook leaves its own backend here, which may not be installed.
    os.environ["MPLBACKEND"] = "agg"
    _accept_any_text()
    try:
        args = build_parser(command).parse_args(argv)
        status = importlib.import_module(f".{_module(args.command)}", __package__).run(args)
        if sys.stdout is not None:
            sys.stdout.flush()
        return status
    except KeyboardInterrupt:
        return _end("attnzoo: interrupted", EXIT_INTERRUPTED)
    except BrokenPipeError:
        return _end("", EXIT_BROKEN_PIPE)
    except (UserError, CheckpointError, MemoryError, OSError) as error:
        if (said := _in_words(error)) is None:
            # Any other error is ours to mend, and keeps its traceback.
            raise
        return _end(f"attnzoo {command}: {printable(' '.join(said.split()))}", EXIT_BAD_INPUT)


def _accept_any_text() -> None:
    """A locale without a character, or a name that is not in its encoding, is no reason to fail: it is escaped."""
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")


def _in_words(error: Exception) -> str | None:
    """What the user can mend about an error; None where it is not the user's."""
    if isinstance(error, MemoryError):
        return f"out of memory: {error}".rstrip(": ")
    if not isinstance(error, OSError):
        return str(error)
    paths = [path for path in (error.filename, error.filename2) if isinstance(path, (str, bytes, os.PathLike))]
    if paths and error.strerror:
        names = [os.fsdecode(path) or "''" for path in paths]
        return f"{' -> '.join(names)}: {error.strerror}"
    # A write to a stream that is open already has no name: a full disk, or a terminal that has gone.
    if error.errno in (*DISK_FULL, errno.EIO):
        return f"cannot write the output: {error.strerror}"
    return None


def _end(line: str, status: int) -> int:
    """Says the line and returns the status; what can no longer be written to a stream is dropped."""
    for stream, text in ((sys.stdout, ""), (sys.stderr, f"{line}\n" if line else "")):
        try:
            if stream is not None:
                stream.write(text)
                stream.flush()
        except OSError:
            # Python's own flush at exit would fail once more.
            os.dup2(os.open(os.devnull, os.O_WRONLY), stream.fileno())
    return status


if __name__ == "__main__":
    sys.exit(main())
