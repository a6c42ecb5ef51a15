"""The one error type for weights: everything the user can mend about a checkpoint."""

import os


class CheckpointError(ValueError):
    """A checkpoint cannot be had, read or used; the message is one line.

    Args:
        problem: What is wrong and what would help, without the file's name.
        path: The file; leads the message where it is known.
    """

    def __init__(self, problem: str, path: str | os.PathLike[str] | None = None) -> None:
        self.problem = " ".join(str(problem).split())
        self.path = path
        super().__init__(self.problem if path is None else f"{os.fspath(path)}: {self.problem}")
