"""Fifty threads at once: what they share (tables, masks, the manifest) mixes nothing up."""

import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor

import pytest
import timm
import torch
from fuzz_families import NAMES, TINY
from torch import Tensor

from attnzoo import kernels
from attnzoo.kernels import (
    _dynamic_conv_rows,
    _dynamic_conv_tiles,
    _neighborhood_bands,
    _neighborhood_plan,
    _neighborhood_slabs,
    _neighborhood_tiles,
    _tiles,
)

THREADS = 50
SIZES = [(17 + 7 * (i % 10), 20 + 11 * (i % 7)) for i in range(THREADS)]
CACHES = (
    _tiles.tile_plan,
    _neighborhood_tiles._device_table,
    _neighborhood_bands._band_offsets,
    _neighborhood_bands.cut_bands,
    _neighborhood_plan.cut_columns,
    _neighborhood_plan.cut_rows,
    _neighborhood_slabs._joint,
    _dynamic_conv_rows.window_runs,
    _dynamic_conv_tiles._axis,
    _dynamic_conv_tiles._device_table,
)


def _forget() -> None:
    for cache in CACHES:
        cache.cache_clear()


def _all_at_once(call: Callable[[int], Tensor]) -> list[Tensor]:
    """``call(0)``, ``call(1)``, … by one thread each, which begin together with empty caches."""
    _forget()
    together = threading.Barrier(THREADS)

    def run(i: int) -> Tensor:
        together.wait()
        return call(i)

    with ThreadPoolExecutor(THREADS) as pool:
        return list(pool.map(run, range(THREADS)))


@pytest.mark.parametrize("family", sorted(TINY))
def test_a_model_in_fifty_threads(family: str) -> None:
    torch.manual_seed(0)
    model = timm.create_model(NAMES[family][0], **TINY[family], num_classes=5).eval()
    if model.min_img_size > 17:
        images = [torch.randn(1, 3, max(h, 32), max(w, 32)) for h, w in SIZES]
    else:
        images = [torch.randn(1, 3, *size) for size in SIZES]

    def logits(i: int) -> Tensor:
        with torch.no_grad():  # the setting is each thread's own
            return model(images[i])

    _forget()
    wanted = [logits(i) for i in range(THREADS)]
    for found, one in zip(_all_at_once(logits), wanted, strict=True):
        assert torch.equal(found, one)


def test_an_op_in_fifty_threads_and_many_sizes() -> None:
    """More problems than the tables' caches hold, so that entries are dropped while others are read."""
    torch.manual_seed(0)
    x = torch.randn(1, 40, 40, 1, 2)

    def attend(i: int) -> Tensor:
        parts = [x[:, : 12 + (i * 7 + n) % 28, : 12 + (i + 5 * n) % 28] for n in range(8)]
        return torch.cat([kernels.neighborhood_attention(p, p, p, 3, 1 + i % 3).flatten() for p in parts])

    wanted = [attend(i) for i in range(THREADS)]
    for found, one in zip(_all_at_once(attend), wanted, strict=True):
        assert torch.equal(found, one)


def test_what_one_thread_observes_is_its_own() -> None:
    q = torch.randn(1, 4, 1, 2)
    seen: dict[int, list[str]] = {i: [] for i in range(THREADS)}

    def attend(i: int) -> Tensor:
        def note(name: str, prepared: tuple, run: Callable[[], Tensor]) -> Tensor:
            seen[i].append(name)
            return run()

        if i % 2:
            return kernels.strip_attention(q, q, q)
        with kernels.observe_ops(note):
            return kernels.strip_attention(q, q, q)

    _all_at_once(attend)
    assert all(seen[i] == ([] if i % 2 else ["strip_attention"]) for i in seen)
