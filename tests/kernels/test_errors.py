"""Whatever an op is given, its error is one short line that names the argument."""

import math

import pytest
import torch

from attnzoo.kernels import (
    agent_attention,
    bi_level_routing_attention,
    dynamic_depthwise_conv,
    flow_attention,
    grouped_query_attention,
    large_kernel_attention,
    linear_attention,
    magnitude_aware_linear_attention,
    neighborhood_attention,
    sparse_attention,
)

MAP = torch.randn(1, 4, 4, 2, 4)
TOKENS = torch.randn(1, 6, 2, 4)
MAPS, ROWS = [MAP] * 3, [TOKENS] * 3
WEIGHTS = [torch.randn(1, 3, 4, 4), torch.randn(3, 1, 3, 3), torch.randn(3, 1, 3, 3), torch.randn(3, 3, 1, 1)]
MASK = torch.ones(1, 2, 6, 6, dtype=torch.bool)
# Op, tensors that fit it, and by which argument it is given one number or one for each axis.
CALLS = [
    (neighborhood_attention, MAPS, {"kernel_size": 3}, ["kernel_size", "dilation", "scale"]),
    (bi_level_routing_attention, MAPS, {"num_regions": 2, "topk": 1}, ["num_regions", "topk", "scale"]),
    (dynamic_depthwise_conv, [MAP, torch.randn(1, 4, 4, 2, 9)], {"kernel_size": 3}, ["kernel_size"]),
    (large_kernel_attention, WEIGHTS, {}, ["dilation"]),
    (linear_attention, ROWS, {}, ["eps"]),
    (magnitude_aware_linear_attention, ROWS, {}, ["eps", "scale"]),
    (flow_attention, ROWS, {}, ["eps", "outer_eps"]),
    (agent_attention, [*ROWS, TOKENS], {}, ["scale"]),
    (sparse_attention, ROWS, {"mask": MASK}, ["scale"]),
    (grouped_query_attention, ROWS, {}, ["scale"]),
]
NUMBERS = [(op, tensors, options, name) for op, tensors, options, names in CALLS for name in names]
BAD = [torch.randn(40, 40), list(range(5000)), "x" * 5000, object(), math.nan, math.inf, -(10**400)]


@pytest.mark.parametrize("bad", BAD, ids=["tensor", "list", "text", "object", "nan", "infinity", "huge"])
@pytest.mark.parametrize(
    ("op", "tensors", "options", "name"), NUMBERS, ids=[f"{op.__name__}-{name}" for op, *_, name in NUMBERS]
)
def test_bad_numbers(op, tensors, options, name, bad):
    op(*tensors, **options)
    with pytest.raises((TypeError, ValueError), match=f"^{name} ") as raised:
        op(*tensors, **options | {name: bad})
    message = str(raised.value)
    assert "\n" not in message and len(message) < 200


@pytest.mark.parametrize("bad", [1, "no", torch.ones(2)], ids=["int", "text", "tensor"])
def test_bad_switches(bad):
    with pytest.raises(TypeError, match="^causal must be True or False, got"):
        flow_attention(*ROWS, causal=bad)
    with pytest.raises(TypeError, match="^softmax must be True or False, got"):
        dynamic_depthwise_conv(MAP, torch.randn(1, 4, 4, 2, 9), softmax=bad)


@pytest.mark.parametrize(
    ("op", "tensors", "options"), [call[:3] for call in CALLS], ids=[call[0].__name__ for call in CALLS]
)
def test_floats_of_eight_bits(op, tensors, options):
    with pytest.raises(TypeError, match="must be torch.float16, torch.bfloat16, .*got torch.float8_e4m3fn"):
        op(*(x.to(torch.float8_e4m3fn) for x in tensors), **options)
