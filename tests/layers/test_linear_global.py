"""L2ViT's mixers against the same sums written out."""

import pytest
import torch
import torch.nn.functional as F
from parity import relative_error

from attnzoo.layers import LinearGlobalAttention, LocalConcentrationModule, LocalWindowAttention

MIXERS = [LinearGlobalAttention, LocalWindowAttention]


def projected(layer, x):
    """q, k, v of tokens [..., C] as [..., heads, D] each."""
    return F.linear(x, layer.qkv.weight, layer.qkv.bias).unflatten(-1, (3, layer.num_heads, -1)).unbind(-3)


@pytest.mark.parametrize("bound", [1e-3, 100.0])
def test_linear_global_attention(bound):
    layer = LinearGlobalAttention(12, 3, min_normalizer=bound).double()
    torch.nn.init.uniform_(layer.temperature, 0.1, 2.0)
    x = torch.randn(2, 5, 4, 12, dtype=torch.float64)
    q, k, v = (t.flatten(1, 2) for t in projected(layer, x))
    weights = torch.einsum("bihd,bjhd->bhij", q.relu(), k.relu())
    weights = weights / weights.sum(-1, keepdim=True).clamp(min=bound) * layer.temperature[:, None, None]
    out = torch.einsum("bhij,bjhd->bihd", weights, v).reshape(2, 5, 4, 12)
    assert relative_error(layer(x), F.linear(out, layer.proj.weight, layer.proj.bias)) < 1e-12


@pytest.mark.parametrize("size", [(6, 9), (7, 5), (2, 1)])
def test_window_attention_lets_padding_take_part(size):
    layer = LocalWindowAttention(8, 2, window_size=3).double()
    x = torch.randn(2, *size, 8, dtype=torch.float64)
    padded = torch.zeros(2, *(-(-n // 3) * 3 for n in size), 8, dtype=torch.float64)
    padded[:, : size[0], : size[1]] = x
    q, k, v = projected(layer, padded)
    out = torch.zeros_like(v)
    for top in range(0, padded.shape[1], 3):
        for left in range(0, padded.shape[2], 3):
            window = (slice(None), slice(top, top + 3), slice(left, left + 3))
            queries, keys, values = (t[window].flatten(1, 2) for t in (q, k, v))
            weights = (torch.einsum("bihd,bjhd->bhij", queries, keys) / 2).softmax(-1)
            out[window] = torch.einsum("bhij,bjhd->bihd", weights, values).unflatten(1, (3, 3))
    expected = F.linear(out.flatten(-2), layer.proj.weight, layer.proj.bias)[:, : size[0], : size[1]]
    assert relative_error(layer(x), expected) < 1e-12


def test_local_concentration():
    layer = LocalConcentrationModule(6, kernel_size=3).double().eval()
    layer.norm.running_mean.uniform_()
    layer.norm.running_var.uniform_(0.5, 1)
    x = torch.randn(2, 5, 4, 6, dtype=torch.float64)
    y = F.gelu(layer.conv1(x.permute(0, 3, 1, 2)))
    y = (y - layer.norm.running_mean[:, None, None]) / (layer.norm.running_var[:, None, None] + 1e-5).sqrt()
    y = y * layer.norm.weight[:, None, None] + layer.norm.bias[:, None, None]
    assert relative_error(layer(x), layer.conv2(y).permute(0, 2, 3, 1)) < 1e-12


@pytest.mark.parametrize("layer", [*MIXERS, LocalConcentrationModule])
def test_every_parameter_gets_a_gradient(layer):
    module = layer(8, 2) if layer in MIXERS else layer(8)
    module(torch.randn(2, 9, 8, 8)).square().sum().backward()
    assert all(p.grad is not None and p.grad.abs().sum() > 0 for p in module.parameters())


@pytest.mark.parametrize(("dtype", "bound"), [(torch.float16, 1e-2), (torch.bfloat16, 3e-2)])
@pytest.mark.parametrize("layer", MIXERS)
def test_autocast_on_the_map_of_1024_pixels(layer, dtype, bound):
    module, x = layer(64, 2).eval(), torch.randn(1, 256, 256, 64)
    with torch.no_grad():
        expected = module(x)
        with torch.autocast("cpu", dtype):
            found = module(x)
    assert found.dtype == dtype
    assert relative_error(found, expected) < bound


@pytest.mark.parametrize("layer", MIXERS)
def test_builds_on_meta_and_takes_no_image(layer):
    assert layer(8, 2, device="meta", dtype=torch.bfloat16).qkv.weight.is_meta
    assert layer(8, 2)(torch.empty(0, 9, 8, 8)).shape == (0, 9, 8, 8)


@pytest.mark.parametrize(
    ("message", "layer", "arguments"),
    [
        ("num_heads=3 does not divide dim=8", LinearGlobalAttention, dict(dim=8, num_heads=3)),
        ("min_normalizer=0 is not positive", LinearGlobalAttention, dict(dim=8, num_heads=2, min_normalizer=0)),
        ("num_heads=-1 does not divide dim=8", LocalWindowAttention, dict(dim=8, num_heads=-1)),
        ("window_size=0 is below 1", LocalWindowAttention, dict(dim=8, num_heads=2, window_size=0)),
        ("kernel_size=6 is not odd", LocalConcentrationModule, dict(dim=8, kernel_size=6)),
    ],
)
def test_bad_arguments(message, layer, arguments):
    with pytest.raises(ValueError, match=message):
        layer(**arguments)
