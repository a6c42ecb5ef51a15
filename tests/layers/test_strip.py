"""S2AFormer's layers: what the equations of the paper say of them."""

import pytest
import torch
from parity import relative_error

from attnzoo.layers import HybridPerceptionBlock, LocalInteractionModule, StripSelfAttention


def test_attention_is_its_equation():
    layer, x = StripSelfAttention(12, 2, qk_dim=3, reduction=2).double(), torch.randn(2, 6, 4, 12, dtype=torch.float64)
    reduced = layer.reduce(x)
    assert reduced.shape == (2, 3, 2, 12)
    q, k, v = (
        layer.q(x).reshape(2, 24, 2, 3),
        layer.k(reduced).reshape(2, 6, 2, 3),
        layer.v(reduced).reshape(2, 6, 2, 6),
    )
    weights = (torch.einsum("bnhd,bmhd->bhnm", q, k) / 3**0.5).softmax(-1)
    expected = layer.proj(torch.einsum("bhnm,bmhd->bnhd", weights, v).reshape(2, 6, 4, 12))
    assert relative_error(layer(x), expected) < 1e-12


def test_block_is_its_equations():
    block, x = HybridPerceptionBlock(8, 2, reduction=2).double(), torch.randn(2, 5, 7, 8, dtype=torch.float64)
    a = x + block.pos_conv(x)
    b = a + block.attn(block.norm1(a))
    c = b + block.lim(block.norm2(b))
    assert relative_error(block(x), c + block.mlp(block.norm3(c))) < 1e-12


@pytest.mark.parametrize("size", [(1, 1), (3, 9), (8, 8), (13, 17)])
@pytest.mark.parametrize("reduction", [1, 2, 8])
def test_any_size(size, reduction):
    layer = StripSelfAttention(8, 2, reduction=reduction)
    assert layer(torch.randn(2, *size, 8)).shape == (2, *size, 8)
    assert layer.reduce(torch.randn(2, *size, 8)).shape == (2, *(-(-n // reduction) for n in size), 8)
    assert LocalInteractionModule(8)(torch.randn(2, *size, 8)).shape == (2, *size, 8)


def test_every_parameter_gets_a_gradient_and_no_image_works():
    block = HybridPerceptionBlock(8, 2, reduction=2)
    block(torch.randn(2, 6, 6, 8)).square().sum().backward()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in block.parameters())
    assert block(torch.randn(0, 6, 6, 8)).shape == (0, 6, 6, 8)


@pytest.mark.parametrize(("dtype", "bound"), [(torch.float16, 1e-2), (torch.bfloat16, 3e-2)])
@pytest.mark.parametrize(("side", "reduction"), [(256, 8), (64, 2)])
def test_autocast_on_the_maps_of_1024_pixels(side, reduction, dtype, bound):
    torch.manual_seed(0)
    block, x = HybridPerceptionBlock(16, 1, reduction=reduction).eval(), torch.randn(1, side, side, 16)
    with torch.no_grad():
        expected = block(x)
        with torch.autocast("cpu", dtype):
            found = block(x)
    assert relative_error(found, expected) < bound


@pytest.mark.parametrize(
    ("build", "says"),
    [
        (lambda: StripSelfAttention(8, 3), "num_heads=3"),
        (lambda: StripSelfAttention(8, 2, qk_dim=0), "qk_dim=0"),
        (lambda: StripSelfAttention(8, 2, reduction=0), "reduction=0"),
        (lambda: LocalInteractionModule(8, 4), "kernel_size=4"),
    ],
)
def test_arguments(build, says):
    with pytest.raises(ValueError, match=says):
        build()
