"""What every subcommand shares: its exit statuses, its error type and its parser."""

import argparse
import difflib
from collections.abc import Iterable

EXIT_OK = 0
EXIT_BAD_INPUT = 2
EXIT_INCOMPLETE = 3
EXIT_INTERRUPTED = 130
# As a shell reports a process ended by SIGPIPE.
EXIT_BROKEN_PIPE = 141


class UserError(ValueError):
    """Something the user can mend; shown as one line, exit status 2."""


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
