"""Argument checks that the ops share: each error names the argument and its value."""

from __future__ import annotations

import reprlib
import sys
from collections.abc import Iterable, Sequence
from typing import Any

import torch
from torch.autograd import forward_ad

_DTYPES = (torch.float16, torch.bfloat16, torch.float32, torch.float64)
_repr = reprlib.Repr()
_repr.maxtuple = _repr.maxlist = 8
_repr.maxstring = _repr.maxother = 80


def check_qkv(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, ranks: Sequence[int], layout: str) -> None:
    """Checks that q, k, v are floating-point tensors of one dtype and device, equal but for v's last axis.

    Raises:
        TypeError: not a tensor, not floating point, or different dtypes.
        ValueError: wrong rank, shapes that do not match, an empty head axis, or different devices.
    """
    check_alike(q, k, v, ranks, layout)
    if k.shape != q.shape:
        raise ValueError(f"k must have q's shape {tuple(q.shape)}, got {tuple(k.shape)}")
    if v.shape[:-1] != q.shape[:-1]:
        raise ValueError(f"v must have q's shape {tuple(q.shape)} but for the last axis, got {tuple(v.shape)}")
    if q.shape[-1] == 0 or q.shape[-2] == 0:
        raise ValueError(f"q needs at least one head and one channel, got shape {tuple(q.shape)}")


def check_alike(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, ranks: Sequence[int], layout: str) -> None:
    """Checks that q, k, v are floating-point tensors of one dtype and device and of ``ranks`` axes; not their sizes.

    Raises:
        TypeError: not a tensor, not floating point, or different dtypes.
        ValueError: wrong rank, or different devices.
    """
    for name, x in (("q", q), ("k", k), ("v", v)):
        check_tensor(name, x)
        if x.ndim not in ranks:
            raise ValueError(f"{name} must be {layout}, got shape {tuple(x.shape)}")
        if x.dtype != q.dtype:
            raise TypeError(f"{name} has dtype {x.dtype} but q has {q.dtype}")
        check_device(name, x, "q", q)


def check_tensor(name: str, x: torch.Tensor) -> None:
    """Checks that ``x`` is a tensor of a dtype that the ops compute in.

    Raises:
        TypeError: it is not.
    """
    if not isinstance(x, torch.Tensor):
        raise TypeError(f"{name} must be a tensor, got {type(x).__name__}")
    check_dtype(name, x)


def check_device(name: str, x: torch.Tensor, other_name: str, other: torch.Tensor) -> None:
    """Raises ValueError where ``x`` is on another device than ``other``."""
    if x.device != other.device:
        raise ValueError(f"{name} is on {x.device} but {other_name} is on {other.device}")


def check_dtype(name: str, x: torch.Tensor) -> None:
    """Checks that ``x`` has a dtype that the ops compute in.

    Raises:
        TypeError: not floating point, or of 8 bits or fewer.
    """
    if not x.is_floating_point():
        raise TypeError(f"{name} must be floating point, got {x.dtype}")
    if x.dtype not in _DTYPES:
        raise TypeError(f"{name} must be {', '.join(map(str, _DTYPES[:-1]))} or {_DTYPES[-1]}, got {x.dtype}")


def per_axis(name: str, value: int | Sequence[int], axes: int) -> tuple[int, ...]:
    """``value`` as one int per axis.

    Raises:
        TypeError: not an int nor a sequence of ints.
        ValueError: a sequence of another length.
    """
    values = tuple(value) if isinstance(value, (tuple, list)) else (value,) * axes
    if any(isinstance(n, bool) or not isinstance(n, (int, torch.SymInt)) for n in values):
        raise TypeError(f"{name} must be an int or one int per axis, got {shown(value)}")
    if len(values) != axes:
        raise ValueError(f"{name} must be one int or {axes} of them, got {shown(value)}")
    return values


def checked_scale(scale: float | None, default: float) -> float:
    """``scale``, or ``default`` where it is None.

    Raises:
        TypeError: not a number.
        ValueError: not finite.
    """
    return default if scale is None else checked_number("scale", scale, kind="a number or None")


def checked_number(name: str, value: float, least: float = -sys.float_info.max, kind: str = "a number") -> float:
    """``value``, which is to be of a ``kind``, as a finite float.

    Raises:
        TypeError: not a number.
        ValueError: below ``least``, or not finite.
    """
    if isinstance(value, bool) or not isinstance(value, (int, float, torch.SymFloat)):
        raise TypeError(f"{name} must be {kind}, got {shown(value)}")
    if not least <= value <= sys.float_info.max:
        wanted = f"finite and at least {least:g}" if least > -sys.float_info.max else "finite"
        raise ValueError(f"{name} must be {wanted}, got {shown(value)}")
    return float(value)


def check_switch(name: str, value: bool) -> None:
    """Checks that ``value`` is a bool.

    Raises:
        TypeError: anything else, which Python would take for one or the other.
    """
    if not isinstance(value, bool):
        raise TypeError(f"{name} must be True or False, got {shown(value)}")


def shown(value: Any) -> str:
    """A value as an error names it: in one short line, whatever it is."""
    if isinstance(value, torch.Tensor):
        return f"a tensor of shape {tuple(value.shape)}"
    return " ".join(_repr.repr(value).split())


def compute_dtype(dtype: torch.dtype) -> torch.dtype:
    """The dtype of scores and softmax: float32, or float64 for float64 inputs."""
    return torch.float64 if dtype == torch.float64 else torch.float32


def mask_dtype(q: torch.Tensor) -> torch.dtype:
    """The dtype of what PyTorch's fused attention adds to the scores of ``q``.

    On a CPU it takes float32 beside queries of 16 bits. On a GPU one of its kernels refuses that, and cuDNN's reads the
    mask as if it had 16 bits (pytorch/pytorch, pull request 191612).
    """
    return compute_dtype(q.dtype) if q.device.type in ("cpu", "meta") else q.dtype


def is_traced(x: torch.Tensor) -> bool:
    """Whether a program is being recorded from ``x`` (torch.compile, torch.export, torch.jit.trace, fake tensors):
    nothing that depends on it may be cached, and its batch may stand for any."""
    recorded = torch.compiler.is_compiling() or torch.jit.is_tracing()
    return recorded or type(x) not in (torch.Tensor, torch.nn.Parameter)


def may_overwrite(x: torch.Tensor) -> bool:
    """Whether results computed from ``x`` may be overwritten: eager code without gradients."""
    return not torch.is_grad_enabled() and not is_traced(x) and not is_transformed()


@torch.compiler.assume_constant_result
def is_transformed() -> bool:
    """Whether PyTorch computes something else beside, by ``torch.func`` or forward-mode differentiation: few of its
    operators that write into a given tensor take part in that."""
    return torch._C._functorch.peek_interpreter_stack() is not None or forward_ad._current_level >= 0


def needs_gradient(args: Iterable[Any]) -> bool:
    """Whether PyTorch records what is computed from ``args``, some of which may be pairs, for a gradient."""
    if not torch.is_grad_enabled():
        return False
    for x in args:
        for each in x if isinstance(x, (tuple, list)) else (x,):
            if isinstance(each, torch.Tensor) and each.requires_grad:
                return True
    return False
