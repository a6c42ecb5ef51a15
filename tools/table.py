"""Write the table of all models: measured beside published, and the proof of parity."""

import argparse
import math
import os
import sys
from pathlib import Path

import timm
import torch

from ..weights.manifest import Entry, entries
from ..zoo import list_models
from .cli import UserError
from .dense.matrix import with_configs
from .files import read_json, read_text, write_atomic
from .info import describe

_PARITY = Path(__file__).parents[1] / "results" / "parity.json"

_HEAD = """# Models

Written by `attnzoo table --output docs/models.md`; a test compares it with what the command writes.

Parameters are in millions, multiply-adds (GMACs) in units of 10^9 for one image at the given resolution. Measured
multiply-adds are those of all matrix products and convolutions, attention included, counted by PyTorch's flop
counter on whichever of the `reference` and `torch` implementations needs fewer; publications count in different
ways, which footnotes explain where the difference is more than 1 % beyond the published figure's own rounding.
Top-1 is the published ImageNet-1k accuracy of the checkpoint named; nothing in this table was evaluated on ImageNet
here. Parity is the relative error of our float64 logits against the published code's (`make parity`): "keys" means
that only parameter names, shapes and count were recorded for that variant; a dash, that there is no reference to
compare with.

| model | parameters | published | GMACs | published | resolution | top-1 | checkpoint | parity |
|---|---|---|---|---|---|---|---|---|
"""

_BEGIN = "<!-- models: written by `attnzoo table --readme README.md` -->"
_END = "<!-- end of models -->"

# Why a family's published figures differ from ours by more than a per cent.
NOTES = {
    "nat": "The file's head has 21,841 classes; the published figure is for a head of 1,000.",
    "flowformer": "The printed 41 MB are binary millions (43.31 M / 2^20 = 41.3). The printed 6.3 G are less than the"
    " linear layers and convolutions alone need (6.78 G); how they were counted is not stated.",
    "mavit": "The published multiply-adds are close to those of linear layers and convolutions alone (2.44, 4.53,"
    " 9.83 and 16.14 G for tiny to large); ours include the attention's products.",
    "overlock": "The published counts are of the merged branches without the auxiliary head (16.45, 33.5, 56.2 and"
    " 94.9 M for xt to base); ours are of the training form. The small model's multiply-adds are 2 % below the"
    " printed ones for a reason not found.",
}

RECONSTRUCTION = (
    "A reconstruction from the paper, fitted to the published sizes: neither code nor weights were published, and the"
    " published accuracies belong to the authors' models."
)
UNTAGGED = (
    "A share page is named for it, but not how many classes the file's head has, so that no tag loads it;"
    " `attnzoo weights list` has the address."
)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--pattern", default="*", metavar="PATTERN", help="models to list")
    parser.add_argument("--parity", type=Path, default=_PARITY, metavar="FILE", help="errors that 'make parity' wrote")
    parser.add_argument("--output", type=Path, metavar="FILE", help="write here instead of printing")
    parser.add_argument(
        "--readme", type=Path, metavar="FILE", help="renew the families' summary in this README instead"
    )
    parser.add_argument(
        "--configs", type=Path, metavar="FILE", help="renew the mmdet and mmseg configs in this README instead"
    )


def run(args: argparse.Namespace) -> int:
    if args.readme is not None:
        write_atomic(args.readme, with_summary(read_text(args.readme)).encode())
        return 0
    if args.configs is not None:
        write_atomic(args.configs, with_configs(read_text(args.configs)).encode())
        return 0
    text = models_table(args.pattern, args.parity)
    if args.output is None:
        print(text, end="")
    else:
        write_atomic(args.output, text.encode())
    return 0


def models_table(pattern: str = "*", parity: Path = _PARITY) -> str:
    """The Markdown text of docs/models.md.

    Raises:
        UserError: no model matches, or the parity results cannot be read.
    """
    names = list_models(pattern)
    if not names:
        raise UserError(f"no model matches {pattern!r}; 'attnzoo list' shows all")
    try:
        errors = read_json(parity)
    except UserError as error:
        raise UserError(f"{error}; 'make parity' writes it") from None
    if not isinstance(errors, dict) or not all(isinstance(error, float | int | None) for error in errors.values()):
        raise UserError(f"{parity} is no table of errors by model; 'make parity' writes it")
    notes: list[str] = []
    rows = [_row(name, errors, notes) for name in names]
    footnotes = "".join(f"\n[^{i}]: {note}\n" for i, note in enumerate(notes, 1))
    return _HEAD + "\n".join(rows) + "\n" + footnotes


def with_summary(readme: str) -> str:
    """A README's text with the families' summary between its two markers renewed.

    Raises:
        UserError: the markers are not there.
    """
    before, found, rest = readme.partition(_BEGIN)
    _, closed, after = rest.partition(_END)
    if not found or not closed:
        raise UserError(f"the README lacks the lines {_BEGIN!r} and {_END!r}")
    families: dict[str, list[str]] = {}
    for name in list_models():
        families.setdefault(timm.model_entrypoint(name).__module__, []).append(name)
    rows = [_summary(module, names) for module, names in sorted(families.items())]
    table = "\n".join(["| family | models | parameters |", "|---|---|---|", *rows])
    return f"{before}{_BEGIN}\n{table}\n{_END}{after}"


def _summary(module: str, names: list[str]) -> str:
    """One family: its file's first line, its names with their common start once, and the span of its sizes."""
    title = (sys.modules[module].__doc__ or "").strip().split("\n")[0].rstrip(".")
    sizes = {name: _millions(name) for name in names}
    names = sorted(names, key=sizes.__getitem__)
    start = os.path.commonprefix(names)
    start = start[: start.rfind("_") + 1]
    shown = ", ".join(f"`{name}`" for name in names)
    if start and len(names) > 1:
        shown = f"`{start}` " + ", ".join(name.removeprefix(start) for name in names)
    low, high = sizes[names[0]], sizes[names[-1]]
    return (
        f"| {title} | {shown} | {low:.1f} M |" if low == high else f"| {title} | {shown} | {low:.1f} to {high:.1f} M |"
    )


def _millions(name: str) -> float:
    with torch.device("meta"):
        return sum(parameter.numel() for parameter in timm.create_model(name).parameters()) / 1e6


def _row(name: str, errors: dict[str, float | None], notes: list[str]) -> str:
    facts = describe(name)
    entry = _published(name)
    params, gmacs = facts["parameters"] / 1e6, facts["gmacs"]
    cells = [
        f"`{name}`{_reconstruction(name, notes)}",
        f"{params:.2f}",
        _figure(entry and entry.params_m, params, name, notes),
        f"{gmacs:.2f}" if gmacs >= 0.01 else f"{gmacs:.1g}",
        _figure(entry and entry.flops_g, gmacs, name, notes),
        "×".join(str(n) for n in facts["img_size"]),
        _top1(entry),
        _checkpoint(entry, notes),
        _parity(name, errors),
    ]
    return f"| {' | '.join(cells)} |"


def _published(name: str) -> Entry | None:
    """The row of the model's default checkpoint, else of its published figures."""
    tag = timm.get_pretrained_cfg(name).tag
    rows = [entry for entry in entries() if entry.task == "classification" and entry.backbone == name]
    return next((entry for entry in rows if entry.model == f"{name}.{tag}"), rows[0] if rows else None)


def _figure(published: float | None, measured: float, name: str, notes: list[str]) -> str:
    """The published figure, with a footnote where it is more than 1 % off, beyond its own rounding."""
    if published is None:
        return "–"
    text = f"{published:g}"
    digits = len(text.partition(".")[2])
    off = max(0.0, abs(published - measured) - 0.5 * 10**-digits) / published
    if off <= 0.01:
        return text
    family = timm.model_entrypoint(name).__module__.rsplit(".", 1)[-1]
    note = NOTES.get(family, f"{family}: more than 1 % from the published figure; no cause known.")
    return f"{text}{_mark(note, notes)}"


def _mark(note: str, notes: list[str]) -> str:
    """The footnote's mark; a new one comes last."""
    if note not in notes:
        notes.append(note)
    return f"[^{notes.index(note) + 1}]"


def _reconstruction(name: str, notes: list[str]) -> str:
    """A footnote where the family's file says that it is no port of published code."""
    title = (sys.modules[timm.model_entrypoint(name).__module__].__doc__ or "").split("\n")[0]
    return _mark(RECONSTRUCTION, notes) if "a reconstruction" in title else ""


def _top1(entry: Entry | None) -> str:
    return f"{entry.metrics['top1']:.1f}" if entry is not None and "top1" in entry.metrics else "–"


def _checkpoint(entry: Entry | None, notes: list[str]) -> str:
    if entry is None or entry.host == "none":
        return "–"
    if entry.model is None:
        return f"–{_mark(UNTAGGED, notes)}"
    return f"`{entry.model.partition('.')[2]}`" + (" (share page)" if entry.host == "page" else "")


def _parity(name: str, errors: dict[str, float | None]) -> str:
    """The worst of the model's fixtures, or what was compared instead of numbers."""
    if name not in errors:
        return "–"
    error = errors[name]
    return "keys" if error is None else f"10^{math.floor(math.log10(max(error, 1e-16)))}"
