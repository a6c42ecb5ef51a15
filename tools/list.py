"""List the zoo's models with their size and published accuracy."""

import argparse
import json
from typing import Any

import timm
import torch
from rich.console import Console
from rich.table import Table

from ..weights import manifest
from ..weights.sizes import PARAMETERS
from ..zoo import list_models
from .cli import UserError, did_you_mean


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("pattern", nargs="?", metavar="PATTERN", help="such as 'dinat*' (all models)")
    parser.add_argument("--pretrained", action="store_true", help="a line for each set of published weights")
    parser.add_argument("--json", action="store_true", help="print JSON")


def run(args: argparse.Namespace) -> int:
    pattern = args.pattern or "*"
    names = list_models(pattern) or list_models(f"*{pattern}*")
    if not names:
        raise UserError(f"no model matches {pattern}{did_you_mean(pattern, list_models()) or '; see attnzoo list'}")
    rows = [row for name in names for row in (_pretrained_rows(name) if args.pretrained else [_row(name)])]
    if args.json:
        print(json.dumps(rows, indent=2))
    else:
        _print_table(rows, args.pretrained)
    return 0


def _row(name: str) -> dict[str, Any]:
    """The model and the figures of its default weights, or of the first published ones at its own resolution."""
    published = [entry for entry in manifest.entries() if entry.backbone == name and entry.task == "classification"]
    default = timm.get_pretrained_cfg(name)
    tagged = f"{name}.{default.tag}" if default is not None and default.tag else name
    entry = next((entry for entry in published if entry.model == tagged), published[0] if published else None)
    return {
        "name": name,
        "params_m": _params_m(name),
        "top1": entry.metrics.get("top1") if entry else None,
        "resolution": entry.resolution if entry and entry.resolution else default and default.input_size[-1],
        "weights": timm.list_pretrained(f"{name}.*"),
    }


def _pretrained_rows(name: str) -> list[dict[str, Any]]:
    published = {entry.model: entry for entry in manifest.entries() if entry.model}
    rows = []
    for tagged in timm.list_pretrained(f"{name}.*"):
        entry, cfg = published.get(tagged), timm.get_pretrained_cfg(tagged)
        rows.append(
            {
                "name": tagged,
                "params_m": _params_m(tagged),
                "top1": entry.metrics.get("top1") if entry else None,
                "resolution": cfg.input_size[-1],
                "dataset": entry.dataset if entry else None,
                "license": entry.license if entry else cfg.license,
                "source": {"direct": "download", "page": "share page"}.get(entry.host, "none") if entry else "package",
            }
        )
    return rows


def _params_m(name: str) -> float:
    """In millions: the measured number, or counted (which takes a second) for a model that came later."""
    known = PARAMETERS.get(name, PARAMETERS.get(name.partition(".")[0]))
    if known is None:
        with torch.device("meta"):
            known = sum(parameter.numel() for parameter in timm.create_model(name).parameters())
    return known / 1e6


def _print_table(rows: list[dict[str, Any]], pretrained: bool) -> None:
    table = Table(box=None, pad_edge=False)
    table.add_column("weights" if pretrained else "model", no_wrap=True)
    for title in ("params (M)", "top-1 (%)", "pixels"):
        table.add_column(title, justify="right", no_wrap=True)
    for title in ("data set", "licence", "from") if pretrained else ("weights",):
        table.add_column(title, overflow="fold")
    for row in rows:
        figures = [f"{row['params_m']:.2f}", _text(row["top1"], ".2f"), _text(row["resolution"])]
        if pretrained:
            rest = [_text(row["dataset"]), _text(row["license"]), row["source"]]
        else:
            rest = [" ".join(name.partition(".")[2] for name in row["weights"]) or "-"]
        table.add_row(row["name"], *figures, *rest)
    console = Console()
    if not console.is_terminal:
        console.width = 200
    console.print(table, highlight=False)


def _text(value: Any, form: str = "") -> str:
    return "-" if value is None else format(value, form)
