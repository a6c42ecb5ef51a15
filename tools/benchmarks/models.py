"""Time each family's smallest model, eager and compiled, beside three of timm's own."""

import argparse
import sys
from typing import TYPE_CHECKING, Any

from ..cli import EXIT_INCOMPLETE, EXIT_OK, UserError, did_you_mean
from .options import add_common_arguments, finish, prepare, setting

if TYPE_CHECKING:
    import torch

# The smallest of each family that takes images of this size.
MODELS = (
    "agent_cswin_tiny",
    "agent_deit_tiny",
    "agent_pvt_tiny",
    "agent_swin_tiny",
    "biformer_tiny",
    "dinat_isotropic_small",
    "dinat_mini",
    "flowformer",
    "l2vit_tiny",
    "mavit_tiny",
    "overlock_xt",
    "s2aformer_mini",
    "sparsifiner_deit_tiny",
    "van_b0",
    "vit_small_kdgqa",
)
TIMM_MODELS = ("swin_tiny_patch4_window7_224", "convnext_tiny", "vit_small_patch16_224")
IMAGE_SIZE = 224

# Largest difference of the logits from those by the ops' definitions, relative to their norm, with which a time
# is worth printing. It covers a top-k member or a routed region that another rounding chooses.
TOLERANCES = {"float32": 1e-3, "float64": 1e-6, "bfloat16": 0.2, "float16": 0.05}


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "names", nargs="*", metavar="NAME", help="names of timm.create_model (one of each family and three of timm's)"
    )
    add_common_arguments(parser)


def run(args: argparse.Namespace) -> int:
    import timm

    names = args.names or [*MODELS, *TIMM_MODELS]
    if unknown := [name for name in names if not timm.is_model(name)]:
        raise UserError(f"no model is called {unknown[0]}{did_you_mean(unknown[0], timm.list_models())}")
    device = prepare(args)
    report = {"subject": "models", "setting": setting(args, device), "rows": []}
    rows, refused = measure(names, args, device)
    report["rows"] = rows
    _print(rows)
    finish(args, report)
    return EXIT_INCOMPLETE if refused else EXIT_OK


def measure(
    names: list[str], args: argparse.Namespace, device: "torch.device"
) -> tuple[list[dict[str, Any]], list[str]]:
    """Checks the models, then times them in turn.

    Returns:
        A row a model, and the models whose logits are wrong.
    """
    import torch

    from .timing import peak_bytes, take_turns

    dtype, batch = getattr(torch, args.dtype), args.batch or 8
    rows: list[dict[str, Any]] = []
    calls, places, refused = [], [], []
    for name in names:
        torch.manual_seed(0)
        images = torch.randn(batch, 3, IMAGE_SIZE, IMAGE_SIZE).to(device, dtype)
        model = _build(name).to(device, dtype)
        rows.append({"model": name, "batch": batch, "parameters": sum(x.numel() for x in model.parameters())})
        rows[-1]["sides"] = []
        truth = _logits_by_definition(model, images)
        for form in ("eager", "compiled") if args.compile else ("eager",):
            torch.compiler.reset()
            function = torch.compile(model, dynamic=False) if form == "compiled" else model
            error = None if truth is None else _error(function, images, truth)
            if error is not None and not error <= TOLERANCES[args.dtype]:
                refused.append(f"{name}: {form} is off by {error:.1e}; no time for it")
                print(refused[-1], file=sys.stderr)
                continue
            calls.append(_call(function, images, args.backward))
            places.append((rows[-1], {"form": form, "error": error}))
    for (row, side), call, timing in zip(places, calls, take_turns(calls, args.repeat, device), strict=True):
        facts = {"seconds": timing.seconds, "samples": timing.samples, "undisturbed": timing.undisturbed}
        rate = {"images_per_second": batch / timing.seconds, "peak_bytes": peak_bytes(call, device)}
        row["sides"].append({**side, **facts, **rate})
    return [row for row in rows if row["sides"]], refused


def _build(name: str) -> "torch.nn.Module":
    import timm
    import torch

    torch.manual_seed(0)
    return timm.create_model(name).eval()


def _logits_by_definition(model: "torch.nn.Module", images: "torch.Tensor") -> "torch.Tensor | None":
    """What the model gives when every op runs as its definition; None for a model that is not the zoo's."""
    import torch

    from ... import zoo
    from ...kernels import use_backend

    if not type(model).__module__.startswith(zoo.__name__):
        return None
    with torch.no_grad(), use_backend("reference"):
        return model(images)


def _error(function: Any, images: "torch.Tensor", truth: "torch.Tensor") -> float:
    import torch

    from .check import relative_error

    with torch.no_grad():
        return relative_error(function(images), truth.double())


def _call(function: Any, images: "torch.Tensor", backward: bool) -> Any:
    import torch

    if not backward:
        return torch.no_grad()(lambda: function(images))
    parameters = [x for x in function.parameters() if x.requires_grad]
    return lambda: torch.autograd.grad(function(images).sum(), parameters, allow_unused=True)


def _print(rows: list[dict[str, Any]]) -> None:
    for row in rows:
        for side in row["sides"]:
            rate, peak = side["images_per_second"], side["peak_bytes"] / 1e6
            print(f"{row['model']:30s} {side['form']:9s} {rate:8.2f} images/s {peak:8.1f} MB")
