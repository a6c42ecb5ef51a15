"""List, download, verify and convert published checkpoints.

    attnzoo weights list 'dinat*'
    attnzoo weights pull nat_mini.shi_in1k
    attnzoo weights verify nat_mini.shi_in1k my_training.pth
    attnzoo weights convert biformer_tiny biformer_tiny_in1k.pth biformer_tiny.safetensors

Exit status 2 where a checkpoint cannot be had, is damaged or does not fit.
"""

import argparse
import dataclasses
import json
import os
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from rich.progress import BarColumn, DownloadColumn, Progress, TextColumn, TimeRemainingColumn, TransferSpeedColumn
from rich.table import Column, Table

from .._version import __version__
from ..weights import (
    CheckpointError,
    cache,
    fetch,
    load_checkpoint,
    pretrained_file,
    read_checkpoint,
    save_safetensors,
    unwrap,
)
from ..weights.kinds import sniff
from ..weights.manifest import Entry, entries, find
from ..weights.values import check_finite
from .cli import EXIT_BAD_INPUT, EXIT_OK, HelpFormatter, UserError, did_you_mean

TASKS = ("classification", "detection", "instance", "semantic", "panoptic")
DTYPES = ("float32", "float16", "bfloat16")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The four actions and their options."""
    actions = parser.add_subparsers(dest="action", required=True, metavar="ACTION")

    def action(name: str, summary: str) -> argparse.ArgumentParser:
        return actions.add_parser(name, help=summary, description=summary, formatter_class=HelpFormatter)

    sub = action("list", "Published checkpoints and figures.")
    sub.add_argument("pattern", nargs="?", default="*", metavar="PATTERN", help="names to show, with * and ?")
    sub.add_argument("--task", choices=TASKS, help="only this task (default: all)")
    sub.add_argument("--json", action="store_true", help="print the manifest's rows as JSON")

    sub = action("pull", "Download a checkpoint into the cache and check it.")
    sub.add_argument("name", metavar="NAME", help="tagged model name or manifest id; a bare model name is its first")
    _cache_options(sub)

    sub = action("verify", "Check cached checkpoints, or any checkpoint files.")
    sub.add_argument("names", nargs="+", metavar="NAME|FILE", help="manifest names (looked up in the cache) or files")
    sub.add_argument("--cache-dir", metavar="DIR", help="folder of downloads (default: torch.hub's)")

    sub = action("convert", "Write a published checkpoint as safetensors under the zoo's names.")
    sub.add_argument("model", metavar="MODEL", help="timm name of the model, with a tag where its classes matter")
    sub.add_argument("file", metavar="FILE", help="the checkpoint")
    sub.add_argument("out", metavar="OUT", help="the .safetensors file to write")
    sub.add_argument("--key", help="take the weights under this key (model_ema, …; default: model or state_dict)")
    sub.add_argument("--dtype", choices=DTYPES, default="float32", help="precision to write")
    sub.add_argument("--overwrite", action="store_true", help="replace OUT where it exists")


def _cache_options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--cache-dir", metavar="DIR", help="folder of downloads (default: torch.hub's)")
    parser.add_argument("--offline", action="store_true", help="only look in the cache")


def run(args: argparse.Namespace) -> int:
    """Do the action; returns the exit status."""
    return {"list": _list, "pull": _pull, "verify": _verify, "convert": _convert}[args.action](args)


def _console(**options: Any) -> Console:
    # A pipe has no width: make room for whole rows.
    return Console(width=None if sys.stdout.isatty() else 160, **options)


def _list(args: argparse.Namespace) -> int:
    pattern = args.pattern if any(sign in args.pattern for sign in "*?[") else f"*{args.pattern}*"
    rows = [entry for entry in entries() if fnmatchcase(entry.id, pattern) and args.task in (None, entry.task)]
    if args.json:
        print(json.dumps([dataclasses.asdict(entry) for entry in rows], indent=1))
        return EXIT_OK
    if not rows:
        hint = did_you_mean(args.pattern, [entry.id for entry in entries()])
        raise UserError(f"no published checkpoint matches '{args.pattern}'{hint}")
    name = Column("name", no_wrap=True)
    title = f"{len(rows)} rows" if len(rows) > 1 else "1 row"
    table = Table(name, "task", "data", "published", "params M", "file", "licence", title=title)
    for entry in rows:
        params = "" if entry.params_m is None else f"{entry.params_m:g}"
        table.add_row(entry.id, entry.task, entry.dataset, _figures(entry), params, _file(entry), entry.license)
    _console().print(table)
    return EXIT_OK


def _figures(entry: Entry) -> str:
    return ", ".join(f"{name} {value:g}" for name, value in entry.metrics.items() if "throughput" not in name)


def _file(entry: Entry) -> str:
    size = "" if entry.size is None else f", {entry.size / 1e6:.0f} MB"
    return {"direct": "download", "page": "share page", "none": "none"}[entry.host] + size


def _pull(args: argparse.Namespace) -> int:
    entry = find(args.name)
    with _progress(entry.id) as progress:
        path = fetch(entry, args.cache_dir, args.offline, progress)
    cache.check_keys(path, entry, _read(path, entry)[1])
    print(path)
    return EXIT_OK


@contextmanager
def _progress(name: str) -> Iterator[Callable[[int, int | None], None]]:
    """A progress bar on stderr that appears with the first bytes."""
    columns = (TextColumn("{task.description}"), BarColumn(), DownloadColumn(), TransferSpeedColumn())
    bar = Progress(*columns, TimeRemainingColumn(), console=Console(stderr=True), transient=True)
    task = bar.add_task(name, total=None)

    def update(done: int, total: int | None) -> None:
        bar.start()
        bar.update(task, completed=done, total=total)

    try:
        yield update
    finally:
        if bar.live.is_started:
            bar.stop()


def _read(path: Path, entry: Entry | None) -> tuple[str, dict[str, torch.Tensor]]:
    """Read a file as the models would; what it holds, in words and as tensors."""
    checkpoint = read_checkpoint(path)
    try:
        state_dict, where = unwrap(checkpoint, key if (key := entry and entry.top_level_key) in checkpoint else None)
        check_finite(state_dict)
    except CheckpointError as error:
        raise CheckpointError(error.problem, path) from None
    values = sum(tensor.numel() for tensor in state_dict.values())
    return f"{len(state_dict)} tensors, {values / 1e6:.2f} M values, from {where}", state_dict


def _verify(args: argparse.Namespace) -> int:
    failed = 0
    for name in args.names:
        try:
            path, entry = _cached(name, args.cache_dir)
            content, state_dict = _read(path, entry)
            # All of it is hashed: the marker that makes everyday use cheap proves nothing here.
            if entry is None:
                sha256 = cache.file_sha256(path)
                entry = next((known for known in entries() if sha256 == known.sha256), None)
            else:
                sha256 = cache.verify(path, entry)
                cache.check_keys(path, entry, state_dict)
            origin = f" (published as {entry.id})" if entry else ""
            print(f"{path}: good{origin}, {content}, SHA-256 {sha256}")
        except CheckpointError as error:
            failed += 1
            print(f"attnzoo weights verify: {error}", file=sys.stderr)
    return EXIT_BAD_INPUT if failed else EXIT_OK


def _cached(name: str, cache_dir: str | None) -> tuple[Path, Entry | None]:
    """A file as it is, or the bundled or cached file of a manifest name with what should be in it."""
    if Path(name).exists() or "/" in name or name.endswith((".pth", ".pt", ".bin", ".tar", ".safetensors")):
        return Path(name), None
    if bundled := pretrained_file(name):
        return bundled, None
    entry = find(name)
    path = cache.cache_path(entry, cache_dir)
    if not path.exists() and (converted := cache.converted_path(entry, cache_dir)).exists():
        return converted, None
    if not path.exists():
        raise CheckpointError(f"{entry.id} is not in the cache ({path}); 'attnzoo weights pull {name}' fetches it")
    return path, entry


def _convert(args: argparse.Namespace) -> int:
    out = _checked_out(args)
    sniff(args.file)
    import timm

    from .. import zoo  # noqa: F401  registers the models
    from .evaluation.models import check_name

    if not timm.is_model(args.model.split(".")[0]):
        raise UserError(f"there is no model '{args.model}'{did_you_mean(args.model, timm.list_models())}")
    check_name(args.model)
    state_dict, taken, report = _converted(args)
    dtype = getattr(torch, args.dtype)
    state_dict = {
        name: tensor.to(dtype) if tensor.is_floating_point() else tensor for name, tensor in state_dict.items()
    }
    metadata = {
        "model": args.model,
        "source": Path(args.file).name,
        "source_sha256": cache.file_sha256(args.file),
        "taken": taken,
        "attnzoo": __version__,
    }
    save_safetensors(state_dict, out, metadata)
    print(report)
    print(f"{out}: {len(state_dict)} tensors in {args.dtype}, {out.stat().st_size / 1e6:.1f} MB")
    return EXIT_OK


def _converted(args: argparse.Namespace) -> tuple[dict[str, Any], str, str]:
    """A classifier's or a whole detector's state dict, where in the file it was, and a line for the user."""
    from timm import create_model

    from .dense.published import convert_published

    if whole := convert_published(args.model, args.file, args.key):
        state_dict, taken = whole
        return state_dict, taken, f"{args.file}: {len(state_dict)} tensors of a detector or segmenter from {taken}"
    model = create_model(args.model)
    report = load_checkpoint(model, args.file, key=args.key)
    return model.state_dict(), report.taken, str(report)


def _checked_out(args: argparse.Namespace) -> Path:
    """The output path, refused before the work where it could not be written after it."""
    out = Path(args.out)
    if out.suffix != ".safetensors":
        raise UserError(f"OUT must end in .safetensors, not '{out.name}'")
    if not out.parent.is_dir():
        raise UserError(f"OUT cannot be written: there is no folder {out.parent}")
    if not os.access(out.parent, os.W_OK):
        raise UserError(f"OUT cannot be written: the folder {out.parent} is not writable")
    if out.is_dir():
        raise UserError(f"OUT is a folder: {out}")
    if out.resolve() == Path(args.file).resolve():
        raise UserError(f"OUT and FILE are the same: {out}")
    if out.exists() and not args.overwrite:
        raise UserError(f"OUT exists: {out} (--overwrite replaces it)")
    return out
