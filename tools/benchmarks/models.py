"""Time models, ours beside their definitions and timm's: over devices, number types, backends, batches and sizes."""

import argparse
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..cli import EXIT_INCOMPLETE, EXIT_OK, UserError, did_you_mean
from ..files import write_atomic
from .energy import EnergyMeter
from .grid import Setup, add_grid_arguments, refuse_other_machine, setups
from .options import add_timing_arguments, check_count, check_files, finish, open_device, setting
from .report import Report, models_csv, read_report

if TYPE_CHECKING:
    from .sides import Side
    from .timing import Ceilings

# The smallest of each family whose usual image is 224×224.
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
PERCENTILES = (50, 90, 99)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "names", nargs="*", metavar="NAME", help="names of timm.create_model (one of each family and three of timm's)"
    )
    parser.add_argument("--models", nargs="+", default=[], metavar="NAME", help="more names, for use behind options")
    add_grid_arguments(parser)
    add_timing_arguments(parser)
    parser.add_argument(
        "--reference",
        action=argparse.BooleanOptionalAction,
        default=True,
        help="time models by their ops' definitions, too, on images of up to 256×256 pixels",
    )
    parser.add_argument("--csv", type=Path, metavar="FILE", help="write the figures here, a line a side")
    parser.add_argument("--resume", action="store_true", help="keep the rows that --json FILE has and measure the rest")


def run(args: argparse.Namespace) -> int:
    args.names = list(dict.fromkeys([*args.names, *args.models]))
    names = args.names or [*MODELS, *TIMM_MODELS]
    _check_names(names)
    combinations = _prepare(args)
    report = _begin(args)
    failed = 0
    best = _Ceilings()
    for setup in combinations:
        done = [row["model"] for row in report["rows"] if setup.is_of(row)]
        pending = [name for name in names if name not in done]
        if not pending:
            continue
        report["failed"] = [row for row in report["failed"] if not (setup.is_of(row) and row["model"] in pending)]
        rows, failures = measure(pending, setup, args)
        _add_floors(rows, best.of(setup))
        report["rows"] += rows
        report["failed"] += failures
        failed += len(failures)
        if len({(each.device, each.dtype) for each in combinations}) == 1:
            report["setting"] = {**best.of(setup).facts(), **report["setting"]}
        _print(setup, rows)
        _write(args, report)
    _write(args, report)
    return EXIT_INCOMPLETE if failed else EXIT_OK


def measure(
    names: list[str], setup: Setup, args: argparse.Namespace
) -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
    """Checks the models, then times them in turn, all in one combination of settings.

    Returns:
        A row a model that could be timed, and a row with the reason for each form that could not.
    """
    import torch

    from .sides import build, costs, forced, forms_of, make_side, room_to_compile

    rows: list[dict[str, Any]] = []
    failures: list[dict[str, Any]] = []
    sides: list[Side] = []
    owners: list[dict[str, Any]] = []

    def fail(name: str, form: str, error: Exception) -> None:
        reason = f"{type(error).__name__}: {' '.join(str(error).split())[:300]}"
        failures.append({"model": name, **setup.facts(), "form": form, "reason": reason})
        print(f"{name} ({setup}): {reason}", file=sys.stderr)

    with forced(setup.backend), room_to_compile(len(names)):
        for name in names:
            try:
                model = build(name, setup.img_size).to(setup.device, getattr(torch, setup.dtype))
                needs = costs(name, model, setup, args.backward)
            except (ValueError, RuntimeError, AssertionError, TypeError) as error:
                fail(name, "eager", error)
                continue
            parameters = sum(x.numel() for x in model.parameters())
            row = {"model": name, **setup.facts(), "parameters": parameters, **needs, "sides": []}
            for form in forms_of(model, setup, args.compile, args.reference):
                try:
                    side = make_side(model, form, setup, args.backward)
                    side.call()
                except (ValueError, RuntimeError, AssertionError, TypeError) as error:
                    fail(name, form, error)
                    continue
                sides.append(side)
                owners.append(row)
            rows.append(row)
        for row, facts in zip(owners, _time(sides, setup, args.repeat), strict=True):
            row["sides"].append(facts)
    return [row for row in rows if row["sides"]], failures


def _time(sides: "list[Side]", setup: Setup, repeat: int) -> list[dict[str, Any]]:
    """What is said of each side, after all took turns."""
    import torch

    from .timing import peak_bytes, take_turns

    device = torch.device(setup.device)
    meter = EnergyMeter(device)
    found = []
    for side, timing in zip(sides, take_turns([side.call for side in sides], repeat, device), strict=True):
        joules = meter.joules(side.call, timing.seconds)
        found.append(
            {
                "form": side.form,
                "error": side.error,
                "checked_at": side.checked_at,
                "seconds": timing.seconds,
                "samples": timing.samples,
                "undisturbed": timing.undisturbed,
                "latency": {f"p{percent}": timing.percentile(percent) for percent in PERCENTILES},
                "images_per_second": setup.batch / timing.seconds,
                "peak_bytes": peak_bytes(side.call, device),
                "joules_per_image": None if joules is None else joules / setup.batch,
                "no_energy_because": meter.reason,
            }
        )
    return found


class _Ceilings:
    """What each device does at best with each type, measured when it is first asked for."""

    def __init__(self) -> None:
        self._known: dict[tuple[str, str], Ceilings] = {}

    def of(self, setup: Setup) -> "Ceilings":
        import torch

        from .timing import ceilings

        key = (setup.device, setup.dtype)
        if key not in self._known:
            self._known[key] = ceilings(torch.device(setup.device), getattr(torch, setup.dtype))
        return self._known[key]


def _add_floors(rows: list[dict[str, Any]], best: "Ceilings") -> None:
    """How long each side takes beside the eager one, and beside what the machine could do."""
    for row in rows:
        row["floor_seconds"] = best.floor(row["bytes"], row["flops"])
        eager = next((side["seconds"] for side in row["sides"] if side["form"] == "eager"), None)
        for side in row["sides"]:
            side["ratio"] = None if eager is None else side["seconds"] / eager
            side["floor_ratio"] = side["seconds"] / row["floor_seconds"]


def _check_names(names: list[str]) -> None:
    import timm

    from ..evaluation.models import check_name

    if unknown := [name for name in names if not timm.is_model(name)]:
        raise UserError(f"no model is called {unknown[0]}{did_you_mean(unknown[0], timm.list_models())}")
    for name in names:
        check_name(name)


def _prepare(args: argparse.Namespace) -> list[Setup]:
    """Checks every option before anything is measured, and sets the number of threads."""
    import torch

    check_count("threads", args.threads)
    check_count("repeat", args.repeat)
    combinations = setups(args)
    check_files(args.json, args.markdown, args.csv)
    if args.resume and args.json is None:
        raise UserError("--resume needs --json FILE: the file to go on with")
    for name in args.device:
        open_device(name)
    torch.set_num_threads(args.threads)
    return combinations


def _begin(args: argparse.Namespace) -> Report:
    """An empty report, or the one to go on with."""
    import torch

    devices = [torch.device(name) for name in args.device]
    now = setting(args, devices[0])
    if len(devices) > 1:
        from .timing import machine

        now["device"] = "; ".join(machine(device)["device"] for device in devices)
    if not (args.resume and args.json.exists()):
        return {"subject": "models", "setting": now, "rows": [], "failed": []}
    report = read_report(args.json, tables=True)
    if report["subject"] != "models":
        raise UserError(f"--resume: {args.json} is a report of attnzoo bench {report['subject']}")
    refuse_other_machine(report, now)
    report["setting"]["resumed"] = [*report["setting"].get("resumed", []), now["date"]]
    return {**report, "failed": report.get("failed", [])}


def _write(args: argparse.Namespace, report: Report) -> None:
    finish(args, report)
    if args.csv:
        write_atomic(args.csv, models_csv(report).encode())


def _print(setup: Setup, rows: list[dict[str, Any]]) -> None:
    print(setup)
    for row in rows:
        for side in row["sides"]:
            rate, peak = side["images_per_second"], side["peak_bytes"] / 1e6
            times = " ".join(f"{name} {seconds * 1e3:.1f}" for name, seconds in side["latency"].items())
            figures = f"{rate:8.2f} images/s {side['floor_ratio']:6.1f}× floor  {times} ms {peak:8.1f} MB"
            print(f"  {row['model']:30s} {side['form']:9s} {figures}", flush=True)
