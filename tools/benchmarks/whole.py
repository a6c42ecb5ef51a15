"""Whether a report has what is read from it: such files are edited, cut and mixed up."""

from collections.abc import Iterator, Mapping
from typing import Any

Kinds = tuple[type, ...]

_NUMBER: Kinds = (int, float)
_SETTING: dict[str, Kinds] = {
    **dict.fromkeys(("device", "timer", "python", "torch", "date", "dtype"), (str,)),
    "threads": (int,),
    "backward": (bool,),
    "compile": (bool,),
    "load": (*_NUMBER, type(None)),
}
_SIDE: dict[str, Kinds] = {"form": (str,), "seconds": _NUMBER, "peak_bytes": _NUMBER}
# What the tables of models need that pictures of them do not.
_TABLE_ROW: dict[str, Kinds] = {"parameters": _NUMBER}
_TABLE_SIDE: dict[str, Kinds] = {"images_per_second": _NUMBER, "error": (*_NUMBER, type(None))}
_FAILED: dict[str, Kinds] = {"model": (str,), "form": (str,), "reason": (str,)}
_POSITIVE = ("seconds", "batch", "threads")


def lacking(report: dict[str, Any], tables: bool = False) -> str | None:
    """The first thing that is missing or of another kind, as ``rows[3].sides[0].seconds``; None in a whole report.

    Args:
        report: of any subject.
        tables: whether tables of models are to be written of it, too.
    """
    return next(_lacking(report, tables), None)


def _lacking(report: dict[str, Any], tables: bool) -> Iterator[str]:
    row_kinds = {"batch": (int,), **({"model": (str,)} if report["subject"] == "models" else {})}
    row_kinds |= _TABLE_ROW if tables else {}
    side_kinds = {**_SIDE, **(_TABLE_SIDE if tables else {})}
    yield from _wrong(report.get("setting"), "setting", _SETTING)
    for where, row in _each(report.get("rows"), "rows"):
        yield from _wrong(row, where, row_kinds)
        size = row.get("img_size", [1, 1])
        if not (isinstance(size, list) and len(size) == 2 and all(type(side) is int and side > 0 for side in size)):
            yield f"{where}.img_size"
        for inner, side in _each(row.get("sides"), f"{where}.sides"):
            yield from _wrong(side, inner, side_kinds)
    for where, row in _each(report.get("failed", []), "failed"):
        yield from _wrong(row, where, _FAILED)


def _each(values: Any, where: str) -> Iterator[tuple[str, Any]]:
    """What a list holds, each with its place; nothing else is read once a fault is found."""
    if not isinstance(values, list):
        yield where, None
        return
    yield from ((f"{where}[{place}]", value) for place, value in enumerate(values))


def _wrong(part: Any, where: str, kinds: Mapping[str, Kinds]) -> Iterator[str]:
    if not isinstance(part, dict):
        yield where
        return
    for name, allowed in kinds.items():
        value = part.get(name, ...)
        # True is an int to Python.
        fits = isinstance(value, allowed) and (not isinstance(value, bool) or bool in allowed)
        if not fits or (name in _POSITIVE and not value > 0):
            yield f"{where}.{name}"
