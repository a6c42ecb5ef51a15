"""Measure speed: one subcommand a subject."""

import argparse
import importlib
from types import ModuleType

from .allocator import keep_freed_memory
from .cli import HelpFormatter

SUBJECTS = ("ops", "layers", "models", "diffusion", "plot", "docs")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    subparsers = parser.add_subparsers(dest="subject", required=True, metavar="SUBJECT")
    for name in SUBJECTS:
        summary = (_module(name).__doc__ or "").split("\n")[0]
        sub = subparsers.add_parser(name, help=summary, description=summary, formatter_class=HelpFormatter)
        _module(name).add_arguments(sub)


def run(args: argparse.Namespace) -> int:
    keep_freed_memory(largest=False)
    return _module(args.subject).run(args)


def _module(subject: str) -> ModuleType:
    return importlib.import_module(f".benchmarks.{subject}", __package__)
