"""What a run tells: lines and a bar on the terminal, metrics.csv, TensorBoard."""

import csv
import io
import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from .checkpoint import replace_synced, write_error

COLUMNS = ("epoch", "updates", "lr", "train_loss", "val_loss", "val_top1", "val_top5")


def read_metrics(path: Path) -> list[dict[str, float]]:
    """The rows of a metrics.csv; a last row that was cut by a crash is left out."""
    if not path.is_file():
        return []
    rows = []
    with path.open(newline="", encoding="utf-8") as file:
        for row in csv.DictReader(file):
            try:
                rows.append({name: float(row[name]) for name in COLUMNS})
            except (KeyError, TypeError, ValueError):
                break
    return rows


class Log:
    """Terminal, CSV and TensorBoard of one run; silent in all processes but the first.

    metrics.csv holds no times: a resumed run writes the very rows an uninterrupted one does.
    """

    def __init__(self, output: Path, *, main: bool, tensorboard: bool, first_epoch: int, updates: int) -> None:
        self.main = main
        self.console = Console(quiet=not main, highlight=False, soft_wrap=True)
        self.path = output / "metrics.csv"
        self._writer: Any = None
        if main:
            self._keep_rows_before(first_epoch)
            if tensorboard:
                self._open_tensorboard(output, updates)

    def say(self, text: str) -> None:
        self.console.print(text, markup=False)

    @contextmanager
    def bar(self, title: str, total: int, done: int = 0) -> Iterator[Any]:
        """Yields a function to call after each step; shows a bar where there is a terminal, else nothing."""
        columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
        progress = Progress(*columns, console=self.console, transient=True, disable=not self.console.is_terminal)
        with progress:
            task = progress.add_task(title, total=total, completed=done)
            yield lambda: progress.advance(task)

    def write(self, row: Mapping[str, float]) -> None:
        """Appends one epoch's row and makes sure that it is on the disk."""
        if not self.main:
            return
        try:
            with self.path.open("a", encoding="utf-8") as file:
                file.write(_as_line([_text(row[name]) for name in COLUMNS]))
                file.flush()
                os.fsync(file.fileno())
        except OSError as error:
            raise write_error(error, self.path.parent, 100) from error
        if self._writer is not None:
            for name in COLUMNS[2:]:
                self._writer.add_scalar(name, row[name], int(row["updates"]))
            self._writer.flush()

    def close(self) -> None:
        if self._writer is not None:
            self._writer.close()

    def _keep_rows_before(self, first_epoch: int) -> None:
        rows = [row for row in read_metrics(self.path) if row["epoch"] < first_epoch]
        lines = [_as_line(COLUMNS), *(_as_line([_text(row[name]) for name in COLUMNS]) for row in rows)]
        replace_synced(self.path, "".join(lines).encode())

    def _open_tensorboard(self, output: Path, updates: int) -> None:
        try:
            from torch.utils.tensorboard import SummaryWriter
        except ImportError:
            self.say("tensorboard is not installed: no events are written; pip install 'attnzoo[train]'")
            return
        try:
            self._writer = SummaryWriter(str(output / "tensorboard"), purge_step=updates + 1)
        except OSError as error:
            raise write_error(error, output, 100) from error


def _as_line(values: Any) -> str:
    buffer = io.StringIO()
    csv.writer(buffer, lineterminator="\n").writerow(values)
    return buffer.getvalue()


def _text(value: float) -> str:
    return str(int(value)) if float(value).is_integer() and abs(value) < 1e15 else repr(float(value))
