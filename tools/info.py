"""Show a model's size, cost, feature pyramid and published results."""

import argparse
import json
from typing import Any

import timm
import torch
from rich.console import Console
from rich.table import Table
from torch import nn

from ..kernels import use_backend
from ..weights import cache, manifest, pretrained_file
from .cli import MOST_SIDE, UserError, up_to
from .counting import fewest_multiply_adds
from .evaluation.models import check_name

_COUNTER = (
    "multiply-adds of matrix products and convolutions in one forward pass of one image, attention included "
    "(torch.utils.flop_counter, {backend} implementation, FLOPs / 2)"
)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("model", metavar="MODEL", help="name of a model of attnzoo or timm, with or without tag")
    parser.add_argument(
        "--img-size", type=up_to(MOST_SIDE), nargs="+", metavar="N",
        help="side, or height and width, to count at (the model's)",
    )  # fmt: skip
    parser.add_argument("--activations", action="store_true", help="count outputs of convolutions and linear layers")
    parser.add_argument("--json", action="store_true", help="print JSON")


def run(args: argparse.Namespace) -> int:
    check_name(args.model)
    if args.img_size and (len(args.img_size) > 2 or min(args.img_size) < 1):
        raise UserError(f"--img-size takes one or two numbers of at least 1, not {' '.join(map(str, args.img_size))}")
    facts = describe(args.model, args.img_size, args.activations)
    if args.json:
        print(json.dumps(facts, indent=2))
    else:
        _print(facts)
    return 0


def describe(name: str, img_size: list[int] | None = None, activations: bool = False) -> dict[str, Any]:
    """All that is known about a model.

    Args:
        name: With or without tag.
        img_size: One or two sides to count at; the model's own by default.
        activations: Count these too.

    Raises:
        UserError: The model does not take the size.
    """
    with torch.device("meta"):
        model = timm.create_model(name).eval().requires_grad_(False)  # the counter hooks what has gradients
    channels, *sides = model.pretrained_cfg["input_size"]
    size = (img_size[0], img_size[-1]) if img_size else tuple(sides)
    base = name.partition(".")[0]
    rows = [
        entry for entry in manifest.entries() if entry.backbone == base or (entry.model or "").split(".")[0] == base
    ]
    return {
        "name": name,
        "parameters": sum(parameter.numel() for parameter in model.parameters()),
        "img_size": list(size),
        **_costs(model, (channels, *size), name, activations),
        "num_classes": model.num_classes,
        "features": _pyramid(model),
        "published": [_published(entry) for entry in rows],
        "weights": [_weights(entry) for entry in rows if entry.url or entry.file] + _bundled(base),
    }


def _costs(model: nn.Module, input_size: tuple[int, ...], name: str, activations: bool) -> dict[str, Any]:
    """Counted on the meta device: no memory, no time, and the same on every machine."""
    image = torch.empty(1, *input_size, device="meta")
    try:
        count, backend = fewest_multiply_adds(model, image)
        outputs = _outputs(model, image) if activations else 0
    except (ValueError, AssertionError, RuntimeError, OverflowError) as error:
        side = "x".join(map(str, input_size[1:]))
        raise UserError(f"{name} does not take {side} images: {error}") from None
    costs: dict[str, Any] = {"gmacs": round(count / 1e9, 4), "counter": _COUNTER.format(backend=backend)}
    return {**costs, "activations": outputs} if activations else costs


def _outputs(model: nn.Module, image: torch.Tensor) -> int:
    """Elements that convolutions and linear layers give."""
    counts: list[int] = []
    for module in model.modules():
        if isinstance(module, (nn.Conv1d, nn.Conv2d, nn.Conv3d, nn.Linear)):
            module.register_forward_hook(lambda module, inputs, output: counts.append(output.numel()))
    with use_backend("torch"), torch.no_grad():
        model(image)
    return sum(counts)


def _pyramid(model: nn.Module) -> list[dict[str, int]]:
    info = getattr(model, "feature_info", None) or []
    return [{"channels": level["num_chs"], "stride": level["reduction"]} for level in info]


def _published(entry: manifest.Entry) -> dict[str, Any]:
    return {
        "id": entry.id,
        "task": entry.task,
        "dataset": entry.dataset,
        "resolution": entry.resolution,
        "method": entry.method,
        "metrics": entry.metrics,
        "params_m": entry.params_m,
        "flops_g": entry.flops_g,
        "source": entry.source,
        "notes": entry.notes,
    }


def _weights(entry: manifest.Entry) -> dict[str, Any]:
    addresses = [entry.url, *(mirror.url for mirror in entry.mirrors)]
    return {
        "id": entry.id,
        "model": entry.model,
        "file": entry.file,
        "addresses": [address for address in addresses if address],
        "host": entry.host,
        "size": entry.size,
        "sha256": entry.sha256,
        "license": entry.license,
    }


def _bundled(base: str) -> list[dict[str, Any]]:
    """Weights that are part of the package, which the manifest of published ones does not list."""
    files = {name: pretrained_file(name) for name in timm.list_pretrained(f"{base}.*")}
    return [
        {
            "id": name,
            "model": name,
            "file": file.name,
            "addresses": [],
            "host": "package",
            "size": file.stat().st_size,
            "sha256": cache.file_sha256(file),
            "license": timm.get_pretrained_cfg(name).license or "that of attnzoo",
        }
        for name, file in files.items()
        if file
    ]


def _print(facts: dict[str, Any]) -> None:
    console = Console(highlight=False, markup=False)
    if not console.is_terminal:
        console.width = 200
    size = " x ".join(map(str, facts["img_size"]))
    console.print(facts["name"])
    console.print(f"  parameters    {facts['parameters'] / 1e6:.3f} M, {facts['num_classes']} classes")
    console.print(f"  multiply-adds {facts['gmacs']:.3f} G at {size}")
    console.print(f"    {facts['counter']}", style="dim")
    if "activations" in facts:
        console.print(
            f"  activations   {facts['activations'] / 1e6:.3f} M at {size}, of convolutions and linear layers"
        )
    levels = ", ".join(f"{level['channels']} /{level['stride']}" for level in _distinct(facts["features"]))
    console.print(f"  features      {levels or 'none'} (channels /stride)")
    if facts["published"]:
        console.print(_published_table(facts["published"]))
    for row in facts["weights"]:
        console.print(f"{row['model'] or row['id']}: {_file(row)}, licence {row['license']}", soft_wrap=True)
        for address in row["addresses"]:
            console.print(f"  {address}", soft_wrap=True)


def _file(row: dict[str, Any]) -> str:
    """The file's name, or where one gets it if nobody states its name."""
    return row["file"] or {"direct": "download", "page": "share page"}[row["host"]]


def _distinct(levels: list[dict[str, int]]) -> list[dict[str, int]]:
    """A model of one resolution lists every block; one of each kind says it."""
    return [level for number, level in enumerate(levels) if level not in levels[:number]]


def _published_table(rows: list[dict[str, Any]]) -> Table:
    table = Table(title="published", title_justify="left", box=None, pad_edge=False)
    for title in ("name", "task", "data set", "pixels", "method", "figures", "params (M)", "FLOPs (G)"):
        table.add_column(title, overflow="fold")
    for row in rows:
        figures = ", ".join(f"{name} {value}" for name, value in row["metrics"].items()) or "-"
        cells = (row["id"], row["task"], row["dataset"], row["resolution"], row["method"], figures)
        table.add_row(*map(_text, (*cells, row["params_m"], row["flops_g"])))
    return table


def _text(value: Any) -> str:
    return "-" if value is None else str(value)
