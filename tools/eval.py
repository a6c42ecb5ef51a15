"""Evaluate a model's top-1 and top-5 accuracy on a data set.

The images go through timm's own data code. Whatever cannot be decoded is named and left out of the denominator,
results are safe from the first batches on, and ``--resume`` goes on where a run was stopped.

Exit status: 0 done, 2 bad input, 3 done but with images left out or outputs that are not finite, 130 interrupted.
"""

import argparse
import ast
import os
import shlex
from typing import Any

from .allocator import keep_freed_memory
from .cli import MOST_CLASSES, MOST_IMAGES, MOST_SEED, MOST_SIDE, MOST_THREADS, UserError, whole_number
from .evaluation.results import ResultsFile
from .evaluation.session import Session
from .evaluation.sources import kind_of

# As in a recipe of attnzoo train.
_MOST_WORKERS = 256
_positive, _count = whole_number(1), whole_number(0)
_INTERPOLATIONS = ("nearest", "bilinear", "bicubic", "box", "hamming", "lanczos")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("model", metavar="MODEL", help="name of a model of attnzoo or timm, with or without tag")
    _add_data_arguments(parser.add_argument_group("data"))
    _add_model_arguments(parser.add_argument_group("model"))
    _add_run_arguments(parser.add_argument_group("run and results"))


def _add_data_arguments(group: Any) -> None:
    group.add_argument(
        "--data", required=True, metavar="WHERE",
        help="folder (CLASS/IMAGE), .tar file, digits, or a name of timm's: hfds/NAME, tfds/NAME, wds/NAME, torch/NAME",
    )  # fmt: skip
    group.add_argument("--split", default="validation", help="split, or the folder below WHERE that holds it")
    group.add_argument("--data-dir", metavar="DIR", help="root or cache of a named data set")
    group.add_argument(
        "--class-map", metavar="FILE",
        help="class folders' order: .txt (one a line, or NAME INDEX), .json, or imagenet-1k and the like",
    )  # fmt: skip
    group.add_argument("--subset", action="store_true", help="allow folders and the model's classes to differ")
    group.add_argument("--limit", type=_positive, metavar="N", help="evaluate N samples, drawn by --seed")
    group.add_argument(
        "--img-size", type=whole_number(1, MOST_SIDE), nargs="+", metavar="N",
        help="side, or height and width (the model's)",
    )  # fmt: skip
    group.add_argument("--crop-pct", type=_fraction, metavar="F", help="share of the resized image kept (the model's)")
    group.add_argument("--crop-mode", choices=("center", "squash", "border"), help="how to crop (the model's)")
    group.add_argument("--interpolation", choices=_INTERPOLATIONS, help="how to resize (the model's)")
    group.add_argument("--mean", type=float, nargs="+", metavar="F", help="per channel, of 0 to 1 (the model's)")
    group.add_argument("--std", type=float, nargs="+", metavar="F", help="per channel, of 0 to 1 (the model's)")
    group.add_argument("--exif", action="store_true", help="turn images as their EXIF orientation says")
    group.add_argument(
        "--allow-unreadable", type=_count, default=0, metavar="N", help="unreadable images that leave exit status 0"
    )


def _add_model_arguments(group: Any) -> None:
    weights = group.add_mutually_exclusive_group()
    weights.add_argument("--checkpoint", metavar="FILE", help="weights to load in place of the published ones")
    weights.add_argument("--random-weights", action="store_true", help="evaluate an untrained model")
    group.add_argument("--checkpoint-key", metavar="KEY", help="where in FILE the weights are, such as model_ema")
    group.add_argument(
        "--allow-missing", nargs="+", default=[], metavar="NAME",
        help="tensors that FILE need not have, with * and ?; they stay at random",
    )  # fmt: skip
    group.add_argument(
        "--num-classes", type=whole_number(1, MOST_CLASSES), metavar="N", help="classes of the checkpoint (the model's)"
    )
    group.add_argument(
        "--model-kwargs", type=_assignment, nargs="+", default=[], metavar="NAME=VALUE", help="to the model"
    )
    group.add_argument("--amp-dtype", choices=("none", "bfloat16", "float16"), default="none", help="autocast to it")
    group.add_argument("--channels-last", action="store_true", help="channels_last memory format")
    group.add_argument("--compile", action="store_true", help="torch.compile the model")


def _add_run_arguments(group: Any) -> None:
    group.add_argument("--device", default="auto", help="auto, cpu, cuda, cuda:1, …")
    group.add_argument(
        "--batch-size", type=whole_number(1, MOST_IMAGES), default=64, metavar="N", help="images in a batch"
    )
    group.add_argument(
        "--workers",
        type=whole_number(0, _MOST_WORKERS),
        default=min(4, os.cpu_count() or 1),
        metavar="N",
        help="loader processes",
    )
    group.add_argument(
        "--threads", type=whole_number(1, MOST_THREADS), metavar="N", help="CPU threads (PyTorch's choice)"
    )
    group.add_argument(
        "--seed", type=whole_number(0, MOST_SEED), default=0, metavar="N", help="of --limit and of random weights"
    )
    group.add_argument("--results", metavar="FILE", help="write FILE.json, or a row of FILE.csv")
    group.add_argument("--resume", action="store_true", help="go on with the partial run in the results file")
    group.add_argument("--overwrite", action="store_true", help="start again over a partial run or another file")
    group.add_argument("--save-every", type=_positive, default=10, metavar="N", help="batches between partial results")


def _fraction(text: str) -> float:
    try:
        value = float(text)
    except ValueError:
        value = 0.0
    if not 1e-3 <= value <= 1:
        raise argparse.ArgumentTypeError(f"{text!r} is not a share of 0.001 to 1")
    return value


def _assignment(text: str) -> tuple[str, Any]:
    name, equals, value = text.partition("=")
    if not (name.isidentifier() and equals):
        raise argparse.ArgumentTypeError(f"{text!r} is not NAME=VALUE")
    try:
        return name, ast.literal_eval(value)
    except (ValueError, SyntaxError, MemoryError, RecursionError):  # the last two for brackets in brackets
        return name, value


def run(args: argparse.Namespace) -> int:
    _check(args)
    kind_of(args.data)  # before a model is fetched or built
    file = ResultsFile(args.results) if args.results else None
    previous = file.check(args.resume, args.overwrite) if file else None
    keep_freed_memory()
    return Session(args, file, previous, _command(args)).run()


def _check(args: argparse.Namespace) -> None:
    if not args.data:
        raise UserError("--data is empty; give a folder, a .tar, digits, hfds/NAME, tfds/NAME or torch/NAME")
    if args.img_size and len(args.img_size) > 2:
        raise UserError(f"--img-size takes one or two numbers, not {len(args.img_size)}")
    for value in args.mean or ():
        if not 0 <= value <= 1:
            raise UserError(f"--mean {value:g} is not of 0 to 1, as pixels are here: divide by 255 what is of 0 to 255")
    for value in args.std or ():
        if not 0 < value <= 1:
            raise UserError(f"--std {value:g} must be above 0 and at most 1: divide by 255 what is of 0 to 255")
    if args.resume and not args.results:
        raise UserError("--resume needs --results FILE, the file of the run to go on with")
    if args.resume and args.overwrite:
        raise UserError("--resume and --overwrite exclude each other")
    if args.checkpoint_key and not args.checkpoint:
        raise UserError("--checkpoint-key needs --checkpoint FILE")
    if args.allow_missing and not args.checkpoint:
        raise UserError("--allow-missing needs --checkpoint FILE")


def _command(args: argparse.Namespace) -> str:
    """The call that repeats this one, with every option that is not at its default."""
    parser = argparse.ArgumentParser()
    add_arguments(parser)
    words = ["attnzoo", "eval", args.model]
    for action in parser._actions:
        value = getattr(args, action.dest, None)
        if not action.option_strings or value in (None, action.default) or action.dest in ("resume", "overwrite"):
            continue
        words.append(action.option_strings[-1])
        if action.nargs == "+":
            words += [f"{item[0]}={item[1]!r}" if isinstance(item, tuple) else str(item) for item in value]
        elif action.nargs != 0:
            words.append(str(value))
    return shlex.join(words)
