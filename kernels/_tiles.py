"""How neighborhood attention is cut into tiles: which queries and keys meet, as index tables.

Along an axis a tile is T query positions of one dilation group with the S key positions that hold all their windows.
The last tile of a group is moved back to its end; a group with fewer members than a tile repeats its last member.
Tiles whose windows lie alike relative to their keys form a class and share one mask.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
import torch

# Queries per tile along the last axis and in all, and the axis that is taken whole; measured on AVX-512 CPUs, where
# they matter little to within 20 %. A long tile wastes scores on keys outside windows, a short one copies more keys.
# A group of up to WHOLE squared is one tile: so few scores cost less than many small products.
_TILE = 7
_TILE_1D = 32
_TILE_QUERIES = 28
WHOLE = 14


@dataclass(frozen=True)
class _AxisTiles:
    queries: np.ndarray  # [tiles, T] positions
    keys: np.ndarray  # [tiles, S] positions
    classes: np.ndarray  # [tiles]
    offsets: np.ndarray  # [classes, T, S] index into the bias axis; 2 * K - 1 outside the window


@dataclass(frozen=True)
class TilePlan:
    """Tiles of a map, those of one class next to each other; positions are row-major over the map.

    Attributes:
        queries: ``[tiles, queries of a tile]`` positions.
        keys: ``[tiles, keys of a tile]`` positions.
        tile: ``[positions]``, the tile that computes each position.
        slot: ``[positions]``, its place in that tile.
        offsets: ``[classes, queries of a tile, keys of a tile]`` indices into a head's bias, flattened, whose axes have
            2 * K entries; outside the window the last of an axis.
        counts: tiles in each class; classes are row-major over the axes' classes.
    """

    queries: np.ndarray
    keys: np.ndarray
    tile: np.ndarray
    slot: np.ndarray
    offsets: np.ndarray
    counts: tuple[int, ...]


@lru_cache(maxsize=256)
def tile_plan(space: tuple[int, ...], kernel: tuple[int, ...], dilation: tuple[int, ...]) -> TilePlan:
    """The tiles of neighborhood attention over a map of size ``space``."""
    sizes = _tile_sizes([-(-n // step) for n, step in zip(space, dilation, strict=True)])
    axes = [_axis_tiles(*axis) for axis in zip(space, kernel, dilation, sizes, strict=True)]
    grids = np.meshgrid(*(np.arange(len(axis.classes)) for axis in axes), indexing="ij")
    chosen = [grid.ravel() for grid in grids]
    class_counts = tuple(len(axis.offsets) for axis in axes)
    classes = np.ravel_multi_index([axis.classes[i] for axis, i in zip(axes, chosen, strict=True)], class_counts)
    order = np.argsort(classes, kind="stable")
    chosen = [i[order] for i in chosen]
    queries = _flatten([axis.queries[i] for axis, i in zip(axes, chosen, strict=True)], space)
    keys = _flatten([axis.keys[i] for axis, i in zip(axes, chosen, strict=True)], space)
    place = np.empty(np.prod(space), dtype=np.int64)
    place[queries.ravel()] = np.arange(queries.size)
    tile, slot = np.divmod(place, queries.shape[1])
    counts = np.bincount(classes, minlength=int(np.prod(class_counts)))
    offsets = joint_offsets([axis.offsets for axis in axes], [2 * n for n in kernel])
    return TilePlan(queries, keys, tile, slot, offsets, tuple(counts.tolist()))


def _tile_sizes(members: list[int]) -> list[int]:
    """Queries per tile along each axis, from the longest group of each."""
    if len(members) == 1:
        return [min(members[0], _TILE_1D)]
    if math.prod(members) <= WHOLE**2:
        return members
    last = members[-1] if members[-1] <= WHOLE else _TILE
    sizes, room = [last], max(1, _TILE_QUERIES // last)
    for n in reversed(members[:-1]):
        size = n if n <= _TILE else min(n, max(room, 2))
        sizes.insert(0, size)
        room = max(1, room // size)
    return sizes


def _axis_tiles(length: int, kernel: int, dilation: int, size: int) -> _AxisTiles:
    longest = -(-length // dilation)
    reach = min(size + kernel - 1, longest)
    queries, keys, offsets = [], [], []
    for group in range(dilation):
        members = -(-(length - group) // dilation)
        for first in range(0, members, size):
            first = max(0, min(first, members - size))
            place = np.minimum(first + np.arange(size), members - 1)
            key = np.clip(first - kernel // 2, 0, max(0, members - reach)) + np.arange(reach)
            start = np.clip(place - kernel // 2, 0, members - kernel)[:, None]
            # members - kernel bounds start, so a key past the group's end is in no window.
            inside = (key >= start) & (key < start + kernel)
            queries.append(group + place * dilation)
            keys.append(group + np.minimum(key, members - 1) * dilation)
            offsets.append(np.where(inside, key - place[:, None] + kernel - 1, 2 * kernel - 1))
    table, classes = np.unique(np.stack(offsets), axis=0, return_inverse=True)
    return _AxisTiles(np.stack(queries), np.stack(keys), classes.ravel(), table)


def _flatten(positions: list[np.ndarray], space: tuple[int, ...]) -> np.ndarray:
    """``[tiles, n]`` per axis → ``[tiles, product of n]`` row-major positions in the map."""
    flat = positions[0]
    for position, size in itertools.islice(zip(positions, space, strict=True), 1, None):
        flat = (flat[:, :, None] * size + position[:, None, :]).reshape(len(flat), -1)
    return flat


def joint_offsets(offsets: Sequence[np.ndarray], sizes: Sequence[int]) -> np.ndarray:
    """Indices ``[classes, T, S]`` into each axis of a table of ``sizes`` → into the table, flattened.

    Classes, queries and keys are row-major over the axes.
    """
    joint = offsets[0]
    for each, size in itertools.islice(zip(offsets, sizes, strict=True), 1, None):
        joint = joint[:, None, :, None, :, None] * size + each[None, :, None, :, None, :]
        joint = joint.reshape([a * b for a, b in zip(joint.shape[::2], joint.shape[1::2], strict=True)])
    return joint


def spread_bias(table: torch.Tensor, offsets: torch.Tensor) -> torch.Tensor:
    """A bias, and what is to be outside windows, for every query and key of a tile.

    Args:
        table: ``[heads, *(2 * K)]``, what is outside windows last along each axis.
        offsets: ``[classes, queries of a tile, keys of a tile]`` indices into a head's table.

    Returns:
        ``[classes, heads, queries of a tile, keys of a tile]``.
    """
    return table.flatten(1).index_select(1, offsets.flatten()).unflatten(1, offsets.shape).transpose(0, 1)
