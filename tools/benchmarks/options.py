"""What ``attnzoo bench ops``, ``layers`` and ``models`` share: options, the setting they report, their files."""

import argparse
import contextlib
import importlib.metadata
import os
import shlex
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..cli import MOST_IMAGES, MOST_THREADS, UserError, up_to
from ..files import write_atomic
from .report import Report, markdown, write_report

if TYPE_CHECKING:
    import torch

DTYPES = ("float32", "float64", "bfloat16", "float16")

# What an option is where it is not given; of those that not every subject has, too.
_USUAL = {
    "case": "",
    "block": False,
    "backward": False,
    "compile": False,
    "reference": True,
    "threads": 1,
    "device": "cpu",
    "dtype": "float32",
    "backend": "auto",
    "img_size": "224",
    "batch": None,
    "repeat": 9,
}


def add_common_arguments(parser: argparse.ArgumentParser) -> None:
    add_timing_arguments(parser)
    parser.add_argument("--device", default="cpu", help="cpu, cuda, cuda:1, …")
    parser.add_argument("--dtype", choices=DTYPES, default="float32", help="of weights and inputs")
    parser.add_argument("--batch", type=up_to(MOST_IMAGES), metavar="N", help="images (8; 2 for the largest)")


def add_timing_arguments(parser: argparse.ArgumentParser) -> None:
    """What has one value in a run, also where several devices or sizes are measured."""
    parser.add_argument("--backward", action="store_true", help="time forward and backward")
    parser.add_argument("--compile", action="store_true", help="time torch.compile's programs too; takes minutes")
    parser.add_argument("--threads", type=up_to(MOST_THREADS), default=1, metavar="N", help="CPU threads")
    parser.add_argument(
        "--repeat", type=up_to(10**6), default=9, metavar="N", help="samples of each; of slow ones three"
    )
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the figures here")
    parser.add_argument("--markdown", type=Path, metavar="FILE", help="write the tables here")


def prepare(args: argparse.Namespace) -> "torch.device":
    """Checks the common options and sets the number of threads.

    Raises:
        UserError: a count below 1, no such device, or a file that cannot be written.
    """
    import torch

    from ...kernels import use_backend

    # What runs is named in the report: not what ATTNZOO_BACKEND forces, which the report's command would not repeat.
    use_backend(None)
    for name in ("threads", "batch", "repeat"):
        check_count(name, getattr(args, name))
    check_files(args.json, args.markdown)
    device = open_device(args.device)
    torch.set_num_threads(args.threads)
    return device


def check_count(name: str, value: int | None, most: int = 2**31 - 1) -> None:
    """Raises UserError where the option ``--name`` was given a number below 1 or above ``most``."""
    if value is not None and value < 1:
        raise UserError(f"--{name} is {value}; at least 1 is needed")
    if value is not None and value > most:
        raise UserError(f"--{name} is {value}; {most} is the most")


def check_files(*paths: Path | None) -> None:
    """Raises UserError where a file could not be written, or two are one: before the minutes of work whose result it
    takes."""
    given = [path.resolve() for path in paths if path]
    if len(set(given)) < len(given):
        raise UserError(f"{given[0]} would be written twice: every result needs a file of its own")
    for path in filter(None, paths):
        if path.is_dir() or not path.resolve().parent.is_dir() or not os.access(path.resolve().parent, os.W_OK):
            raise UserError(f"{path} cannot be written: name a file in a folder that is there and can be written to")


def open_device(name: str) -> "torch.device":
    """The device of ``--device``.

    Raises:
        UserError: it is not there, or cannot be timed.
    """
    import torch

    try:
        device = torch.device(name)
        torch.empty(1, device=device)
    except (RuntimeError, AssertionError, ImportError) as error:
        raise UserError(f"--device {name}: {str(error).splitlines()[0]}") from None
    if device.type not in ("cpu", "cuda"):
        raise UserError(f"--device is {name}; cpu and cuda can be timed")
    return device


def setting(args: argparse.Namespace, device: "torch.device") -> dict[str, Any]:
    """What a run is measured on and with."""
    from .timing import machine

    versions = {}
    for package in ("timm", "triton", "natten"):
        with contextlib.suppress(importlib.metadata.PackageNotFoundError):
            versions[package] = importlib.metadata.version(package)
    dtype = args.dtype if isinstance(args.dtype, str) else ", ".join(args.dtype)
    names = ("block", "backward", "compile", "reference", "repeat")
    options = {name: getattr(args, name) for name in names if hasattr(args, name)}
    return {"command": command(args), **machine(device), "dtype": dtype, **options, "packages": versions}


def command(args: argparse.Namespace) -> str:
    """The command that measures this again."""
    words = ["attnzoo", "bench", args.subject, *(args.ops if args.subject == "ops" else args.names)]
    for name, default in _USUAL.items():
        value = getattr(args, name, default)
        value = ",".join(map(str, value)) if isinstance(value, list) else value
        if value != default:
            option = f"--{name.replace('_', '-')}"
            switch = {True: [option], False: [f"--no-{name}"]}
            words += switch[value] if isinstance(value, bool) else [option, str(value)]
    return shlex.join(words)


def finish(args: argparse.Namespace, report: Report) -> None:
    """Writes the files that were asked for."""
    if args.json:
        write_report(args.json, report)
    if args.markdown:
        write_atomic(args.markdown, markdown(report).encode())
