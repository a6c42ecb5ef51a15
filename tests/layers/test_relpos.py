"""Attention with relative positions, of maps that the table is made for and of others."""

import pytest
import torch
from parity import relative_error

from attnzoo.layers import RelPosAttention


@pytest.mark.parametrize("batch", [0, 2])
@pytest.mark.parametrize("size", [(4, 5), (1, 1), (7, 3)])
def test_against_its_definition(size, batch):
    torch.manual_seed(0)
    layer = RelPosAttention(8, 2, (4, 5), dtype=torch.float64)
    x = torch.randn(batch, *size, 8, dtype=torch.float64)
    found = layer(x)
    assert found.shape == x.shape
    q, k, v = (each.unflatten(-1, (2, 4)).flatten(1, 2).transpose(1, 2) for each in layer.qkv(x).chunk(3, dim=-1))
    weights = (q @ k.transpose(-1, -2) * 4**-0.5 + layer.bias(*size)).softmax(-1)
    expected = layer.proj((weights @ v).transpose(1, 2).flatten(-2).unflatten(1, size))
    assert relative_error(found, expected) < 1e-12 or not batch
