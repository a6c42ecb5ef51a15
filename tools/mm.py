"""Train and test detectors and segmenters: MMDetection's and MMSegmentation's, on the zoo's backbones.

    attnzoo mm train mmdet/nat/mask-rcnn_nat-mini_fpn_ms-3x_coco
    attnzoo mm train CONFIG.py --work-dir out/mine --resume
    attnzoo mm test CONFIG.py out/mine/epoch_12.pth --out results.json

CONFIG is a file, or the name of one of this package's. Exit status 2 for what you can mend, 3 where a loss, a metric
or a prediction was not finite, 130 when interrupted.
"""

import argparse
from pathlib import Path

from .cli import MOST_SEED, HelpFormatter, whole_number

_LAUNCHERS = ("none", "pytorch", "slurm", "mpi")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The two actions and their options, named as in MMDetection's own tools."""
    actions = parser.add_subparsers(dest="action", required=True, metavar="ACTION")

    def action(name: str, summary: str) -> argparse.ArgumentParser:
        sub = actions.add_parser(name, help=summary, description=summary, formatter_class=HelpFormatter)
        sub.add_argument("config", metavar="CONFIG", help="config file, or the name of one in this package")
        sub.add_argument("--work-dir", metavar="DIR", type=Path, help="folder of the run (default: out/CONFIG)")
        sub.add_argument("--data-root", metavar="DIR", type=Path, help="folder of the data (default: the config's)")
        sub.add_argument(
            "--cfg-options", nargs="+", default=[], metavar="KEY=VALUE", help="override settings of the config"
        )
        sub.add_argument("--launcher", choices=_LAUNCHERS, default="none", help="what started the processes")
        return sub

    sub = action("train", "Train from a config.")
    sub.add_argument(
        "--resume", nargs="?", const="auto", metavar="auto|FILE",
        help="go on from the newest checkpoint in the work folder that can be read, or from this one",
    )  # fmt: skip
    sub.add_argument(
        "--checkpoint", "--load-from", metavar="FILE", help="begin from these weights, published ones or your own"
    )
    sub.add_argument("--amp", action="store_true", help="train in mixed precision (on a GPU)")
    sub.add_argument("--auto-scale-lr", action="store_true", help="scale the learning rate with the batch size")
    sub.add_argument(
        "--seed",
        type=whole_number(0, MOST_SEED),
        help="seed of weights, order and augmentation (default: the config's, or 0)",
    )

    sub = action("test", "Evaluate a checkpoint.")
    sub.add_argument("checkpoint", metavar="CHECKPOINT", help="the weights, published ones or your own")
    sub.add_argument("--out", metavar="FILE", type=Path, help="write metrics and predictions as JSON")
    sub.add_argument("--show-dir", metavar="DIR", type=Path, help="draw the predictions into this folder")


def run(args: argparse.Namespace) -> int:
    """Do the action; returns the exit status."""
    if args.action == "train":
        from .dense.train import run as act
    else:
        from .dense.evaluate import run as act
    return act(args)
