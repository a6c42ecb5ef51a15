"""Make a small data set for detection and segmentation: scanned digits in photographs, no download.

COCO annotations and label maps of the same images; the layout is described in docs/toys.md.
"""

import argparse
import time
from pathlib import Path

from .cli import MOST_SEED, whole_number
from .data.toy_files import write_toys


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--output", metavar="DIR", type=Path, default=Path("out/toys"), help="where the set goes")
    parser.add_argument(
        "--seed", type=whole_number(0, MOST_SEED), default=0, help="of the photographs' split and of the scenes"
    )
    parser.add_argument("--train", metavar="N", type=int, default=300, help="scenes to train on")
    parser.add_argument("--val", metavar="N", type=int, default=60, help="scenes to hold out")
    parser.add_argument("--overwrite", action="store_true", help="replace another toy set that is there")


def run(args: argparse.Namespace) -> int:
    started = time.monotonic()
    made = write_toys(args.output, args.seed, args.train, args.val, args.overwrite)
    what = f"made in {time.monotonic() - started:.1f} s" if made else "is there already"
    print(f"{args.output}: {args.train} scenes to train on, {args.val} held out, seed {args.seed}; {what}")
    return 0
