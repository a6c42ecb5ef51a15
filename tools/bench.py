"""Measure speed: one subcommand a subject."""

import argparse
import ast
import importlib
from pathlib import Path
from types import ModuleType

from .allocator import keep_freed_memory
from .cli import HelpFormatter

SUBJECTS = ("ops", "layers", "models", "diffusion", "plot", "docs")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    subparsers = parser.add_subparsers(dest="subject", required=True, metavar="SUBJECT")
    for name in SUBJECTS:
        summary = _summary(name)
        sub = subparsers.add_parser(name, help=summary, description=summary, formatter_class=HelpFormatter)
        _module(name).add_arguments(sub)


def run(args: argparse.Namespace) -> int:
    keep_freed_memory(largest=False)
    return _module(args.subject).run(args)


def _module(subject: str) -> ModuleType:
    return importlib.import_module(f".benchmarks.{subject}", __package__)


def _summary(subject: str) -> str:
    source = Path(__file__).with_name("benchmarks") / f"{subject}.py"
    return (ast.get_docstring(ast.parse(source.read_text(encoding="utf-8"))) or "").split("\n")[0]
