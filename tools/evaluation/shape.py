"""Whether parsed JSON is what it should be, where somebody may have edited or cut the file."""

from typing import Any

_DEPTH = 50
_NAMES = {dict: "object", list: "list", str: "text", int: "whole number", float: "number", type(None): "null"}


def misfit(value: Any, shape: Any) -> str | None:
    """What is wrong with a value, or None.

    Args:
        value: Of ``json.loads``.
        shape: A type (``int`` is a whole number of at least 0); ``[shape]``, a list of such; ``{str: shape}``, an
            object of such; ``{"name": shape, ...}``, an object with at least these keys; or a tuple of alternatives.
    """
    return "it is nested too deeply" if _deeper(value, _DEPTH) else _misfit(value, shape, "")


def _deeper(value: Any, levels: int) -> bool:
    items = value.values() if isinstance(value, dict) else value if isinstance(value, list) else ()
    return levels == 0 or any(_deeper(item, levels - 1) for item in items)


def _misfit(value: Any, shape: Any, where: str) -> str | None:
    options = shape if isinstance(shape, tuple) else (shape,)
    # By type(): True is no whole number.
    shape = next((option for option in options if type(value) is _type(option)), None)
    if shape is None or (shape is int and value < 0):
        return f"{where or 'it'} is no {' or '.join(_NAMES[_type(option)] for option in options)}"
    if isinstance(shape, list):
        return _first(_misfit(item, shape[0], f"{where}[{place}]") for place, item in enumerate(value))
    if not isinstance(shape, dict):
        return None
    prefix = f"{where}." if where else ""
    if str in shape:
        return _first(_misfit(item, shape[str], f"{prefix}{name}") for name, item in value.items())
    missing = next((name for name in shape if name not in value), None)
    if missing is not None:
        return f"{prefix}{missing} is missing"
    return _first(_misfit(value[name], inner, f"{prefix}{name}") for name, inner in shape.items())


def _first(problems: Any) -> str | None:
    return next((problem for problem in problems if problem), None)


def _type(shape: Any) -> type:
    return type(shape) if isinstance(shape, (dict, list)) else shape
