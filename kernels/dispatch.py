"""Which implementation of an op runs: ``triton`` where it can, else ``torch``, else ``reference``.

An op is one :class:`Op`: a function that checks the arguments of the public function and returns them in the form
that every implementation takes, and up to three implementations. All decisions are plain Python on shapes, dtypes
and devices, so that ``torch.compile`` and ``torch.export`` trace through them.
"""

from __future__ import annotations

import inspect
import os
import threading
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from contextvars import ContextVar
from dataclasses import dataclass, field
from types import TracebackType
from typing import Any

import torch

from ._checks import is_transformed, needs_gradient

BACKENDS = ("triton", "torch", "reference")
ENVIRONMENT_VARIABLE = "ATTNZOO_BACKEND"

_environment: str | None = os.environ.get(ENVIRONMENT_VARIABLE) or None
_forced = _environment
_settings: list[_Setting] = []
_settings_lock = threading.Lock()
_ops: dict[str, Op] = {}

Observer = Callable[[str, tuple, Callable[[], torch.Tensor]], torch.Tensor]
_observer: ContextVar[Observer | None] = ContextVar("attnzoo_op_observer", default=None)


def _always(*args: Any) -> None:
    return None


@dataclass(frozen=True)
class Implementation:
    """``run(*args)`` computes the op; ``can_run(*args)`` is None where it can, else the reason why not."""

    run: Callable[..., Any]
    can_run: Callable[..., str | None] = _always


@dataclass(frozen=True)
class Explanation:
    """What :func:`explain` found: the implementation that runs (None: no one), and why the others do not."""

    op: str
    chosen: str | None
    reasons: dict[str, str] = field(default_factory=dict)

    def __str__(self) -> str:
        lines = [f"{self.op}: {self.chosen or 'nothing'} runs"]
        lines += [f"  {name}: {reason}" for name, reason in self.reasons.items()]
        return "\n".join(lines)


def _without_gradient(run: Callable[..., Any]) -> Callable[..., Any]:
    """``run`` where nothing needs a gradient, which implementations see by the mode alone."""

    def run_without(*args: Any) -> Any:
        with torch.no_grad():
            out = run(*args)
        # PyTorch refuses to have a view that was made in that mode overwritten in this one.
        return out.detach() if isinstance(out, torch.Tensor) else out

    return run_without


def _in_first_dtype(run: Callable[..., Any]) -> Callable[..., Any]:
    """``run`` with a result of its first argument's dtype, also under autocast, which lowers that of some operators."""

    def run_in(*args: Any) -> Any:
        out = run(*args)
        lowered = isinstance(out, torch.Tensor) and out.dtype != args[0].dtype
        return out.to(args[0].dtype) if lowered else out

    return run_in


class Op:
    """An op with its implementations.

    Args:
        name: name of the public function.
        prepare: has the public function's signature; checks the arguments and returns the tuple that every
            implementation is called with.
        implementations: by backend name; ``reference`` must be there and run whatever ``prepare`` lets through.
    """

    def __init__(self, name: str, prepare: Callable[..., tuple], **implementations: Implementation) -> None:
        self.name = name
        self.module = prepare.__module__
        self.prepare = prepare
        self.implementations = implementations
        _ops[name] = self

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        prepared = self.prepare(*args, **kwargs)
        run = _in_first_dtype(self.implementations[self._choose(prepared)].run)
        # A program that is being compiled or exported never sees the observer.
        if torch.compiler.is_compiling():
            return run(*prepared)
        if torch.is_grad_enabled() and not (needs_gradient(prepared) or is_transformed() or torch.jit.is_tracing()):
            run = _without_gradient(run)
        if (observer := _observer.get()) is not None:
            return observer(self.name, prepared, lambda: run(*prepared))
        return run(*prepared)

    def why_not(self, backend: str, prepared: tuple) -> str | None:
        """The reason why ``backend`` cannot run on the prepared arguments, or None."""
        if backend not in self.implementations:
            return f"{self.name} has no {backend} implementation"
        return self.implementations[backend].can_run(*prepared)

    def _choose(self, prepared: tuple) -> str:
        forced = get_backend()
        if forced is not None:
            reason = self.why_not(forced, prepared)
            if reason is not None:
                raise RuntimeError(f"{self.name}: the backend {forced!r} was asked for and cannot run: {reason}")
            return forced
        for backend in BACKENDS:
            if self.why_not(backend, prepared) is None:
                return backend
        return "reference"


def _checked_backend(name: object, origin: str) -> str | None:
    if name is None or name in BACKENDS:
        return name
    raise ValueError(f"{origin} is {name!r}; known backends: {', '.join(map(repr, BACKENDS))}")


class _Setting:
    """A backend that was asked for, until the end of its ``with`` block where it has one."""

    def __init__(self, name: str | None) -> None:
        self.name = name
        self.has_block = False


def _set(settings: list[_Setting]) -> None:
    """The last one holds. What programs are guarded by is a plain string."""
    global _settings, _forced
    _settings = settings
    _forced = settings[-1].name if settings else _environment


def _alone() -> AbstractContextManager:
    """A context in which no other thread changes the settings; Dynamo knows no locks."""
    return nullcontext() if torch.compiler.is_compiling() else _settings_lock


class use_backend:
    """Forces one implementation for every op, or with None lets each op choose again.

    Called, it sets the backend from there on; as a context manager it takes that back at the block's end, and what was
    set inside the block. The setting holds for the whole process, all threads; of blocks that overlap in several
    threads the one begun last holds. A forced backend that cannot run is an error, never a silent fallback.

    Args:
        name: ``"triton"``, ``"torch"``, ``"reference"`` or None.

    Raises:
        ValueError: no such backend.
    """

    def __init__(self, name: str | None) -> None:
        self._made = _Setting(_checked_backend(name, "use_backend's name"))
        self._blocks: list[_Setting] = []
        with _alone():
            kept = _settings
            if len(kept) > 1 and not (kept[-1].has_block or kept[-2].has_block):
                # The one before the last can only come back at the end of a block that has begun.
                kept = [*kept[:-2], kept[-1]]
            _set([*kept, self._made])

    def __enter__(self) -> use_backend:
        if self._made.has_block:
            self._made = _Setting(self._made.name)
        self._made.has_block = True
        with _alone():
            # What was set between the call and the block comes back after it.
            _set([*(each for each in _settings if each is not self._made), self._made])
        self._blocks.append(self._made)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        block = self._blocks.pop()
        with _alone():
            place = _settings.index(block)
            _set([*_settings[:place], *(each for each in _settings[place + 1 :] if each.has_block)])


def get_backend() -> str | None:
    """The forced backend, or None where each op chooses.

    Raises:
        ValueError: ATTNZOO_BACKEND names no backend.
    """
    return _checked_backend(_forced, ENVIRONMENT_VARIABLE)


def is_left_alone() -> bool:
    """Whether no backend is forced and nobody observes: then a layer may compute an op of its own in another layout."""
    return get_backend() is None and _observer.get() is None


@contextmanager
def observe_ops(observer: Observer) -> Iterator[None]:
    """Shows every call of an op to ``observer``, in this thread and as long as the context is open.

    Args:
        observer: called in place of the op as ``observer(name, arguments, run)``: the public function's name, its
            checked arguments with every default filled in, and a function that computes the op. What it returns is
            what the caller of the op gets.
    """
    token = _observer.set(observer)
    try:
        yield
    finally:
        _observer.reset(token)


def explain(op: Callable[..., torch.Tensor], *args: Any, **kwargs: Any) -> Explanation:
    """Says which implementation ``op(*args, **kwargs)`` would run and why the others do not; runs nothing.

    Args:
        op: a public function of ``attnzoo.kernels``.

    Raises:
        TypeError: ``op`` is not such a function, or raises one for these arguments.
        ValueError: what ``op`` raises for these arguments, or a bad ATTNZOO_BACKEND.
    """
    entry = _ops.get(getattr(op, "__name__", ""))
    if entry is None or getattr(op, "__module__", None) != entry.module:
        raise TypeError(f"explain takes one of {', '.join(sorted(_ops))}, not {op!r}")
    call = inspect.signature(entry.prepare).bind(*args, **kwargs)
    prepared = entry.prepare(*call.args, **call.kwargs)
    refused = {backend: reason for backend in BACKENDS if (reason := entry.why_not(backend, prepared)) is not None}
    able = [backend for backend in BACKENDS if backend not in refused]
    forced = get_backend()
    if forced is not None:
        chosen = forced if forced in able else None
        rest = f"{forced} is forced"
    else:
        chosen = able[0]
        rest = f"can run; {chosen} comes first"
    reasons = {backend: refused.get(backend, rest) for backend in BACKENDS if backend != chosen}
    return Explanation(entry.name, chosen, reasons)
