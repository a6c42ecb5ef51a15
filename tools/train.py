"""Train a classifier from a recipe (YAML).

One process: ``attnzoo train CONFIG``; several GPUs or machines:
``accelerate launch -m attnzoo.tools.main train CONFIG``.
"""

import argparse
import sys
from pathlib import Path

import yaml

from .allocator import keep_freed_memory
from .cli import EXIT_INCOMPLETE, EXIT_INTERRUPTED, EXIT_OK, HelpFormatter, UserError
from .training.config import as_tree, describe_keys, find_recipe, load_recipe

SHORTCUTS = {
    "epochs": ("epochs", int, "epochs to train"),
    "batch_size": ("batch_size", int, "images of one forward in each process"),
    "lr": ("optimizer.lr", float, "learning rate"),
    "data": ("data.source", str, "digits, a folder of images, or a timm data set name"),
    "workers": ("data.workers", int, "loader processes per training process"),
    "seed": ("seed", int, "seed of weights, order and augmentation"),
}


class _Formatter(argparse.RawDescriptionHelpFormatter, HelpFormatter):
    """Keeps the lines of the list of keys."""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.formatter_class = _Formatter
    parser.epilog = "keys of a recipe (default):\n" + "\n".join(describe_keys())
    parser.add_argument("config", metavar="CONFIG", help="recipe file, or the name of a bundled one")
    parser.add_argument("--output", metavar="DIR", type=Path, help="folder of the run (default: out/RECIPE)")
    parser.add_argument(
        "--resume", nargs="?", const="auto", metavar="auto|DIR",
        help="go on from the newest checkpoint in the output folder that can be read, or from this one",
    )  # fmt: skip
    parser.add_argument("--overwrite", action="store_true", help="begin again in a folder that holds a run")
    parser.add_argument("--set", action="append", default=[], metavar="KEY=VALUE", help="override a key; repeatable")
    for name, (key, kind, text) in SHORTCUTS.items():
        help_text = f"{text}; short for --set {key}=... (default: the recipe's)"
        parser.add_argument(f"--{name.replace('_', '-')}", type=kind, help=help_text)
    parser.add_argument("--cpu", action="store_true", help="use no GPU")
    parser.add_argument("--print-config", action="store_true", help="print the checked recipe in full and stop")


def run(args: argparse.Namespace) -> int:
    shortcuts = {key: getattr(args, name) for name, (key, _, _) in SHORTCUTS.items()}
    overrides = args.set + [f"{key}={value}" for key, value in shortcuts.items() if value is not None]
    recipe = load_recipe(args.config, overrides)
    if args.print_config:
        print(yaml.safe_dump(as_tree(recipe), sort_keys=False), end="")
        return EXIT_OK
    if args.resume and args.overwrite:
        raise UserError("--resume and --overwrite exclude each other")
    from .training.progress import Interrupted, NonFinite
    from .training.run import train

    keep_freed_memory()
    output = args.output or Path("out") / find_recipe(args.config).stem
    try:
        progress = train(recipe, output, resume=args.resume, overwrite=args.overwrite, cpu=args.cpu)
    except Interrupted:
        print(f"attnzoo train: interrupted; the state is saved in {output}, go on with --resume", file=sys.stderr)
        return EXIT_INTERRUPTED
    except NonFinite as error:
        print(f"attnzoo train: stopped: {error}; the checkpoints before it are intact in {output}", file=sys.stderr)
        return EXIT_INCOMPLETE
    print(f"best top-1 {progress.best_top1:.2f} % in epoch {progress.best_epoch}: {output / 'model.safetensors'}")
    return EXIT_OK
