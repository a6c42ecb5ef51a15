"""VAN's attention modules."""

import pytest
import torch
import torch.nn.functional as F
from parity import fast_float64_depthwise, relative_error

from attnzoo.layers import GatedLargeKernelAttention, LargeKernelAttention


def test_decomposition():
    layer = LargeKernelAttention(6)
    assert layer.local.kernel_size == (5, 5)
    assert layer.dilated.kernel_size == (7, 7) and layer.dilated.dilation == (3, 3)
    reach = layer.local.kernel_size[0] // 2 + layer.dilated.kernel_size[0] // 2 * layer.dilation
    image = torch.zeros(1, 6, 31, 31)
    with torch.no_grad():
        for conv in (layer.local, layer.dilated, layer.point):
            conv.weight.fill_(1.0)
            conv.bias.zero_()
        image[:, :, 15, 15] = 1
        # The gate reads one place only; shifting the map shows what it attends to.
        reads = layer.point(layer.dilated(layer.local(image)))[0, 0] != 0
    rows = reads.any(1).nonzero().flatten()
    assert rows.min() == 15 - reach and rows.max() == 15 + reach


@pytest.mark.parametrize("size", [(17, 20), (7, 7)])
def test_module_is_its_convolutions(size):
    layer = GatedLargeKernelAttention(8).double()
    lka, x = layer.lka, torch.randn(2, 8, *size, dtype=torch.float64)
    with torch.no_grad(), fast_float64_depthwise():
        inner = F.gelu(layer.proj_in(x))
        expected = x + layer.proj_out(inner * lka.point(lka.dilated(lka.local(inner))))
        assert relative_error(layer(x), expected) < 1e-12


@pytest.mark.parametrize("layer", [LargeKernelAttention, GatedLargeKernelAttention])
def test_every_parameter_gets_a_gradient(layer):
    module = layer(8)
    module(torch.randn(2, 8, 13, 16)).square().sum().backward()
    assert all(p.grad is not None and p.grad.abs().sum() > 0 for p in module.parameters())


@pytest.mark.parametrize(("dtype", "bound"), [(torch.float16, 1e-2), (torch.bfloat16, 3e-2)])
def test_autocast_with_a_large_map(dtype, bound):
    torch.manual_seed(0)
    module, x = GatedLargeKernelAttention(8).eval(), torch.randn(1, 8, 256, 256)
    with torch.no_grad():
        expected = module(x)
        with torch.autocast("cpu", dtype):
            found = module(x)
    assert relative_error(found, expected) < bound


@pytest.mark.parametrize("layer", [LargeKernelAttention, GatedLargeKernelAttention])
@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"dilation": 0}, "dilation=0 is below 1"),
        ({"kernel_size": 24}, "kernel_size=24 with dilation=3 makes a dilated kernel of 8"),
        ({"kernel_size": -3}, "kernel_size=-3"),
    ],
)
def test_bad_arguments(layer, arguments, message):
    with pytest.raises(ValueError, match=message):
        layer(8, **arguments)
