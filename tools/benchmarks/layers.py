"""Time whole layers, projections included, beside the published code's form of them."""

import argparse
import sys
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from ..cli import EXIT_INCOMPLETE, EXIT_OK, UserError, did_you_mean
from .options import add_common_arguments, finish, prepare, setting

if TYPE_CHECKING:
    import torch
    from torch import Tensor, nn

# Largest difference of the two forms in float64, relative: both compute the same, whatever rounding selects.
_TOLERANCE = 1e-10


@dataclass(frozen=True)
class LayerCase:
    """A layer at a shape.

    Attributes:
        name: its class in :mod:`attnzoo.layers`.
        label: the shape, in words.
        arguments: of the class.
        shape: of the input, without the batch.
        published: the published form, given the layer and its input; named as in ``published_layers``.
        goal: how many times as fast as that the layer is meant to be.
    """

    name: str
    label: str
    arguments: dict[str, Any]
    shape: tuple[int, ...]
    published: str
    goal: float


def _routing(side: int, dim: int, heads: int, topk: int, goal: float) -> LayerCase:
    label = f"{side}×{side}, {heads} heads of {dim // heads}, top {topk} of 49"
    arguments = dict(dim=dim, num_heads=heads, num_regions=7, topk=topk)
    return LayerCase("BiLevelRoutingAttention", label, arguments, (side, side, dim), "routing", goal)


CASES = (
    _routing(56, 64, 2, 1, 1.6),
    _routing(28, 128, 4, 4, 1.6),
    _routing(14, 256, 8, 16, 2.2),
    LayerCase(
        "SparsifinerAttention",
        "197 tokens, 6 heads of 64, predictor and all",
        dict(dim=384, num_heads=6, grid_size=(14, 14)),
        (197, 384),
        "sparsifiner",
        4,
    ),
)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("names", nargs="*", metavar="LAYER", help="classes of attnzoo.layers (all that are known here)")
    add_common_arguments(parser)


def run(args: argparse.Namespace) -> int:
    known = list(dict.fromkeys(case.name for case in CASES))
    if unknown := [name for name in args.names if name not in known]:
        raise UserError(f"no layer {unknown[0]}{did_you_mean(unknown[0], known)}; known: {', '.join(known)}")
    device = prepare(args)
    report = {"subject": "layers", "setting": setting(args, device), "rows": []}
    cases = [case for case in CASES if not args.names or case.name in args.names]
    for case in cases:
        if row := measure(case, args, device):
            report["rows"].append(row)
            _print(row)
    finish(args, report)
    return EXIT_OK if len(report["rows"]) == len(cases) else EXIT_INCOMPLETE


def measure(case: LayerCase, args: argparse.Namespace, device: "torch.device") -> dict[str, Any] | None:
    """A row of the report; None where the two forms differ."""
    import torch

    from ... import layers
    from . import published_layers
    from .graphs import timed
    from .timing import peak_bytes

    torch.manual_seed(0)
    layer = getattr(layers, case.name)(**case.arguments).eval().to(device)
    published = getattr(published_layers, case.published)
    batch = args.batch or 8
    x = torch.randn(batch, *case.shape, device=device)
    error = difference(layer.double(), published, x[:2].double())
    if not error <= _TOLERANCE:
        print(f"{case.name}, {case.label}: the forms differ by {error:.1e} in float64; no times", file=sys.stderr)
        return None
    dtype = getattr(torch, args.dtype)
    layer, x = layer.to(dtype), x.to(dtype)
    forms = {"ours": layer, "published": lambda x: published(layer, x)}
    if args.compile:
        torch.compiler.reset()
        forms["ours, compiled"] = torch.compile(layer, dynamic=False)
    calls = {name: _call(form, x, args.backward) for name, form in forms.items()}
    times = dict(zip(calls, timed(list(calls.values()), args.repeat, device), strict=True))
    sides = [
        {
            "form": name,
            **facts,
            "ratio": facts["seconds"] / times["ours"]["seconds"],
            "peak_bytes": peak_bytes(calls[name], device),
        }
        for name, facts in times.items()
    ]
    return {"layer": case.name, "case": case.label, "batch": batch, "difference": error, "sides": sides}


def difference(layer: "nn.Module", published: "Callable[..., Tensor]", x: "Tensor") -> float:
    """Of the two forms, relative to the norm."""
    import torch

    with torch.no_grad():
        ours, theirs = _first(layer(x)), _first(published(layer, x))
    return float((ours - theirs).norm() / theirs.norm())


def _first(result: "Tensor | tuple[Tensor, ...]") -> "Tensor":
    return result[0] if isinstance(result, tuple) else result


def _call(form: "Callable[[Tensor], Any]", x: "Tensor", backward: bool) -> Callable[[], Any]:
    import torch

    if not backward:
        return torch.no_grad()(lambda: form(x))
    leaf = x.detach().requires_grad_()
    gradient = torch.randn_like(_first(form(leaf)))
    return lambda: torch.autograd.grad(_first(form(leaf)), leaf, gradient)


def _print(row: dict[str, Any]) -> None:
    print(f"{row['layer']}, {row['case']}, batch {row['batch']}; forms differ by {row['difference']:.0e} in float64")
    for side in sorted(row["sides"], key=lambda side: side["seconds"]):
        times = f"{side['seconds'] * 1e3:10.3f} ms {side['ratio']:8.2f}× ours {side['peak_bytes'] / 1e6:8.1f} MB"
        print(f"  {side['form']:18s}{times}", flush=True)
