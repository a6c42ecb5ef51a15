"""Memory of the ops' forms on a CPU: one block beside the result."""

import pytest
import torch
from torch.profiler import ProfilerActivity, profile

from attnzoo.kernels import _chunks, flow_attention, neighborhood_attention


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_one_block(dtype):
    sizes = (5, 0, 64, 3)
    buffers = _chunks.one_block(torch.empty(0, dtype=dtype), *sizes)
    assert [(len(x), x.dtype, x.is_contiguous()) for x in buffers] == [(size, dtype, True) for size in sizes]
    assert len({x.untyped_storage().data_ptr() for x in buffers}) == 1
    for value, x in enumerate(buffers):
        x.fill_(value)
        assert x.data_ptr() % 64 == 0 or not len(x)
    assert all((x == value).all() for value, x in enumerate(buffers))


def draw(*shape):
    return [torch.randn(shape) for _ in "qkv"]


@pytest.mark.parametrize(
    "call",
    [
        lambda: neighborhood_attention(*draw(8, 56, 56, 2, 32), kernel_size=7),
        lambda: neighborhood_attention(*draw(8, 56, 56, 2, 32), kernel_size=7, dilation=8),
        lambda: flow_attention(*draw(2, 512, 8, 64), causal=True),
    ],
    ids=["neighborhood_attention", "dilated", "causal flow_attention"],
)
@torch.no_grad()
def test_large_blocks(call):
    """Queries, keys, values, the result and one block: of more the C library gives some back at every call."""
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as record:
        call()
    sizes = [event.nbytes() for event in record.profiler.kineto_results.events() if event.name() == "[memory]"]
    assert len([size for size in sizes if size >= 2**20]) == 5
