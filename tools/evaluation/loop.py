"""The evaluation itself: batch after batch, through whatever happens on the way."""

import gc
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from ..cli import UserError
from ..signals import StopRequest
from .loading import Labels, LoaderOptions, build_loader
from .scores import Scores
from .sources import Source

_NO_MEMORY = ("DefaultCPUAllocator: can't allocate memory", "DefaultCPUAllocator: not enough memory")
_WORKER_DIED = (
    "DataLoader worker (pid",
    "unable to open shared memory object",
    "unable to write to file </torch_",
    "Too many open files",
)


@dataclass
class State:
    """How far a run is and what it met; with the scores, all that a resumed run needs."""

    batch_size: int
    workers: int
    position: int = 0
    excluded: list[dict[str, Any]] = field(default_factory=list)
    conversions: dict[str, dict[str, Any]] = field(default_factory=dict)
    events: list[str] = field(default_factory=list)
    scores: Scores = field(default_factory=Scores)

    NAMED_FILES = 100

    def note(self, kind: str, name: str) -> None:
        """Counts a conversion; the first hundred files of each kind are named."""
        entry = self.conversions.setdefault(kind, {"count": 0, "files": []})
        entry["count"] += 1
        if len(entry["files"]) < self.NAMED_FILES:
            entry["files"].append(name)


@dataclass
class Evaluator:
    """Evaluates ``model`` on ``source`` in the given order."""

    model: Callable[[Tensor], Tensor] | nn.Module
    source: Source
    order: Sequence[int]
    loader_options: LoaderOptions
    num_classes: int
    amp_dtype: torch.dtype | None = None
    channels_last: bool = False
    on_batch: Callable[[State], None] = lambda state: None

    def run(self, state: State) -> bool:
        """Goes on from ``state`` to the end.

        Returns:
            Whether the end was reached; False after SIGINT or SIGTERM.

        Raises:
            UserError: A label is no class of the model, or one image alone does not fit in memory.
        """
        with StopRequest() as stop, torch.inference_mode():
            while state.position < len(self.order):
                fault = self._run_until_fault(state, stop)
                if fault is None:
                    break
                _recover(fault, state)
        return not (stop.requested and state.position < len(self.order))

    def _run_until_fault(self, state: State, stop: StopRequest) -> str | None:
        """Returns ``"memory"`` or ``"workers"``; only after this returns are the failed batch's tensors free."""
        try:
            loader = build_loader(
                self.source, self.order, state.position, state.batch_size, state.workers, self.loader_options
            )
            for images, labels in loader:
                self._evaluate(images, labels, state)
                self.on_batch(state)
                if stop.requested:
                    return None
        except RuntimeError as error:
            fault = classify(error)
            if fault is None:
                raise
            return fault
        if state.position < len(self.order):
            state.events.append(f"the data ended after {state.position} of {len(self.order)} samples")
        return None

    def _evaluate(self, images: Tensor, labels: Labels, state: State) -> None:
        if labels.indices:
            self._check_targets(labels)
            if self.channels_last:
                images = images.contiguous(memory_format=torch.channels_last)
            with torch.autocast(images.device.type, self.amp_dtype, enabled=self.amp_dtype is not None):
                logits = self.model(images)
            state.scores.add(labels.indices, logits, labels.targets)
        for index, reason in labels.excluded:
            state.excluded.append({"index": index, "file": self.source.name(index), "reason": reason})
        for index, kind in labels.notes:
            state.note(kind, self.source.name(index))
        state.position += labels.seen

    def _check_targets(self, labels: Labels) -> None:
        outside = (labels.targets < 0) | (labels.targets >= self.num_classes)
        if outside.any():
            at = int(outside.nonzero()[0])
            raise UserError(
                f"{self.source.name(labels.indices[at])} has the label {int(labels.targets[at])}, "
                f"but the model's {self.num_classes} classes are 0 to {self.num_classes - 1}"
            )


def classify(error: RuntimeError) -> str | None:
    """``"memory"``, ``"workers"`` or None: any other RuntimeError is no reason to try again."""
    text = str(error)
    if isinstance(error, torch.OutOfMemoryError) or any(phrase in text for phrase in _NO_MEMORY):
        return "memory"
    return "workers" if any(phrase in text for phrase in _WORKER_DIED) else None


def _recover(fault: str, state: State) -> None:
    if fault == "workers" and state.workers > 0:
        state.events.append(f"loader workers died at sample {state.position}: went on without workers")
        state.workers = 0
    elif fault == "memory" and state.batch_size > 1:
        gc.collect()
        if torch.cuda.is_available():
            torch.cuda.empty_cache()
        state.batch_size //= 2
        state.events.append(f"out of memory at sample {state.position}: went on with batches of {state.batch_size}")
    elif fault == "memory":
        raise UserError(f"out of memory at sample {state.position} with a batch of one image")
    else:
        raise UserError(f"the data cannot be loaded at sample {state.position}, without workers either")
