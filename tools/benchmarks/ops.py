"""Time the ops beside their definitions, their published forms and other libraries."""

import argparse
import sys
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from ..cli import EXIT_INCOMPLETE, EXIT_OK, UserError, did_you_mean
from .options import add_common_arguments, finish, prepare, setting

if TYPE_CHECKING:
    import torch

    from .cases import Case, Inputs
    from .check import Truth
    from .published import Form
    from .timing import Ceilings


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("ops", nargs="*", metavar="OP", help="functions of attnzoo.kernels (all)")
    parser.add_argument("--case", default="", metavar="TEXT", help="only shapes whose description contains this")
    add_common_arguments(parser)


def run(args: argparse.Namespace) -> int:
    import torch

    from .cases import CASES, OPS
    from .timing import ceilings

    if unknown := [op for op in args.ops if op not in OPS]:
        raise UserError(f"no op is called {unknown[0]}{did_you_mean(unknown[0], OPS)}; known: {', '.join(OPS)}")
    known = [case for case in CASES if not args.ops or case.op in args.ops]
    # A keyboard has no ×.
    wanted = args.case.replace("x", "×")
    cases = [case for case in known if wanted in case.label]
    if not cases:
        labels = dict.fromkeys(case.label for case in known)
        raise UserError(f"--case {args.case!r} is in no description: {'; '.join(labels)}")
    device = prepare(args)
    best = ceilings(device, getattr(torch, args.dtype))
    report = {"subject": "ops", "setting": {**setting(args, device), **best.facts()}, "rows": []}
    refused: list[str] = []
    for case in cases:
        if row := measure(case, args, device, best, refused):
            report["rows"].append(row)
            _print(row)
            finish(args, report)
    finish(args, report)
    return EXIT_INCOMPLETE if refused else EXIT_OK


class WrongResult(ValueError):
    """A form does not compute the op."""


@dataclass(frozen=True)
class Side:
    """One of the forms that take turns.

    Attributes:
        name: as the report calls it.
        build: its form for given arguments.
        without: arguments that it does not take.
        compiled: goes through torch.compile.
        ours: must be as exact as its dtype allows; of a peer in 16 bits that is its own affair.
    """

    name: str
    build: "Callable[[Inputs], Form]"
    without: tuple[str, ...] = ()
    compiled: bool = False
    ours: bool = True


def measure(
    case: "Case", args: argparse.Namespace, device: "torch.device", best: "Ceilings", refused: list[str]
) -> dict[str, Any] | None:
    """Checks every form of a case and times those that are right.

    Args:
        refused: gets the name of each form whose result is wrong or that fails; for want of memory the op's choice
            alone.

    Returns:
        A row of the report; None where the form that the op chooses has no time.
    """
    import torch

    from .cases import tensor_bytes
    from .check import Truth

    batch, dtype = args.batch or case.batch, getattr(torch, args.dtype)
    inputs = case.draw(batch, dtype, device)
    torch.compiler.reset()
    truth = Truth(case, inputs, args.backward)
    candidates = sides_of(case, inputs, args.compile, args.backward)
    found, absent = _found(case, candidates, truth, inputs, args, refused)
    chosen = candidates[0].name
    if chosen not in (each.name for each in found):
        refused.append(chosen)
        return None
    given, out = tensor_bytes(inputs.values()), truth.output_bytes
    # Backward reads the inputs again, writes their gradients and reads the output's: at twice the forward's operations.
    size, flops = (3 * given + 2 * out, 3 * case.flops) if args.backward else (given + out, case.flops)
    floor = best.floor(size, flops * batch)
    facts = {"op": case.op, "case": case.label, "batch": batch, "bytes": size, "flops": flops * batch}
    sides = _timed(found, args.repeat, device)
    ours = next(side["seconds"] for side in sides if side["form"] == chosen)
    for side in sides:
        side |= {"ratio": side["seconds"] / ours, "floor_ratio": side["seconds"] / floor}
    return {**facts, "floor_seconds": floor, "sides": sides, "absent": absent}


@dataclass(frozen=True)
class _Ready:
    """A form that is to be timed."""

    name: str
    error: float
    call: Callable[[], Any]


def _found(
    case: "Case",
    candidates: list[Side],
    truth: "Truth",
    inputs: "Inputs",
    args: argparse.Namespace,
    refused: list[str],
) -> tuple[list[_Ready], list[dict[str, str]]]:
    """The forms that are right, and what the report says of those that have no time."""
    import torch

    found, absent = [], []
    for side in candidates:
        try:
            found.append(_ready(side, truth, inputs, args))
        except torch.OutOfMemoryError:
            torch.cuda.empty_cache()
            absent.append(_absent(case, side, "out of memory"))
        except WrongResult as error:
            absent.append(_absent(case, side, str(error)))
            refused.append(side.name)
        except Exception as error:  # a peer's own
            if side.ours:
                raise
            absent.append(_absent(case, side, f"{type(error).__name__}: {' '.join(str(error).split())[:200]}"))
            refused.append(side.name)
    return found, absent


def _timed(found: list[_Ready], repeat: int, device: "torch.device") -> list[dict[str, Any]]:
    """What the report says of each form's time; on a GPU that of its kernels, and beside it that of its calls."""
    from .graphs import timed
    from .timing import peak_bytes

    # The definitions may make tables at every call, from the host's memory: no graph can.
    times = timed([each.call for each in found], repeat, device, [each.name != "reference" for each in found])
    return [
        {"form": each.name, **facts, "peak_bytes": peak_bytes(each.call, device), "error": each.error}
        for each, facts in zip(found, times, strict=True)
    ]


def _ready(side: Side, truth: "Truth", inputs: "Inputs", args: argparse.Namespace) -> _Ready:
    """A form that is right, called once.

    Raises:
        WrongResult: it computes something else.
    """
    import torch

    from .check import TOLERANCES

    own = {name: value for name, value in inputs.items() if name not in side.without}
    compute = torch.compile(dynamic=False, fullgraph=True) if side.compiled else (lambda function: function)
    error = truth.error(side.build, own, compute)
    if not error <= TOLERANCES[args.dtype] and not (
        args.dtype in ("bfloat16", "float16")
        and not side.ours
        and truth.exact_error(side.build, own) <= TOLERANCES["float64"]
    ):
        raise WrongResult(f"off by {error:.1e}")
    form = side.build(own)
    call = _call(compute(form.run), form.tensors, args.backward)
    call()
    return _Ready(side.name, error, call)


def _absent(case: "Case", side: Side, reason: str) -> dict[str, str]:
    """What the report says of a form that has no time; said on the way, too."""
    print(f"{case.op}, {case.label}: no time for {side.name}: {reason}", file=sys.stderr)
    return {"form": side.name, "reason": reason}


def sides_of(case: "Case", inputs: "Inputs", compiled: bool, backward: bool) -> list[Side]:
    """Our implementations that can run, the op's own choice first, and the peers that are installed."""
    from ... import kernels
    from .cases import floating
    from .peers import PEERS

    cpu_backward = backward and next(iter(floating(inputs).values())).device.type == "cpu"
    chosen = kernels.explain(case.function, **inputs).chosen
    sides = [Side(name, _ours(case, name)) for name in dict.fromkeys((chosen, "torch", "reference"))]
    if compiled:
        sides.append(Side(f"{chosen}, compiled", _ours(case, None), compiled=True))
    return sides + [
        Side(name, peer.build, peer.without, peer.compiled, ours=False)
        for name, peer in PEERS[case.op].items()
        if peer.installed and (compiled or not peer.compiled) and (peer.cpu_backward or not cpu_backward)
    ]


def _ours(case: "Case", backend: str | None) -> "Callable[[Inputs], Form]":
    """The op's form on a backend, or on the one it chooses itself."""
    from ...kernels import use_backend
    from .cases import floating
    from .published import Form

    def build(inputs: "Inputs") -> "Form":
        names = tuple(floating(inputs))

        def run(*tensors: "torch.Tensor") -> "torch.Tensor":
            arguments = {**inputs, **dict(zip(names, tensors, strict=True))}
            if backend is None:
                return case.function(**arguments)
            with use_backend(backend):
                return case.function(**arguments)

        return Form(run, tuple(inputs[name] for name in names))

    return build


def _call(run: Callable[..., Any], tensors: "tuple[torch.Tensor, ...]", backward: bool) -> Callable[[], Any]:
    import torch

    if not backward:
        return torch.no_grad()(lambda: run(*tensors))
    leaves = tuple(x.detach().requires_grad_() for x in tensors)
    gradient = torch.randn_like(run(*leaves))
    return lambda: torch.autograd.grad(run(*leaves), leaves, gradient, allow_unused=True)


def _print(row: dict[str, Any]) -> None:
    print(f"{row['op']}, {row['case']}, batch {row['batch']}: floor {row['floor_seconds'] * 1e3:.3g} ms")
    for side in sorted(row["sides"], key=lambda side: side["seconds"]):
        times = f"{side['seconds'] * 1e3:10.3f} ms {side['ratio']:8.2f}× ours {side['floor_ratio']:8.1f}× floor"
        print(f"  {side['form']:18s}{times} {side['peak_bytes'] / 1e6:8.1f} MB", flush=True)
