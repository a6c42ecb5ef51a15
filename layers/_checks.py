"""Checks of arguments that many layers take."""

from numbers import Integral


def check_heads(dim: int, num_heads: int) -> None:
    """Checks that ``num_heads`` is at least 1 and divides ``dim``.

    Raises:
        TypeError: one of them is no int.
        ValueError: it does not, or ``dim`` is below 1.
    """
    _check_int("dim", dim)
    _check_int("num_heads", num_heads)
    if dim < 1:
        raise ValueError(f"dim={dim} is below 1")
    if num_heads < 1 or dim % num_heads:
        raise ValueError(f"num_heads={num_heads} does not divide dim={dim}")


def check_odd(name: str, size: int) -> None:
    """Checks that the size of a convolution or window is odd and positive.

    Raises:
        TypeError: no int.
        ValueError: an even one, or below 1.
    """
    _check_int(name, size)
    if size < 1:
        raise ValueError(f"{name}={size} is below 1")
    if size % 2 == 0:
        raise ValueError(f"{name}={size} is not odd")


def _check_int(name: str, value: int) -> None:
    if isinstance(value, bool) or not isinstance(value, Integral):
        raise TypeError(f"{name}={value!r} is not an int")
