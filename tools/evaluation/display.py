"""What the user sees: a progress bar on a terminal, a line now and then elsewhere, and the result."""

import contextlib
import sys
import time
from types import TracebackType
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from ..cli import printable
from .loop import State


class Display:
    """Progress on stderr; stdout is for the result. Where stderr is full or gone, nothing is shown."""

    def __init__(self, total: int, state: State) -> None:
        self.total = total
        self.started = time.perf_counter()
        self.before = state.position
        self._events = len(state.events)
        self._tenth = 10 * state.position // total
        self._bar: Progress | None = None
        self._task: Any = None
        console = Console(stderr=True)
        if console.is_terminal:
            columns = (
                TextColumn("{task.description}"),
                BarColumn(),
                MofNCompleteColumn(),
                TextColumn("{task.fields[scores]}"),
                TimeRemainingColumn(),
            )
            self._bar = Progress(*columns, console=console)
            self._task = self._bar.add_task("evaluating", total=total, completed=state.position, scores="")

    def __enter__(self) -> "Display":
        if self._bar is not None:
            with contextlib.suppress(OSError):
                self._bar.start()
        return self

    def __exit__(self, kind: type | None, error: BaseException | None, trace: TracebackType | None) -> None:
        if self._bar is not None:
            with contextlib.suppress(OSError):
                self._bar.stop()

    @property
    def seconds(self) -> float:
        return time.perf_counter() - self.started

    def rate(self, state: State) -> float:
        """Images per second of this session."""
        return (state.position - self.before) / max(self.seconds, 1e-9)

    def update(self, state: State) -> None:
        for event in state.events[self._events :]:
            self.say(event)
        self._events = len(state.events)
        top1, top5 = state.scores.running()
        scores = f"{self.rate(state):,.1f} images/s  top-1 {top1:.2f}  top-5 {top5:.2f}"
        if self._bar is not None:
            self._bar.update(self._task, completed=state.position, scores=scores)
        elif 10 * state.position // self.total > self._tenth:
            self._tenth = 10 * state.position // self.total
            _print_error(f"{state.position:,}/{self.total:,}  {scores}")

    def say(self, message: str) -> None:
        line = f"attnzoo eval: {printable(message)}"
        if self._bar is None:
            _print_error(line)
        else:
            with contextlib.suppress(OSError):
                self._bar.console.print(line, markup=False, highlight=False, soft_wrap=True)


def _print_error(line: str) -> None:
    # Without a standard error, print() would take standard output in its place.
    if sys.stderr is not None:
        with contextlib.suppress(OSError):
            print(line, file=sys.stderr, flush=True)


def print_result(results: dict[str, Any]) -> None:
    """The figures, their denominator, and everything that went into neither."""
    counts = results["counts"]
    partial = f", partial: {counts['seen']:,} of {counts['total']:,}" if results["status"] == "partial" else ""
    print(printable(f"{results['model']} on {results['data']['where']} ({results['data']['split']}{partial})"))
    if results["top1"] is None:
        print("no image was evaluated")
    else:
        loss = "not finite" if results["loss"] is None else f"{results['loss']:.4f}"
        top1, top5 = results["top1"], results["top5"]
        print(f"top-1 {top1:.3f} %   top-5 {top5:.3f} %   loss {loss}   of {counts['evaluated']:,} images")
    _print_published(results["published"])
    if "report" in results["weights"]:
        print(printable(f"weights: {results['weights']['report']}"))
    if counts["excluded"]:
        print(f"{counts['excluded']:,} unreadable images left out of these figures:")
        for item in results["excluded"][:10]:
            print(f"  {printable(item['file'])}: {printable(item['reason'])}")
        if counts["excluded"] > 10:
            print(f"  and {counts['excluded'] - 10:,} more")
    if counts["non_finite"]:
        print(f"{counts['non_finite']:,} images gave NaN or infinity and count as wrong")
    if results["conversions"]:
        kinds = ", ".join(f"{entry['count']:,} {kind}" for kind, entry in sorted(results["conversions"].items()))
        print(f"converted: {kinds}")
    for event in results["events"]:
        print(f"note: {event}")


def _print_published(published: dict[str, Any] | None) -> None:
    if published is None:
        return
    line = f"published top-1 {published['top1']:.2f} %"
    if published["difference"] is not None:
        line += f", difference {published['difference']:+.3f}"
    if published["not_comparable"]:
        line += f" (not comparable: {', '.join(published['not_comparable'])})"
    print(line)
