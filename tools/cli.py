"""What every subcommand shares: exit statuses, the error type, parsers of arguments, and text for a terminal."""

import argparse
import difflib
from collections.abc import Callable, Iterable

from ..weights.errors import printable as printable

EXIT_OK = 0
EXIT_BAD_INPUT = 2
EXIT_INCOMPLETE = 3
EXIT_INTERRUPTED = 130
# As a shell reports a process ended by SIGPIPE.
EXIT_BROKEN_PIPE = 141

# The most that makes sense of numbers that several subcommands take; beyond them PyTorch overflows or fills the memory.
MOST_SEED = 2**32 - 1
MOST_THREADS = 4096
MOST_IMAGES = 2**20
MOST_SIDE = 2**14
MOST_CLASSES = 10**6


class UserError(ValueError):
    """Something the user can mend; shown as one line, exit status 2."""


def whole_number(low: int, high: int = 2**31 - 1) -> Callable[[str], int]:
    """A parser of whole numbers from ``low`` to ``high``, for the ``type`` of an argument."""

    def parse(text: str) -> int:
        try:
            value = int(text)
        except ValueError:  # also more digits than Python converts
            value = low - 1
        if low <= value <= high:
            return value
        shown = repr(text if len(text) <= 40 else f"{text[:37]}...")
        if value > high:
            raise argparse.ArgumentTypeError(f"{shown} is too large; {high} is the most")
        raise argparse.ArgumentTypeError(f"{shown} is not a whole number of at least {low}")

    return parse


def up_to(high: int) -> Callable[[str], int]:
    """The same where the command itself says of a number that it is too small."""
    return whole_number(-high, high)


class HelpFormatter(argparse.ArgumentDefaultsHelpFormatter):
    """Shows each option's default, but not where there is none to show."""

    def _get_help_string(self, action: argparse.Action) -> str | None:
        # By identity: 0 is a default worth showing, though it equals False.
        if action.default is None or action.default is False or action.default in ([], (), ""):
            return action.help
        return super()._get_help_string(action)


def did_you_mean(name: str, known: Iterable[str], count: int = 3) -> str:
    """``; did you mean a, b?`` for the names nearest to ``name``, or an empty string."""
    near = difflib.get_close_matches(name, list(known), n=count, cutoff=0.5)
    return f"; did you mean {', '.join(near)}?" if near else ""
