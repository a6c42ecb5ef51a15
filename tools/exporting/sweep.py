"""``attnzoo export --all``: every model, smallest first, at its own image size and at another."""

import argparse
import json
import tempfile
import time
from importlib.metadata import version
from pathlib import Path
from typing import Any

import timm
import torch

from ...zoo import list_models
from ..benchmarks.options import check_files
from ..cli import EXIT_INCOMPLETE, EXIT_OK, UserError, did_you_mean
from ..files import read_json, write_atomic
from .formats import SUFFIXES, metadata
from .job import Request, export, settle, temporary
from .program import other_size

FORMAT = "attnzoo-export/1"


def run(args: argparse.Namespace) -> int:
    """Exports the models whose names match; exit status 3 where one cannot be exported or differs."""
    names = _names(args.model)
    _check(args)
    names = sorted(names, key=_parameters)
    report = _begin(args)
    bad = 0
    for count, name in enumerate(names, start=1):
        known = report["models"].get(name)
        if args.resume and known and known["status"] == "good":
            continue
        row = _row(name, args)
        bad += row["status"] != "good"
        report["models"] = dict(sorted({**report["models"], name: row}.items()))
        errors = ", ".join(f"{size}: {found['error']:.1e}" for size, found in row.get("sizes", {}).items())
        print(f"{count}/{len(names)} {name}: {row['status']} {errors or row.get('reason', '')}", flush=True)
        if args.json:
            write_atomic(args.json, (json.dumps(report, indent=1) + "\n").encode())
    return EXIT_INCOMPLETE if bad else EXIT_OK


def size_argument(name: str, img_size: tuple[int, int] | None) -> dict[str, Any]:
    """``img_size`` for timm's models of a fixed size; the zoo's take any image."""
    base = name.partition(".")[0]
    if img_size is None or base in list_models() or tuple(timm.get_pretrained_cfg(name).input_size[1:]) == img_size:
        return {}
    with torch.device("meta"):
        try:
            timm.create_model(base, img_size=img_size)
        except TypeError:  # a convolutional model has no such argument
            return {}
    return {"img_size": img_size}


def _names(pattern: str | None) -> list[str]:
    names = list_models(pattern or "*")
    if not names:
        raise UserError(
            f"no model matches {pattern}{did_you_mean(pattern or '', list_models()) or '; see attnzoo list'}"
        )
    return names


def _parameters(name: str) -> int:
    with torch.device("meta"):
        return sum(parameter.numel() for parameter in timm.create_model(name).parameters())


def _check(args: argparse.Namespace) -> None:
    for option in ("checkpoint", "num_classes", "img_size", "quantize", "images", "features_only", "dynamic_size"):
        if getattr(args, option):
            raise UserError(f"--{option.replace('_', '-')} is for one model, not for --all")
    if args.output is None and not args.check_only:
        raise UserError("--all needs --output FOLDER for the files, or --check-only")
    if args.resume and args.json is None:
        raise UserError("--resume needs --json FILE: the file to go on with")
    if args.output is not None and not args.output.is_dir():
        raise UserError(f"--output {args.output} is no folder")
    check_files(args.json, args.output and args.output / "model.onnx")


def _begin(args: argparse.Namespace) -> dict[str, Any]:
    packages = ("torch", "timm", "onnx", "onnxruntime", "onnxscript") if args.format == "onnx" else ("torch", "timm")
    setting = {"format": args.format, "packages": {package: version(package) for package in packages}}
    if args.format == "onnx":
        setting["opset"] = args.opset
    empty = {"format": FORMAT, "setting": setting, "models": {}}
    if not (args.resume and args.json.exists()):
        return empty
    known = read_json(args.json)
    if not isinstance(known, dict) or known.get("format") != FORMAT or not _is_models(known.get("models")):
        raise UserError(f"{args.json} is no report of attnzoo export --all")
    if known.get("setting") != setting:
        raise UserError(f"--resume: {args.json} was written with other versions or options; write another file")
    return known


def _is_models(models: Any) -> bool:
    return isinstance(models, dict) and all(isinstance(row, dict) and "status" in row for row in models.values())


def _row(name: str, args: argparse.Namespace) -> dict[str, Any]:
    """What the report says of a model."""
    started = time.process_time()
    torch.manual_seed(0)
    model = timm.create_model(name).eval().requires_grad_(False)
    channels, *own = model.pretrained_cfg["input_size"]
    facts = metadata(model, name, {"source": "random"}, "")
    row: dict[str, Any] = {"status": "good", "sizes": {}}
    for img_size in dict.fromkeys([tuple(own), _second(tuple(own))]):
        request = Request(args.format, img_size, channels, opset=args.opset)
        size = "x".join(map(str, img_size))
        try:
            with tempfile.TemporaryDirectory() as folder:
                target = (args.output or Path(folder)) / f"{name}.{size}{SUFFIXES[args.format]}"
                with temporary(target) as path:
                    outcome = export(model, request, facts, path)
                    if not args.check_only:
                        settle(path, target, outcome.good)
        except (ValueError, RuntimeError, AssertionError, TypeError) as error:
            reason = f"{size}: {type(error).__name__}: {' '.join(str(error).split())[:300]}"
            return {**row, "status": "failed", "reason": reason}
        row["sizes"][size] = {"error": outcome.error, "bytes": outcome.size}
        if not outcome.good:
            row["status"] = "differs"
    return {**row, "seconds": round(time.process_time() - started, 1)}


def _second(img_size: tuple[int, ...]) -> tuple[int, int]:
    """Another size: smaller and not square, or for the smallest images larger."""
    height, width = img_size
    return other_size(img_size) if min(img_size) > 64 else (height * 2, width * 3)
