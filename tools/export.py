"""Write a model as ONNX or PT2, checked against the model before the file gets its name."""

import argparse
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

from .benchmarks.options import check_files
from .cli import EXIT_INCOMPLETE, EXIT_OK, MOST_CLASSES, MOST_SIDE, UserError, up_to, whole_number

if TYPE_CHECKING:
    from .evaluation.models import Subject
    from .exporting.job import Request

FORMATS = ("onnx", "pt2")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("model", nargs="?", metavar="MODEL", help="a model's name; with --all a pattern, 'van*'")
    parser.add_argument("--format", default="onnx", metavar="FORMAT", help="onnx, or pt2 (torch.export)")
    parser.add_argument("--output", type=Path, metavar="FILE", help="file to write (MODEL.onnx); with --all a folder")
    weights = parser.add_argument_group("weights (published ones unless told otherwise)")
    weights.add_argument("--checkpoint", metavar="FILE", help="take the weights from this file")
    weights.add_argument(
        "--num-classes", type=whole_number(1, MOST_CLASSES), metavar="N", help="classes of the checkpoint"
    )
    weights.add_argument("--random-weights", action="store_true", help="leave the weights random, from seed 0")
    shapes = parser.add_argument_group("shapes")
    size = up_to(MOST_SIDE)
    shapes.add_argument("--img-size", type=size, nargs="+", metavar="N", help="side, or height and width (the model's)")
    shapes.add_argument(
        "--dynamic-batch", action=argparse.BooleanOptionalAction, default=True, help="take any batch; else only 2"
    )
    shapes.add_argument("--dynamic-size", action="store_true", help="take any image size, where the model allows it")
    shapes.add_argument("--features-only", action="store_true", help="give the stages' maps instead of logits")
    onnx = parser.add_argument_group("ONNX")
    onnx.add_argument("--opset", type=int, default=20, metavar="N", help="version of the operators")
    onnx.add_argument("--quantize", choices=("int8",), help="8-bit weights of matrix products")
    onnx.add_argument("--images", type=Path, metavar="FOLDER", help="photographs to judge it by (scikit-image's)")
    sweep = parser.add_argument_group("all models")
    sweep.add_argument("--all", action="store_true", help="export every model, with random weights, at two sizes each")
    sweep.add_argument("--check-only", action="store_true", help="keep no files, only the result of the comparison")
    sweep.add_argument("--json", type=Path, metavar="FILE", help="write what was found here, after each model")
    sweep.add_argument("--resume", action="store_true", help="leave out models that --json FILE has as good")


def run(args: argparse.Namespace) -> int:
    from .exporting import formats

    if args.format not in FORMATS:
        raise UserError(f"--format is {args.format}; {' and '.join(FORMATS)} can be written")
    formats.require(args.format, args.opset)
    if args.all:
        from .exporting import sweep

        return sweep.run(args)
    _check(args)
    from .exporting.job import default_output, temporary

    target = args.output or default_output(args.model, args.format, bool(args.quantize))
    _check_target(target, formats.SUFFIXES[args.format])
    subject, request = _prepare(args)
    facts = formats.metadata(subject.model, subject.name, subject.weights, subject.weights_sha256)
    model = _model(args, subject)
    photographs = _photographs(args, subject, request)
    with temporary(target) as path:
        return _export(model, request, facts, path, target, photographs)


def _export(model: Any, request: "Request", facts: dict[str, str], path: Path, target: Path, photographs: Any) -> int:
    """Exports to ``path`` and moves what is good to ``target``."""
    from .exporting.job import export, settle, temporary

    print(f"tracing, writing and comparing {facts['model']}, which may take a minute", flush=True)
    outcome = export(model, request, facts, path)
    if outcome.fixed_because:
        size = "x".join(map(str, request.img_size))
        print(f"{facts['model']} is made for one image size at a time, {size} here: {outcome.fixed_because}")
    for comparison in outcome.comparisons:
        print(f"difference from the model, relative, {comparison}")
    if not outcome.good:
        aside = settle(path, target, good=False)
        print(f"attnzoo export: more than 1e-4 off; the file is kept as {aside}, for inspection only", file=sys.stderr)
        return EXIT_INCOMPLETE
    if photographs is None:
        print(f"wrote {settle(path, target, good=True)}, {outcome.size / 1e6:.1f} MB")
        return EXIT_OK
    with temporary(target) as small:
        return _quantize(path, small, target, photographs)


def _quantize(path: Path, small: Path, target: Path, photographs: Any) -> int:
    """Writes the 8-bit form of ``path`` and says how far it agrees with it."""
    from .exporting.formats import open_file
    from .exporting.job import settle
    from .exporting.quantize import agreement, quantize

    quantize(path, small)
    found = agreement(open_file(small), open_file(path), photographs)
    print(f"8-bit weights: {found}")
    sizes = f"{small.stat().st_size / 1e6:.1f} MB ({path.stat().st_size / 1e6:.1f} MB in float32)"
    if found.error != found.error:
        print(f"attnzoo export: not a number; the file is kept as {settle(small, target, good=False)}", file=sys.stderr)
        return EXIT_INCOMPLETE
    print(f"wrote {settle(small, target, good=True)}, {sizes}")
    return EXIT_OK


def _check(args: argparse.Namespace) -> None:
    """Refuses what does not go together, before anything is built."""
    if not args.model:
        raise UserError("no MODEL; 'attnzoo list' shows their names, --all takes every one")
    for option in ("check_only", "json", "resume"):
        if getattr(args, option):
            raise UserError(f"--{option.replace('_', '-')} belongs to --all")
    if args.img_size and (len(args.img_size) > 2 or min(args.img_size) < 1):
        raise UserError(f"--img-size takes one or two numbers of at least 1, not {' '.join(map(str, args.img_size))}")
    if args.quantize and args.format != "onnx":
        raise UserError(f"--quantize int8 is for --format onnx, not {args.format}")
    if args.quantize and args.features_only:
        raise UserError("--quantize is judged by the first choice among classes; leave out --features-only")
    if args.quantize and not args.dynamic_batch:
        raise UserError("--quantize needs --dynamic-batch, to run on photographs")
    if args.checkpoint and args.random_weights:
        raise UserError("--checkpoint and --random-weights exclude each other")
    if args.images and not args.quantize:
        raise UserError("--images are for --quantize int8")


def _check_target(target: Path, suffix: str) -> None:
    if target.suffix != suffix:
        raise UserError(f"--output {target}: the name of such a file ends in {suffix}")
    check_files(target)


def _prepare(args: argparse.Namespace) -> "tuple[Subject, Request]":
    """The model with its weights, and what is wanted of it."""
    import torch

    from .evaluation.models import check_input, check_name, load_subject
    from .exporting.job import Request
    from .exporting.sweep import size_argument

    check_name(args.model)
    size = (args.img_size[0], args.img_size[-1]) if args.img_size else None
    torch.manual_seed(0)
    device = torch.device("cpu")
    subject = load_subject(
        args.model,
        checkpoint=args.checkpoint,
        random_weights=args.random_weights,
        num_classes=args.num_classes,
        model_kwargs=size_argument(args.model, size),
        device=device,
    )
    channels, *own = subject.model.pretrained_cfg["input_size"]
    height, width = size or own
    check_input(subject, (channels, height, width), device)
    options = {"dynamic_batch": args.dynamic_batch, "dynamic_size": args.dynamic_size, "opset": args.opset}
    return subject, Request(args.format, (height, width), channels, **options)


def _model(args: argparse.Namespace, subject: "Subject") -> Any:
    from .exporting.program import FeatureMaps

    return FeatureMaps(subject.model, subject.name).eval() if args.features_only else subject.model


def _photographs(args: argparse.Namespace, subject: "Subject", request: "Request") -> Any:
    """Read before the work, so that a folder without photographs costs nothing; None where none are needed."""
    if not args.quantize:
        return None
    from .exporting.photographs import load

    if subject.weights["source"] == "random":
        print("the weights are random: how far 8-bit weights agree says little")
    return load(args.images, subject.model.pretrained_cfg, request.img_size)
