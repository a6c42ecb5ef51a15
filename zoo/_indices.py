"""Which stages or blocks the caller means."""

from collections.abc import Sequence
from numbers import Integral


def take_indices(count: int, indices: int | Sequence[int] | None) -> tuple[list[int], int]:
    """The indices from 0 on, and the largest: the last n of ``count`` if an int, all if None, else these.

    As timm's ``feature_take_indices``, which asserts where this explains and lets any order pass.

    Raises:
        ValueError: there are no such stages, none are named, or not each once in rising order.
    """
    if indices is None:
        indices = count
    if isinstance(indices, Integral):
        if not 0 < indices <= count:
            raise ValueError(f"indices (out_indices) is {indices}; the last 1 to {count} can be had")
        return list(range(count - indices, count)), count - 1
    if not len(indices) or any(not -count <= i < count for i in indices):
        raise ValueError(f"indices (out_indices) is {tuple(indices)}; 0 to {count - 1} can be had, at least one")
    take = [i % count for i in indices]
    if take != sorted(set(take)):
        # Maps come as they are computed: any other order would not be the one that was asked for.
        raise ValueError(f"indices (out_indices) is {tuple(indices)}; each once and in rising order is needed")
    return take, max(take)
