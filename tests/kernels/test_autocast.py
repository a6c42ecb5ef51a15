"""What autocast leaves alone: the dtype of an op's result is its first argument's."""

import pytest
import torch
from op_cases import CASES
from parity import relative_error

from attnzoo import kernels, layers

# Sizes at which the implementations take other ways than in CASES.
LARGER = {
    "neighborhood, tiles": ("neighborhood", [(1, 28, 28, 2, 8)] * 3, {}),
    "large kernel, in place": ("large kernel", [(1, 8, 20, 20), (8, 1, 5, 5), (8, 1, 7, 7), (8, 8, 1, 1)], {}),
    "strip, fused": ("strip", [(2, 30, 1, 4), (2, 300, 1, 4), (2, 300, 1, 8)], {}),
}


def case(name):
    op, tensors, rest = CASES[LARGER[name][0] if name in LARGER else name]
    # Rounded descriptors may choose other regions.
    rest = rest | {"topk": 16} if "topk" in rest else rest
    tensors = [torch.randn(shape) for shape in LARGER[name][1]] if name in LARGER else tensors()
    return op, tensors, rest


@pytest.mark.parametrize("lower", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("grad", [True, False])
@pytest.mark.parametrize("name", [*CASES, *LARGER])
def test_results_keep_their_dtype(name, grad, lower):
    op, tensors, rest = case(name)
    for dtype in (torch.float32, torch.bfloat16):
        tensors = [x.to(dtype).requires_grad_(grad) for x in tensors]
        with torch.set_grad_enabled(grad), torch.autocast("cpu", lower):
            found = op(*tensors, **rest)
        assert found.dtype == dtype
        expected = op(*(x.detach().double() for x in tensors), **rest)
        assert relative_error(found.detach().double(), expected) < 0.03


@pytest.mark.parametrize("grad", [True, False])
@pytest.mark.parametrize("backend", ["reference", "torch"])
def test_regions_are_chosen_as_without(backend, grad):
    torch.manual_seed(0)
    q, k, v = (torch.randn(3, 28, 28, 2, 8) for _ in range(3))
    with torch.set_grad_enabled(grad), kernels.use_backend(backend):
        expected = kernels.bi_level_routing_attention(q, k, v, 7, 4)
        with torch.autocast("cpu", torch.bfloat16):
            found = kernels.bi_level_routing_attention(q, k, v, 7, 4)
    assert relative_error(found, expected) < 0.03


def test_layer_without_a_gradient():
    layer, x = layers.LargeKernelAttention(8).eval(), torch.randn(2, 8, 28, 28)
    with torch.no_grad():
        expected = layer(x)
        with torch.autocast("cpu", torch.bfloat16):
            assert relative_error(layer(x).float(), expected) < 0.03


def test_agents_biases_are_not_rounded():
    q, k, v, agent = (torch.randn(2, 64, 2, 16).bfloat16() for _ in range(4))
    biases = {"agent_bias": 30 * torch.randn(1, 2, 16, 64), "query_bias": 30 * torch.randn(1, 2, 64, 16)}
    tensors = [q, k, v, agent[:, :16]]
    expected = kernels.agent_attention(*(x.double() for x in tensors), **biases)
    for learned in (False, True):
        given = {name: bias.clone().requires_grad_(learned) for name, bias in biases.items()}
        assert relative_error(kernels.agent_attention(*tensors, **given).double(), expected) < 4e-3
