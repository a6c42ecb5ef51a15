"""Bi-level routing's layer: without a gradient it works in the order of regions, with the same result."""

import pytest
import torch
from parity import relative_error

from attnzoo.kernels import observe_ops, use_backend
from attnzoo.kernels._regions import region_order_pays
from attnzoo.layers import BiLevelRoutingAttention

# num_regions, topk, (H, W): one and more chosen, padded, not square, and one that all keys under a mask serve better.
CASES = [(2, 1, (8, 8)), (3, 4, (12, 15)), (3, 2, (10, 13)), (7, 16, (14, 14))]


@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float64, 1e-12), (torch.float32, 1e-6)], ids=str)
@pytest.mark.parametrize(("num_regions", "topk", "size"), CASES, ids=str)
def test_order_of_regions(num_regions, topk, size, dtype, tolerance):
    torch.manual_seed(0)
    layer = BiLevelRoutingAttention(24, 3, num_regions, topk).to(dtype)
    x = torch.randn(3, *size, 24, dtype=dtype)
    with torch.no_grad():
        found = layer(x)
        with use_backend("reference"):
            expected = layer(x)
    assert relative_error(found, expected) < tolerance
    assert found.shape == x.shape and relative_error(layer(x), expected) < tolerance
    with torch.no_grad():
        assert layer(x[:0]).shape == x[:0].shape


def test_who_asks_for_the_op_gets_it():
    torch.manual_seed(0)
    layer, x, seen = BiLevelRoutingAttention(16, 2, 2, 1), torch.randn(1, 8, 8, 16), []

    def observer(name, arguments, run):
        seen.append(name)
        return run()

    with torch.no_grad():
        assert region_order_pays(x, (2, 2), 1)
        with observe_ops(observer):
            assert not region_order_pays(x, (2, 2), 1)
            layer(x)
        with use_backend("torch"):
            assert not region_order_pays(x, (2, 2), 1)
    assert not region_order_pays(x, (2, 2), 1), "its gradient is made of the op's"
    assert seen == ["bi_level_routing_attention"]


def test_the_position_encoding_can_be_watched_and_replaced():
    torch.manual_seed(0)
    layer, x, seen = BiLevelRoutingAttention(16, 2, 2, 1), torch.randn(1, 8, 8, 16), []
    layer.lepe.register_forward_hook(lambda module, args, out: seen.append((out, out.detach().clone())))
    layer.lepe.register_full_backward_hook(lambda *args: None)
    layer(x).sum().backward()
    ((out, as_it_came),) = seen
    assert torch.equal(out, as_it_came)
    layer.lepe = torch.nn.Identity()
    out = layer(x)
    out.sum().backward()
    with torch.no_grad():
        assert relative_error(layer(x), out) < 1e-6


def test_another_default_device():
    torch.manual_seed(0)
    layer, x = BiLevelRoutingAttention(16, 2, 2, 1), torch.randn(1, 8, 8, 16)
    with torch.no_grad():
        expected = layer(x)
        with torch.device("meta"):
            assert torch.equal(layer(x), expected)
