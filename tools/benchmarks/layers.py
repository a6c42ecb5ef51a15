"""Time whole layers, projections included, or blocks with them, beside the published code's form of them."""

import argparse
import copy
import sys
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from ..cli import EXIT_INCOMPLETE, EXIT_OK, UserError, did_you_mean
from .layer_cases import CASES, LayerCase
from .options import add_common_arguments, finish, prepare, setting

if TYPE_CHECKING:
    import torch
    from torch import Tensor, nn

    Form = Callable[[Tensor], Tensor]

# Largest difference of the two forms in float64, relative: both compute the same, whatever rounding selects.
_TOLERANCE = 1e-10


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("names", nargs="*", metavar="LAYER", help="classes of attnzoo.layers (all that are known here)")
    parser.add_argument("--block", action="store_true", help="put each into a block, with norms, residuals and an MLP")
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
    finish(args, report)
    return EXIT_OK if len(report["rows"]) == len(cases) else EXIT_INCOMPLETE


class WrongResult(ValueError):
    """A form computes something else."""


def measure(case: LayerCase, args: argparse.Namespace, device: "torch.device") -> dict[str, Any] | None:
    """A row of the report; None where a form is wrong or does not fit into memory."""
    import torch

    try:
        return _measured(case, args, device)
    except WrongResult as error:
        reason = str(error)
    except torch.OutOfMemoryError:
        torch.cuda.empty_cache()
        reason = "out of memory"
    print(f"{case.name}, {case.label}: {reason}; no times", file=sys.stderr)
    return None


def _measured(case: LayerCase, args: argparse.Namespace, device: "torch.device") -> dict[str, Any]:
    import torch

    from .blocks import build
    from .graphs import timed
    from .timing import peak_bytes

    torch.compiler.reset()
    batch = args.batch or 8
    module = build(case, args.block).to(device, getattr(torch, args.dtype))
    x = torch.randn(batch, *case.shape, device=device).to(getattr(torch, args.dtype))
    forms = _forms(case, module, args.compile)
    error = _checked(case, module, forms, x[:2])
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


def _forms(case: LayerCase, module: "nn.Module", compiled: bool) -> "dict[str, Form]":
    """What takes turns; on a GPU the ops' PyTorch forms, too, which a CPU has anyway."""
    import torch

    from .blocks import with_published
    from .sides import forced

    forms = {"ours": module, "published": with_published(case, module)}
    if next(module.parameters()).device.type == "cuda":
        forms["torch"] = forced("torch")(lambda x: module(x))
    if compiled:
        forms["ours, compiled"] = torch.compile(module, dynamic=False)
    return forms


def _checked(case: LayerCase, module: "nn.Module", forms: "dict[str, Form]", x: "Tensor") -> float:
    """How far the published form is from ours in float64, on a few images.

    Raises:
        WrongResult: too far, or one of ours is wrong in the type that is timed.
    """
    import torch

    from . import check, sides
    from .blocks import with_published
    from .check import relative_error

    tolerances = sides.TOLERANCES if case.selects else check.TOLERANCES
    exact = copy.deepcopy(module).double()
    with torch.no_grad():
        truth = exact(x.double())
        difference = relative_error(with_published(case, exact)(x.double()), truth)
        if not difference <= _TOLERANCE:
            raise WrongResult(f"the forms differ by {difference:.1e} in float64")
        for name, form in forms.items():
            error = relative_error(form(x), truth)
            # What is published may round more often.
            if name != "published" and not error <= tolerances[str(x.dtype).removeprefix("torch.")]:
                raise WrongResult(f"{name} is off by {error:.1e}")
    return difference


def _call(form: "Form", x: "Tensor", backward: bool) -> Callable[[], Any]:
    import torch

    if not backward:
        return torch.no_grad()(lambda: form(x))
    leaf = x.detach().requires_grad_()
    gradient = torch.randn_like(form(leaf))
    return lambda: torch.autograd.grad(form(leaf), leaf, gradient)


def _print(row: dict[str, Any]) -> None:
    print(f"{row['layer']}, {row['case']}, batch {row['batch']}; forms differ by {row['difference']:.0e} in float64")
    for side in sorted(row["sides"], key=lambda side: side["seconds"]):
        times = f"{side['seconds'] * 1e3:10.3f} ms {side['ratio']:8.2f}× ours {side['peak_bytes'] / 1e6:8.1f} MB"
        print(f"  {side['form']:18s}{times}", flush=True)
