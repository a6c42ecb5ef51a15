"""Train biformer_nano on scanned digits, compare it with the bundled dinat_nano, draw both.

What ``make demo`` runs: nothing is downloaded, and it takes a few minutes on two cores.
"""

import argparse
import time
from pathlib import Path
from typing import TYPE_CHECKING

from rich.console import Console
from rich.table import Table

from .cli import (
    EXIT_INCOMPLETE,
    EXIT_INTERRUPTED,
    EXIT_OK,
    MOST_SEED,
    MOST_THREADS,
    UserError,
    up_to,
    whole_number,
)

if TYPE_CHECKING:
    from .training.picture import Judged

TRAINED, RECIPE = "biformer_nano", "biformer_nano_digits"
BUNDLED = "dinat_nano.digits"
GOAL = 98.0
# The model is so small that threads wait for each other: on two busy cores, two of them were 20 times slower than one.
THREADS = 1


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--output", metavar="DIR", type=Path, default=Path("out/demo"), help="where results go")
    parser.add_argument("--epochs", type=int, help="epochs to train (default: the recipe's)")
    parser.add_argument("--seed", type=whole_number(0, MOST_SEED), help="seed of the training (default: the recipe's)")
    parser.add_argument("--limit", type=int, help="use only so many images of each split, for a quick look")
    parser.add_argument("--threads", type=up_to(MOST_THREADS), default=THREADS, help="CPU threads")


def run(args: argparse.Namespace) -> int:
    import torch

    from .training.config import load_recipe
    from .training.picture import draw_demo, judge
    from .training.progress import Interrupted
    from .training.run import train

    if args.threads < 1:
        raise UserError(f"--threads is {args.threads}; at least 1 is needed")
    torch.set_num_threads(args.threads)
    given = {"epochs": args.epochs, "seed": args.seed, "data.limit": args.limit}
    if args.epochs is not None:
        # A few epochs have no room for the recipe's warm-up.
        given["scheduler.warmup_epochs"] = min(load_recipe(RECIPE).scheduler.warmup_epochs, max(args.epochs - 1, 0))
    recipe = load_recipe(RECIPE, [f"{key}={value}" for key, value in given.items() if value is not None])
    length = f"{recipe.epochs} epochs" if recipe.epochs > 1 else "1 epoch"
    console = Console(highlight=False, soft_wrap=True)
    console.print(f"training {TRAINED} on scikit-learn's digits from nothing: {length}")
    started = time.monotonic()
    folder = args.output / TRAINED
    try:
        train(recipe, folder, overwrite=True, cpu=True)
    except Interrupted:
        console.print("interrupted; run it again to begin from the start")
        return EXIT_INTERRUPTED
    seconds = time.monotonic() - started

    judged = [
        judge(TRAINED, folder / "model.safetensors", f"trained now, {length} in {seconds:.0f} s"),
        judge(BUNDLED, None, "bundled"),
    ]
    _print_table(console, judged)
    picture = args.output / "demo.png"
    draw_demo(judged, folder / "metrics.csv", picture)
    console.print(f"picture: {picture}")
    weak = [one.name for one in judged if one.top1 < GOAL]
    if weak:
        console.print(f"below {GOAL:g} %: {', '.join(weak)}")
        return EXIT_INCOMPLETE
    return EXIT_OK


def _print_table(console: Console, judged: "list[Judged]") -> None:
    table = Table(title="Held-out digits")
    for column in ("model", "weights", "parameters"):
        table.add_column(column)
    for column in ("correct", "top-1"):
        table.add_column(column, justify="right")
    for one in judged:
        size = f"{one.parameters / 1e6:.2f} M"
        table.add_row(one.name, one.weights, size, f"{one.correct} / {one.total}", f"{one.top1:.2f} %")
    console.print(table)
