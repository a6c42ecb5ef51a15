"""One export: traced, written under a temporary name, compared with the model, and only then put in its place."""

import os
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

from torch import nn

from ...weights import files
from ..cli import UserError
from ..signals import sigterm_raises, terminated
from .check import Comparison, compare
from .formats import DEFAULT_OPSET, SUFFIXES, open_file, write
from .program import NotDynamic, example, open_sizes, trace

# The traced batch is 2: a batch of 1 would be taken for a constant.
_TRACED_BATCH = 2


@dataclass(frozen=True)
class Request:
    """What is wanted of an export.

    Attributes:
        format: ``onnx`` or ``pt2``.
        img_size: height and width.
        dynamic_batch: any batch may be given to the file; else only 2.
        dynamic_size: any image size too, where the architecture allows it.
    """

    format: str
    img_size: tuple[int, int]
    channels: int = 3
    dynamic_batch: bool = True
    dynamic_size: bool = False
    opset: int = DEFAULT_OPSET


@dataclass
class Outcome:
    """What became of it.

    Attributes:
        comparisons: with the model, on other images than the traced.
        size: bytes of the file.
        fixed_because: why the image size is fixed though another was asked for.
    """

    comparisons: list[Comparison] = field(default_factory=list)
    size: int = 0
    fixed_because: str | None = None

    @property
    def good(self) -> bool:
        return all(comparison.good for comparison in self.comparisons)

    @property
    def error(self) -> float:
        return max(comparison.error for comparison in self.comparisons)


def export(model: nn.Module, request: Request, facts: dict[str, str], path: Path) -> Outcome:
    """Writes ``path`` and compares it with the model.

    Raises:
        UserError: the format or the runtime cannot express the model.
    """
    outcome = Outcome()
    images = example(_TRACED_BATCH, request.img_size, request.channels)
    try:
        program = trace(model, images, request.dynamic_batch, request.dynamic_size)
    except NotDynamic as error:
        outcome.fixed_because = str(error)
        program = trace(model, images, request.dynamic_batch)
    write(program, path, facts, request.opset)
    batches = (1, 3) if request.dynamic_batch else (_TRACED_BATCH,)
    cases = [(batch, request.img_size) for batch in batches]
    if request.dynamic_size and outcome.fixed_because is None:
        cases += [(batches[-1], img_size) for img_size in open_sizes(request.img_size)]
    outcome.comparisons = compare(open_file(path), model, request.channels, cases)
    outcome.size = path.stat().st_size
    return outcome


@contextmanager
def temporary(target: Path) -> Iterator[Path]:
    """A name beside ``target`` for what is not yet known to be good; whatever is left under it at the end goes.

    Raises:
        UserError: the folder takes no files, though its permissions say so (as in /proc).
    """
    try:
        handle, name = tempfile.mkstemp(prefix=f".{target.stem}.", suffix=target.suffix, dir=target.parent)
    except OSError:
        raise UserError(
            f"{target} cannot be written: name a file in a folder that is there and can be written to"
        ) from None
    os.close(handle)
    path = Path(name)
    try:
        with sigterm_raises(terminated):
            yield path
    finally:
        path.unlink(missing_ok=True)


def settle(path: Path, target: Path, good: bool) -> Path:
    """Moves a finished file to its name; one that is not good goes aside, and an older good one stays.

    Returns:
        Where it is now.
    """
    if not good:
        target = target.with_name(f"{target.stem}.rejected{target.suffix}")
    files.settle(path, target)
    return target


def default_output(name: str, format: str, quantized: bool) -> Path:
    return Path(f"{name}{'.int8' if quantized else ''}{SUFFIXES[format]}")
