"""How two-dimensional neighborhood attention is cut for :mod:`._neighborhood_slabs`: an axis of one dilation group.

Columns are cut into tiles whose keys are copied out, all rows of them: a slab. Rows are cut within it, and the keys of
a tile of rows are some of the slab's rows one after another, which need no copy of their own.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache

import numpy as np

# Positions of a tile, about, measured on AVX-512 processors. A longer tile wastes scores on keys outside windows, a
# shorter one copies more keys, or makes more and smaller products.
_COLUMNS = 6.5
_ROWS = 6
_JOINED_ROWS = 4
# Tiles of rows that one product computes pay for it by scores of zeros: up to so many times the others.
_JOINED_SCORES = 1.4


# Compared by identity: they are made once, and tables are kept by them.
@dataclass(frozen=True, eq=False)
class Windows:
    """Tiles of an axis whose windows lie alike.

    Attributes:
        offsets: ``[tiles or 1, positions, keys of a tile]`` index into the bias axis, 2 * K - 1 outside the window.
    """

    offsets: np.ndarray


@dataclass(frozen=True, eq=False)
class Columns:
    """Tiles of as many columns and keys.

    Attributes:
        size: columns of a tile.
        keys: columns of its keys.
        starts: first column, and first column of the keys, of each tile.
        windows: of one tile, where they lie alike in all of them, or of each.
    """

    size: int
    keys: int
    starts: tuple[tuple[int, int], ...]
    windows: Windows

    @property
    def scores(self) -> int:
        """Columns of keys that columns of queries meet."""
        return len(self.starts) * self.size * self.keys


@dataclass(frozen=True, eq=False)
class Rows:
    """Tiles of rows that one product computes in each slab.

    Attributes:
        first: first row.
        members: how many rows of the map they are.
        size: rows of a tile.
        tiles: how many, those beyond the map's end included.
        first_key: first row of the first tile's keys in the slab.
        keys: rows of keys of a tile; those of the next begin ``size`` rows later.
        runs: first tile, the one after the last, and the windows of tiles in which they lie alike.
    """

    first: int
    members: int
    size: int
    tiles: int
    first_key: int
    keys: int
    runs: tuple[tuple[int, int, Windows], ...]

    @property
    def scores(self) -> int:
        """Rows of keys that rows of queries meet."""
        return self.tiles * self.size * self.keys

    def pairs(self, columns: Columns) -> int:
        """Keys that queries meet in a tile of these rows and some columns."""
        return self.size * self.keys * columns.size * columns.keys


@dataclass(frozen=True, eq=False)
class Slab:
    """The rows of an axis.

    Attributes:
        lead: rows of zeros above the map's.
        height: rows in all; where it is more than the map's, the last keys reach into the next slab's rows of zeros.
        parts: its tiles, by products.
    """

    lead: int
    height: int
    parts: tuple[Rows, ...]

    @property
    def scores(self) -> int:
        """Those of all parts."""
        return sum(part.scores for part in self.parts)


@lru_cache(maxsize=256)
def cut_columns(members: int, kernel: int) -> tuple[Columns, ...]:
    """Tiles of equal size, or of about equal size where none divides the axis, by size and keys."""
    target = max(_COLUMNS, 0.75 * kernel)
    counts = [n for n in range(1, members + 1) if members % n == 0 and target / 2 < members / n < 1.5 * target]
    count = min(counts, key=lambda n: abs(members / n - target), default=max(1, round(members / target)))
    alike: dict[tuple[int, int], list] = {}
    for first, size in _cuts(members, count):
        first_key, offsets = reach(first, size, members, kernel)
        alike.setdefault(offsets.shape, []).append((first, first_key, offsets))
    return tuple(
        Columns(*shape, tuple(tile[:2] for tile in tiles), Windows(_distinct([tile[2] for tile in tiles])))
        for shape, tiles in alike.items()
    )


@lru_cache(maxsize=256)
def cut_rows(members: int, kernel: int) -> Slab:
    """All tiles as one product where that costs little, a product for every tile elsewhere."""
    slab, joined = _split_rows(members, kernel), _join_rows(members, kernel)
    return joined if joined and joined.scores <= _JOINED_SCORES * slab.scores else slab


def _split_rows(members: int, kernel: int) -> Slab:
    """Tiles of about equal size, each of them a product."""
    parts, seen = [], {}
    for first, size in _cuts(members, max(1, round(members / _ROWS))):
        first_key, offsets = reach(first, size, members, kernel)
        windows = seen.setdefault((offsets.shape, offsets.tobytes()), Windows(offsets[None]))
        parts.append(Rows(first, size, size, 1, first_key, offsets.shape[1], ((0, 1, windows),)))
    return Slab(0, members, tuple(parts))


def _join_rows(members: int, kernel: int) -> Slab | None:
    """Tiles of equal size as one product; None where no size divides the axis and is enough for the windows.

    Their keys are as far apart as they are, so that those of the first and last tile reach beyond the map.
    """
    pad = kernel // 2
    sizes = [n for n in range(pad + 1, members // 2 + 1) if members % n == 0]
    if not sizes:
        return None
    size = min(sizes, key=lambda n: abs(n - _JOINED_ROWS))
    tiles, reach = members // size, size + 2 * pad
    # Only the first and the last tile have windows that are pushed inwards, and their keys hold these as well.
    runs = [run for run in ((0, 1), (1, tiles - 1), (tiles - 1, tiles)) if run[0] < run[1]]
    windows = [Windows(_offsets(n * size, size, n * size - pad, reach, members, kernel)[None]) for n, _ in runs]
    stride = -(-(members + pad) // size)
    part = Rows(0, members, size, stride, 0, reach, tuple((*run, w) for run, w in zip(runs, windows, strict=True)))
    return Slab(pad, stride * size, (part,))


def _cuts(members: int, count: int) -> list[tuple[int, int]]:
    """First position and size of tiles whose sizes differ by at most one."""
    edges = [i * members // count for i in range(count + 1)]
    return [(first, stop - first) for first, stop in zip(edges, edges[1:], strict=False)]


def reach(first: int, size: int, members: int, kernel: int) -> tuple[int, np.ndarray]:
    """The first key of some positions' windows, and offsets ``[size, keys]`` to all from there to the last."""
    begin, last = (min(max(p - kernel // 2, 0), members - kernel) for p in (first, first + size - 1))
    return begin, _offsets(first, size, begin, last + kernel - begin, members, kernel)


def _offsets(first: int, size: int, first_key: int, keys: int, members: int, kernel: int) -> np.ndarray:
    query, key = np.arange(first, first + size)[:, None], np.arange(first_key, first_key + keys)
    start = np.clip(query - kernel // 2, 0, members - kernel)
    return np.where((key >= start) & (key < start + kernel), key - query + kernel - 1, 2 * kernel - 1)


def _distinct(offsets: list[np.ndarray]) -> np.ndarray:
    """One of them where they are all alike."""
    alike = all(np.array_equal(offsets[0], other) for other in offsets)
    return np.stack(offsets[:1] if alike else offsets)
