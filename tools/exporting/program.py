"""Tracing a model by torch.export, with the batch and, where the architecture allows, the image size left open."""

import contextlib
import signal
import threading
from collections.abc import Iterator, Sequence

import torch
from torch import Tensor, nn
from torch.export import Dim, ExportedProgram

from ..cli import UserError

# Of processor time. Architectures that allow open sizes need a few seconds; on others torch.export may reason about
# padded sides for hours.
_DYNAMIC_SIZE_SECONDS = 60.0
# And again after so much more, should the first end have come where Python or the tracer lets nothing out.
_AGAIN_SECONDS = 5.0
_MOST_LEVELS = 5


class FeatureMaps(nn.Module):
    """A model that gives the maps of its stages [B, C, H, W], finest first, instead of logits.

    Models of one resolution list every block as a level; of those only the last comes out.

    Raises:
        UserError: the model has no ``forward_intermediates``.
    """

    def __init__(self, model: nn.Module, name: str) -> None:
        super().__init__()
        if not hasattr(model, "forward_intermediates"):
            raise UserError(f"{name} gives no feature maps; leave out --features-only")
        self.model = model
        levels = len(model.feature_info)
        self.indices = list(range(levels)) if levels <= _MOST_LEVELS else [levels - 1]

    def forward(self, x: Tensor) -> tuple[Tensor, ...]:
        return tuple(self.model.forward_intermediates(x, indices=self.indices, intermediates_only=True))


def example(batch: int, img_size: tuple[int, int], channels: int = 3, seed: int = 0) -> Tensor:
    """Images [B, C, H, W] of noise, the same on every machine."""
    return torch.randn(batch, channels, *img_size, generator=torch.Generator().manual_seed(seed))


def other_size(img_size: Sequence[int]) -> tuple[int, int]:
    """A smaller size that is not square: 3/4 of the height and 9/10 of the width, in steps of 32 pixels."""
    height, width = img_size
    return max(32, height * 3 // 4 // 32 * 32), max(32, width * 9 // 10 // 32 * 32)


def open_sizes(img_size: Sequence[int]) -> list[tuple[int, int]]:
    """What a program of open size has to compute too: a larger multiple of 32, an odd size, and a smaller one.

    The smaller one is left out for small images: a side of one pixel in the last stage is a program of its own.
    """
    height, width = (side // 32 * 32 for side in img_size)
    sizes = [(height + 96, width + 64), (height + 45, width + 59)]
    return [*sizes, other_size(img_size)] if min(img_size) >= 128 else sizes


def trace(model: nn.Module, images: Tensor, dynamic_batch: bool = True, dynamic_size: bool = False) -> ExportedProgram:
    """The program of a model in evaluation mode.

    Args:
        images: an example [B, C, H, W], B at least 2.
        dynamic_batch: any batch of at least 1 may be given later.
        dynamic_size: any height and width too.

    Raises:
        NotDynamic: ``dynamic_size`` and the architecture's program depends on the size.
    """
    axes: dict[int, object] = {0: Dim("batch", min=1)} if dynamic_batch else {}
    if not dynamic_size:
        with torch.no_grad():
            return torch.export.export(model, (images,), dynamic_shapes=(axes or None,))
    axes |= {2: Dim.DYNAMIC, 3: Dim.DYNAMIC}
    try:
        with torch.no_grad(), _time_limit(_DYNAMIC_SIZE_SECONDS):
            program = torch.export.export(model, (images,), dynamic_shapes=(axes,))
            # A program may carry conditions on the size that only show when it runs on another; ONNX would lose them.
            module = program.module()
            for img_size in open_sizes(images.shape[2:]):
                module(example(len(images), img_size, images.shape[1]))
            return program
    except _TimeIsUpError:
        raise NotDynamic(f"torch.export found no program in {_DYNAMIC_SIZE_SECONDS:.0f} s") from None
    except Exception as error:  # torch.export's errors have no common class, and the answer to each is the same
        raise NotDynamic(" ".join(str(error).split())[:160]) from None


class NotDynamic(ValueError):
    """The architecture fixes the image size; says why."""


class _TimeIsUpError(BaseException):
    """Not an Exception: the tracer catches those."""


@contextlib.contextmanager
def _time_limit(seconds: float) -> Iterator[None]:
    """Ends the block after so much processor time, where that can be done: in the main thread of a Unix process."""
    if threading.current_thread() is not threading.main_thread() or not hasattr(signal, "setitimer"):
        yield
        return

    def stop(number: int, frame: object) -> None:
        raise _TimeIsUpError

    before = signal.signal(signal.SIGVTALRM, stop)
    signal.setitimer(signal.ITIMER_VIRTUAL, seconds, _AGAIN_SECONDS)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_VIRTUAL, 0)
        signal.signal(signal.SIGVTALRM, before)
