"""The ``attnzoo`` command: finds the subcommand, runs it and turns its errors into one line."""

import argparse
import ast
import importlib
import os
import sys
from collections.abc import Sequence
from pathlib import Path

from .._version import __version__
from ..weights import CheckpointError
from .cli import EXIT_BAD_INPUT, EXIT_BROKEN_PIPE, EXIT_INTERRUPTED, HelpFormatter, UserError

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
    try:
        args = build_parser(command).parse_args(argv)
        status = importlib.import_module(f".{_module(args.command)}", __package__).run(args)
        sys.stdout.flush()
        return status
    except KeyboardInterrupt:
        print("attnzoo: interrupted", file=sys.stderr)
        return EXIT_INTERRUPTED
    except BrokenPipeError:
        # Who read the output has left; Python's own flush at exit would fail once more.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return EXIT_BROKEN_PIPE
    except (UserError, CheckpointError) as error:
        # Any other error is ours to mend, and keeps its traceback.
        print(f"attnzoo {command}: {' '.join(str(error).split())}", file=sys.stderr)
        return EXIT_BAD_INPUT


if __name__ == "__main__":
    sys.exit(main())
