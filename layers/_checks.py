"""Checks of arguments that many layers take."""

from collections.abc import Sequence


def check_heads(dim: int, num_heads: int) -> None:
    """Raises ValueError unless ``num_heads`` is at least 1 and divides ``dim``."""
    if num_heads < 1 or dim % num_heads:
        raise ValueError(f"num_heads={num_heads} does not divide dim={dim}")


def check_odd(name: str, size: int | Sequence[int]) -> None:
    """Raises ValueError unless a convolution's or window's size, one or one per axis, is odd and positive."""
    if any(n < 1 or n % 2 == 0 for n in ((size,) if isinstance(size, int) else size)):
        raise ValueError(f"{name}={size} is not odd")
