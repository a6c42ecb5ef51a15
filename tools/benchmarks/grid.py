"""The combinations that ``attnzoo bench models`` measures: device × number type × backend × batch × image size."""

import argparse
import itertools
from dataclasses import asdict, dataclass
from typing import Any

from ..cli import MOST_IMAGES, MOST_SIDE, UserError
from .options import DTYPES, check_count
from .report import Report

BACKENDS = ("auto", "torch", "reference", "triton")

# What has to be the same for the rows of two sessions to stand in one file.
_SAME = ("device", "timer", "threads", "python", "torch", "packages", "backward", "compile", "reference", "repeat")


@dataclass(frozen=True)
class Setup:
    """One combination; all models take turns within it.

    Attributes:
        device: ``cpu``, ``cuda:0``, …
        backend: which implementation of the ops is forced; ``auto`` forces none.
        img_size: height and width.
    """

    device: str
    dtype: str
    backend: str
    batch: int
    img_size: tuple[int, int]

    def __str__(self) -> str:
        height, width = self.img_size
        return f"{self.device}, {self.dtype}, {self.backend}, batch {self.batch}, {height}×{width}"

    def facts(self) -> dict[str, Any]:
        """As a row of the report says it."""
        return {**asdict(self), "img_size": list(self.img_size)}

    def is_of(self, row: dict[str, Any]) -> bool:
        """Whether a row of a report was measured so."""
        return all(row.get(name) == value for name, value in self.facts().items())


def add_grid_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--device", type=_words, default=["cpu"], metavar="D,…", help="cpu, cuda, cuda:1, …")
    parser.add_argument(
        "--dtype", type=_words, default=["float32"], metavar="T,…", help=f"of weights and inputs: {', '.join(DTYPES)}"
    )
    parser.add_argument(
        "--backend", type=_words, default=["auto"], metavar="B,…", help=f"of the ops: {', '.join(BACKENDS)}"
    )
    parser.add_argument("--batch", type=_numbers, metavar="N,…", help="images (8)")
    parser.add_argument(
        "--img-size", type=_sizes, default=["224"], metavar="S,…", help="sides or HEIGHTxWIDTH, such as 224,448x672"
    )


def setups(args: argparse.Namespace) -> list[Setup]:
    """Every combination that the options name, sizes last.

    Raises:
        UserError: no such number type or backend, or a number below 1.
    """
    for option, known in (("dtype", DTYPES), ("backend", BACKENDS)):
        if wrong := [value for value in getattr(args, option) if value not in known]:
            raise UserError(f"--{option} is {wrong[0]}; it is one of {', '.join(known)}")
    for number in args.batch or ():
        check_count("batch", number, MOST_IMAGES)
    sizes = [_sides(text) for text in args.img_size]
    for side in itertools.chain(*sizes):
        check_count("img-size", side, MOST_SIDE)
    combinations = itertools.product(args.device, args.dtype, args.backend, args.batch or [8], sizes)
    return [Setup(*combination) for combination in combinations]


def refuse_other_machine(known: Report, setting: dict[str, Any]) -> None:
    """Raises UserError where a file to be resumed was measured on or with something else."""
    before = known["setting"]
    if differing := [name for name in _SAME if before.get(name) != setting[name]]:
        name = differing[0]
        raise UserError(
            f"--resume: the file's {name} is {before.get(name)}, now it is {setting[name]}; its times do not belong "
            "beside new ones: write another file"
        )


def _words(text: str) -> list[str]:
    return list(dict.fromkeys(text.split(",")))


def _numbers(text: str) -> list[int]:
    try:
        return [int(word) for word in _words(text)]
    except ValueError:
        raise argparse.ArgumentTypeError(f"{text} is no list of whole numbers, such as 1,8") from None


def _sizes(text: str) -> list[str]:
    words = _words(text)
    # Python converts no number of thousands of digits.
    sides = [side.isdecimal() and len(side) < 20 for word in words for side in word.split("x")]
    if not all(sides) or any(word.count("x") > 1 for word in words):
        raise argparse.ArgumentTypeError(f"{text} is no list of sizes, such as 224,448x672")
    return words


def _sides(text: str) -> tuple[int, int]:
    height, _, width = text.partition("x")
    return int(height), int(width or height)
