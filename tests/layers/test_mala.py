"""MALA's two attention layers against the published modules, and their rotary table."""

import pytest
import torch
from parity import load_arrays, reference_input, reference_state, relative_error, requires_fixture

from attnzoo.layers import GatedSoftmaxAttention, MagnitudeAwareLinearAttention
from attnzoo.layers.mala import rotation_table, to_half_split

LAYERS = {"op_mala_linear": MagnitudeAwareLinearAttention, "op_mala_softmax": GatedSoftmaxAttention}


def published(spec):
    """The fixture's module, its 1×1 convolutions as linear layers with half-split rotary pairs."""
    heads = spec["arguments"]["num_heads"]
    layer = LAYERS[spec["name"]](spec["arguments"]["dim"], heads).double()
    state = reference_state(spec["state"])
    for leaf in ("weight", "bias"):
        q, k, v, gate = state[f"qkvo.{leaf}"].flatten(1 if leaf == "weight" else 0).chunk(4)
        state[f"qkvo.{leaf}"] = torch.cat([to_half_split(q, heads), to_half_split(k, heads), v, gate])
    state["proj.weight"] = state["proj.weight"].flatten(1)
    layer.load_state_dict(state)
    return layer


@pytest.mark.parametrize("name", LAYERS)
def test_published_module(name):
    spec = requires_fixture(name)
    x = reference_input(spec["inputs"]["x"]).permute(0, 2, 3, 1).requires_grad_()
    out = published(spec)(x).permute(0, 3, 1, 2)
    assert relative_error(out, load_arrays(name)["output"]) < 1e-7
    expected = spec["outputs"]["output"]
    assert abs(out.mean().item() - expected["mean"]) < 1e-9 * expected["std"]
    assert abs(out.std().item() / expected["std"] - 1) < 1e-9


@pytest.mark.parametrize("name", LAYERS)
def test_published_rotary_table(name):
    spec = requires_fixture(name)
    batch, dim, height, width = spec["inputs"]["x"]["shape"]
    head_dim = dim // spec["arguments"]["num_heads"]
    found = rotation_table(height, width, head_dim, torch.empty(0, dtype=torch.float64))
    for table, key in zip(found, ("cos", "sin"), strict=True):
        neighbours = table.flatten(0, 1).repeat_interleave(2, dim=-1)
        assert relative_error(neighbours, load_arrays(name)[key]) < 1e-7


def test_half_split_keeps_every_head_to_itself():
    rows = torch.arange(16).reshape(16, 1)
    assert to_half_split(rows, 2).flatten().tolist() == [0, 2, 4, 6, 1, 3, 5, 7, 8, 10, 12, 14, 9, 11, 13, 15]


@pytest.mark.parametrize("layer", LAYERS.values())
def test_every_parameter_gets_a_gradient(layer):
    module = layer(32, 2)
    module(torch.randn(2, 5, 9, 32)).square().sum().backward()
    assert all(p.grad is not None and p.grad.abs().sum() > 0 for p in module.parameters())


@pytest.mark.parametrize(("dtype", "bound"), [(torch.float16, 1e-2), (torch.bfloat16, 3e-2)])
@pytest.mark.parametrize(("layer", "side"), [(MagnitudeAwareLinearAttention, 256), (GatedSoftmaxAttention, 64)])
def test_autocast_on_the_maps_of_1024_pixels(layer, side, dtype, bound):
    module, x = layer(64, 1).eval(), torch.randn(1, side, side, 64)
    with torch.no_grad():
        expected = module(x)
        with torch.autocast("cpu", dtype):
            found = module(x)
    assert found.dtype == dtype
    assert relative_error(found, expected) < bound


@pytest.mark.parametrize("layer", LAYERS.values())
def test_builds_on_meta_and_takes_no_image(layer):
    assert layer(32, 2, device="meta", dtype=torch.bfloat16).qkvo.weight.is_meta
    assert layer(32, 2)(torch.empty(0, 4, 3, 32)).shape == (0, 4, 3, 32)


@pytest.mark.parametrize("layer", LAYERS.values())
@pytest.mark.parametrize(
    ("message", "arguments"),
    [
        ("num_heads=3 does not divide dim=32", dict(dim=32, num_heads=3)),
        ("num_heads=0 does not divide", dict(dim=32, num_heads=0)),
        ("dim=36 over num_heads=6 is no multiple of 4", dict(dim=36, num_heads=6)),
        ("lepe_kernel=4 is not odd", dict(dim=32, num_heads=2, lepe_kernel=4)),
    ],
)
def test_bad_arguments(layer, message, arguments):
    with pytest.raises(ValueError, match=message):
        layer(**arguments)
