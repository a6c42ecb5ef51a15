"""The flow-attention layer against the published vision module."""

import pytest
import torch
from parity import load_arrays, reference_input, reference_state, relative_error, requires_fixture

from attnzoo.layers import FlowAttention


def test_published_module():
    name = "op_flow_attention_cv"
    spec = requires_fixture(name)
    layer = FlowAttention(spec["arguments"]["dim"], spec["arguments"]["num_heads"]).double()
    layer.load_state_dict(reference_state(spec["state"]))
    x = reference_input(spec["inputs"]["x"])
    assert relative_error(layer(x), load_arrays(name)["output"]) < 1e-7
    assert relative_error(layer(x.unflatten(1, (7, 7))).flatten(1, 2), load_arrays(name)["output"]) < 1e-7


def test_causal_layer_is_blind_to_later_tokens():
    layer = FlowAttention(16, 2, causal=True).double()
    x = torch.randn(1, 80, 16, dtype=torch.float64)
    torch.testing.assert_close(layer(x)[:, :70], layer(x[:, :70]), rtol=1e-11, atol=1e-12)
    open_layer = FlowAttention(16, 2).double()
    assert relative_error(open_layer(x)[:, :70], open_layer(x[:, :70])) > 1e-3


@pytest.mark.parametrize("causal", [False, True])
def test_every_parameter_gets_a_gradient(causal):
    layer = FlowAttention(8, 2, causal=causal)
    layer(torch.randn(2, 9, 8)).square().sum().backward()
    assert all(p.grad is not None and p.grad.abs().sum() > 0 for p in layer.parameters())


@pytest.mark.parametrize(("dtype", "bound"), [(torch.float16, 1e-2), (torch.bfloat16, 3e-2)])
def test_autocast_on_the_map_of_1024_pixels(dtype, bound):
    layer, x = FlowAttention(96, 12).eval(), torch.randn(1, 256, 256, 96)
    with torch.no_grad():
        expected = layer(x)
        with torch.autocast("cpu", dtype):
            found = layer(x)
    assert found.dtype == dtype
    assert relative_error(found, expected) < bound


def test_builds_on_meta_and_takes_no_image():
    assert FlowAttention(8, 2, device="meta", dtype=torch.bfloat16).qkv.weight.is_meta
    assert FlowAttention(8, 2)(torch.empty(0, 4, 3, 8)).shape == (0, 4, 3, 8)


@pytest.mark.parametrize(
    ("message", "arguments"),
    [
        ("num_heads=3 does not divide dim=8", dict(dim=8, num_heads=3)),
        ("eps=-1 .* is negative", dict(dim=8, num_heads=2, eps=-1)),
        ("outer_eps=-2 is negative", dict(dim=8, num_heads=2, outer_eps=-2)),
    ],
)
def test_bad_arguments(message, arguments):
    with pytest.raises(ValueError, match=message):
        FlowAttention(**arguments)
