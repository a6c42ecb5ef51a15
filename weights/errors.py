"""The error types for weights: everything the user can mend about a checkpoint."""

import os


class CheckpointError(ValueError):
    """A checkpoint cannot be had, read or used; the message is one line of printable characters.

    Args:
        problem: What is wrong and what would help, without the file's name.
        path: The file; leads the message where it is known.
    """

    def __init__(self, problem: str, path: str | os.PathLike[str] | None = None) -> None:
        self.problem = printable(" ".join(str(problem).split()))
        self.path = path
        super().__init__(self.problem if path is None else f"{printable(os.fspath(path))}: {self.problem}")


class DamagedError(CheckpointError):
    """The file's bytes are not those that were written: another copy of it may be good."""


def printable(text: str) -> str:
    """``text`` with control characters and the like escaped: names from a file must not steer a terminal."""
    return "".join(each if each.isprintable() else ascii(each)[1:-1] for each in text)
