"""Stand-ins for the few classes that training checkpoints hold beside tensors: their values without their code."""

import re
from collections import OrderedDict
from typing import Any

import numpy as np

_PLAIN = re.compile(r"[biufcSU]\d+")
_LONGEST = 1 << 16  # characters of one string in a NumPy value


class _Mapping:
    """An ``argparse.Namespace`` or ``CfgNode`` as a plain dictionary."""

    def __new__(cls, *args: object) -> OrderedDict:  # type: ignore[misc]
        # The restricted unpickler fills and builds only exact dict types, so the stand-in is one.
        return OrderedDict()


class _DType:
    """A NumPy dtype of plain values."""

    def __init__(self, text: str, *args: object) -> None:
        if not isinstance(text, str) or not _PLAIN.fullmatch(text) or int(text[1:]) > _LONGEST:
            raise ValueError(f"Unsupported class numpy.dtype.{text}")
        self.dtype = np.dtype(text)

    def __setstate__(self, state: tuple) -> None:
        if state[1] in ("<", ">"):
            self.dtype = self.dtype.newbyteorder(state[1])


class _Array:
    """A NumPy array, filled from its bytes."""

    value = np.empty(0)

    def __setstate__(self, state: tuple) -> None:
        _, shape, kind, by_columns, data = state
        flat = np.frombuffer(_bytes(data), _dtype(kind))
        self.value = flat.reshape(shape, order="F" if by_columns else "C").copy()


class _History:
    """MMEngine's ``HistoryBuffer``: a log of values and counts, without the functions that it is saved with."""

    value: Any = None

    def __setstate__(self, state: dict[str, Any]) -> None:
        fields = ("_log_history", "_count_history", "max_length")
        self.value = {name.lstrip("_"): state[name] for name in fields}


def _array(*args: object) -> _Array:
    return _Array()


def _scalar(kind: object, data: object) -> Any:
    return np.frombuffer(_bytes(data), _dtype(kind), count=1)[0].item()


def _nothing(*args: object) -> None:
    """In place of ``getattr``, which MMEngine's histories fetch their functions with."""


def _empty(*args: object) -> bytes:
    """``bytes()``, as an array without values is saved."""
    if args:
        raise ValueError("Unsupported class builtins.bytes")
    return b""


def _dtype(kind: object) -> np.dtype:
    if not isinstance(kind, _DType):
        raise ValueError("Unsupported class numpy.dtype")
    return kind.dtype


def _bytes(data: object) -> bytes:
    if not isinstance(data, bytes):
        raise ValueError("Unsupported class numpy.object_")
    return data


# By exact name. Namespace: BiFormer, MALA, L2ViT, Flowformer and VAN; CfgNode: Agent-Attention; NumPy values: the best
# score in mmcv's and MMEngine's files; histories: MMEngine's.
STAND_INS: dict[str, Any] = {
    "argparse.Namespace": _Mapping,
    "yacs.config.CfgNode": _Mapping,
    "numpy.dtype": _DType,
    "numpy.ndarray": _Array,
    "mmengine.logging.history_buffer.HistoryBuffer": _History,
    "builtins.getattr": _nothing,
    "builtins.bytes": _empty,
}
for _module in ("numpy.core.multiarray", "numpy._core.multiarray"):
    STAND_INS |= {f"{_module}._reconstruct": _array, f"{_module}.scalar": _scalar}


def settle(tree: object) -> object:
    """Put plain values where stand-ins are, at any depth; dictionaries and lists are changed in place."""
    root = [tree]
    todo, seen = [root], set()
    while todo:
        node: Any = todo.pop()
        if id(node) in seen:
            continue
        seen.add(id(node))
        for key, value in list(node.items() if isinstance(node, dict) else enumerate(node)):
            plain = _plain(value)
            if plain is not value:
                node[key] = plain
            if isinstance(plain, (dict, list)):
                todo.append(plain)
    return root[0]


def _plain(value: object) -> object:
    if isinstance(value, (_Array, _History)):
        return value.value
    if type(value) is tuple and any(isinstance(each, (_Array, _History)) for each in value):
        return tuple(_plain(each) for each in value)
    return value
