"""Train a small detector and a small segmenter on digits in photographs, score them, draw what they find.

What ``make demo-dense`` runs: nothing is downloaded, and it takes a few minutes on two cores.
"""

import argparse
from pathlib import Path
from typing import TYPE_CHECKING

from rich.console import Console
from rich.table import Table

from .cli import EXIT_INCOMPLETE, EXIT_OK, MOST_SEED, MOST_THREADS, UserError, up_to, whole_number

if TYPE_CHECKING:
    from .demos.training import Trained

DETECTOR, SEGMENTER = "mmdet/toy/retinanet_dinat-nano_fpn_toys", "mmseg/toy/fpn_dinat-nano_toys"
GOAL = 50.0
DRAWN = 4
# Each model has a process of its own; they are so small that more threads wait for each other.
THREADS = 1


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--output", metavar="DIR", type=Path, default=Path("out/demo-dense"), help="where results go")
    parser.add_argument(
        "--seed",
        type=whole_number(0, MOST_SEED),
        default=0,
        help="of the photographs' split, the scenes and the training",
    )
    parser.add_argument("--train", metavar="N", type=int, default=800, help="scenes to train on")
    parser.add_argument("--val", metavar="N", type=int, default=100, help="scenes to hold out")
    parser.add_argument("--epochs", type=int, help="epochs to train (default: the configs')")
    parser.add_argument("--resume", action="store_true", help="go on where an earlier run of the same was stopped")
    parser.add_argument("--threads", type=up_to(MOST_THREADS), default=THREADS, help="CPU threads of each of the two")


def run(args: argparse.Namespace) -> int:
    from .data.toy_files import write_toys
    from .data.toys import ToyScenes
    from .demos.picture import draw_picture
    from .demos.training import Job, train_all

    for name in ("threads", "epochs"):
        if getattr(args, name) is not None and getattr(args, name) < 1:
            raise UserError(f"--{name} is {getattr(args, name)}; at least 1 is needed")
    console = Console(highlight=False, soft_wrap=True)
    toys = (args.output / "toys").absolute()
    made = write_toys(toys, args.seed, args.train, args.val, overwrite=True)
    console.print(f"{args.output / 'toys'}: {args.train} scenes to train on, {args.val} of other photographs held out")
    jobs = [
        Job(
            name,
            toys,
            args.output / Path(name).name,
            args.seed,
            drawn=DRAWN,
            resume=args.resume and not made,
            threads=args.threads,
            overrides={"train_cfg.max_epochs": args.epochs} if args.epochs else {},
        )
        for name in (DETECTOR, SEGMENTER)
    ]
    detector, segmenter = trained = train_all(jobs)
    # Where a detector finds nothing at all, MMDetection gives no score.
    scores = {"box AP50": 100 * detector.metrics.get("coco/bbox_mAP_50", 0.0), "mIoU": segmenter.metrics["mIoU"]}
    _print_table(console, trained, scores)
    picture = args.output / "demo-dense.png"
    scenes = ToyScenes("val", args.seed)
    rows = [
        (scenes[i], *found) for i, found in enumerate(zip(detector.predictions, segmenter.predictions, strict=True))
    ]
    draw_picture(rows, picture)
    console.print(f"picture: {picture}")
    if weak := [name for name, score in scores.items() if not score >= GOAL]:
        console.print(f"below {GOAL:g}: {', '.join(weak)}")
        return EXIT_INCOMPLETE
    return EXIT_OK


def _print_table(console: Console, trained: "list[Trained]", scores: dict[str, float]) -> None:
    table = Table(title="Held-out photographs")
    for column in ("model", "measure"):
        table.add_column(column)
    for column in ("score", "goal", "parameters", "training"):
        table.add_column(column, justify="right")
    names = ("RetinaNet, dinat_nano (mmdet)", "Semantic FPN, dinat_nano (mmseg)")
    for name, one, (measure, score) in zip(names, trained, scores.items(), strict=True):
        table.add_row(
            name, measure, f"{score:.1f}", f"{GOAL:g}", f"{one.parameters / 1e6:.2f} M", f"{one.seconds:.0f} s"
        )
    console.print(table)
