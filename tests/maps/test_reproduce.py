"""A map times the values is what the op gave, for every kind of attention, on models as the zoo builds them."""

from collections.abc import Callable

import pytest
import timm
import torch
import torch.nn.functional as F
from skimage import data
from torch import Tensor, nn

from attnzoo.kernels import dynamic_depthwise_conv, flow_attention
from attnzoo.layers import (
    ContMix,
    CrossShapedWindowAttention,
    GatedSoftmaxAttention,
    LePEAttention,
    LocalWindowAttention,
    RelPosAttention,
    ShiftedWindowAttention,
)
from attnzoo.zoo import attention_maps
from attnzoo.zoo.maps.dynamic_conv import DynamicConvMap
from attnzoo.zoo.maps.linear import FlowMap
from attnzoo.zoo.maps.tap import CONVOLUTION, SOFTMAX, Call, Tap

# One model for each kind of attention, and what its constructor needs to stay small.
MODELS = {
    "dinat_nano": {},
    "biformer_nano": {},
    "agent_swin_tiny": dict(depths=(1, 1, 2, 2), agent_depths=(1, 1, 1, 0)),
    "agent_deit_tiny": dict(depth=2),
    "flowformer": dict(depths=(1, 1, 1, 1)),
    "l2vit_tiny": dict(depths=(2, 2, 2, 2)),
    "mavit_tiny": {},
    "s2aformer_xs": {},
    "sparsifiner_deit_tiny": dict(depth=2),
    "vit_small_gqa": dict(depth=2),
    "vit_small_kdgqa": dict(depth=2),
    "vit_small_dgqa": dict(depth=2),
    "overlock_xt": {},
}
POINTS = ((0.0, 0.0), (131.9, 99.9), (65.0, 3.5), (40.0, 77.0))


def photograph(height: int = 100, width: int = 132) -> Tensor:
    """A part of scikit-image's photograph of a cat, of sides that no stride divides."""
    image = torch.from_numpy(data.chelsea().copy()).permute(2, 0, 1).double() / 255
    return F.interpolate(image[None, :, :300], (height, width), mode="area")[0] - 0.5


def build(name: str, **kwargs) -> nn.Module:
    """Random weights, biases and tables included: what is zero at first would hide mistakes."""
    torch.manual_seed(0)
    model = timm.create_model(name, **kwargs).double().eval()
    with torch.no_grad():
        for key, parameter in model.named_parameters():
            if "bias" in key:
                parameter.normal_(std=0.5)
    return model


class Outputs(Tap):
    """Keeps what every op of a forward gave, heads last and in one row of tokens: ``[N, heads, Dv]``."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__(model)
        self.found: dict[str, Tensor] = {}

    def attend(self, call: Call, run: Callable[[], Tensor]) -> Tensor:
        output = run()
        if call.op not in (SOFTMAX, CONVOLUTION):
            self.found[call.layer] = output[0].flatten(0, -3)
        return output


def outputs(model: nn.Module, image: Tensor) -> dict[str, Tensor]:
    tap = Outputs(model)
    with torch.no_grad(), tap.following():
        model(image[None])
    return tap.found


def error(found: Tensor, expected: Tensor) -> float:
    return ((found - expected).norm() / expected.norm()).item()


@pytest.mark.parametrize("name", MODELS)
def test_map_times_values_is_the_op(name: str) -> None:
    model, image = build(name, **MODELS[name]), photograph()
    expected = outputs(model, image)
    maps = {layer: one for layer, one in attention_maps(model, image).items() if layer in expected}
    assert maps.keys() == expected.keys() and maps
    for layer, one in maps.items():
        values, width = one.values(), one.grid[1]
        if one.kind in ("neighborhood", "routed", "dynamic_conv"):
            width = one.key_grid[1]
        for point in POINTS:
            row, column = one.token(point)
            index = getattr(one, "query_prefix", 0) + row * width + column
            out = torch.einsum("hm,hmd->hd", one.row(row, column), values)
            assert error(out, expected[layer][index]) < 1e-6, (layer, point)
        if getattr(one, "query_prefix", 0):
            out = torch.einsum("hm,hmd->hd", one.flat_row(0), values)
            assert error(out, expected[layer][0]) < 1e-6, layer


def without_convolution(model: nn.Module) -> nn.Module:
    """The depth-wise convolutions that layers add to their attention are set to zero."""
    for module in model.modules():
        if isinstance(module, (LePEAttention, CrossShapedWindowAttention, GatedSoftmaxAttention)):
            for parameter in module.lepe.parameters():
                nn.init.zeros_(parameter)
    return model


@pytest.mark.parametrize(
    ("name", "kwargs", "kind"),
    [
        ("agent_swin_tiny", dict(depths=(2, 2, 2, 2), agent_depths=(0, 0, 0, 0)), ShiftedWindowAttention),
        ("agent_cswin_tiny", dict(depths=(1, 2, 3, 1)), CrossShapedWindowAttention),
        ("l2vit_tiny", dict(depths=(2, 2, 2, 2)), LocalWindowAttention),
        ("vit_rpb_small", dict(depth=2), RelPosAttention),
        ("biformer_nano", {}, LePEAttention),
        ("mavit_tiny", {}, GatedSoftmaxAttention),
    ],
    ids=lambda value: value.__name__ if isinstance(value, type) else None,
)
def test_map_times_values_is_what_the_layer_projects(name: str, kwargs: dict, kind: type[nn.Module]) -> None:
    """The layer's own attention, geometry of windows included: seen where it enters the output projection."""
    model, image = without_convolution(build(name, **kwargs)), photograph()
    projected, gates = {}, {}
    for layer, module in model.named_modules():
        if isinstance(module, kind):
            module.proj.register_forward_pre_hook(lambda _, inputs, layer=layer: projected.update({layer: inputs[0]}))
            if kind is GatedSoftmaxAttention:
                module.qkvo.register_forward_hook(
                    lambda _, inputs, output, layer=layer: gates.update({layer: output.chunk(4, -1)[3]})
                )
    maps = attention_maps(model, image)
    assert projected
    for layer, expected in projected.items():
        expected = expected / gates[layer] if gates else expected
        parts = [maps[one] for one in (layer, f"{layer}:vertical", f"{layer}:horizontal") if one in maps]
        for point in POINTS:
            row, column = parts[0].token(point)
            out = [torch.einsum("hm,hmd->hd", one.row(row, column), one.values()).flatten() for one in parts]
            assert error(torch.cat(out), expected[0, row, column]) < 1e-6, (layer, point)


def test_contmix_of_an_enlarged_map() -> None:
    """A map smaller than the window is enlarged; the map is of what is convolved then."""
    torch.manual_seed(0)
    layer = ContMix(16, kernel_size=7, num_heads=2).double().eval()
    model = nn.Sequential(nn.Conv2d(3, 16, 4, 4).double(), Same(layer))
    maps = attention_maps(model, photograph(20, 32))
    assert list(maps) == ["1.layer:small", "1.layer:large"]
    large = maps["1.layer:large"]
    assert large.grid == (7, 11) and large.kernel((0, 0)).shape == (4, 7, 7)
    assert large.cell == (4 * 5 / 7, 4 * 8 / 11)
    window = large.weights((0, 0))
    assert torch.equal(window[:, :7, :7], large.kernel((0, 0))) and window[:, :, 7:].abs().max() == 0


class Same(nn.Module):
    def __init__(self, layer: nn.Module) -> None:
        super().__init__()
        self.layer = layer

    def forward(self, x: Tensor) -> Tensor:
        return self.layer(x, x, x)


def test_dynamic_conv_without_softmax() -> None:
    """Weights as they are given are the map as they are."""
    torch.manual_seed(0)
    x, weight = torch.randn(1, 6, 7, 2, 3).double(), torch.randn(1, 6, 7, 2, 9).double()
    expected = dynamic_depthwise_conv(x, weight)
    common = dict(layer="", grid=(6, 7), key_grid=(6, 7), heads=2, image_size=(6, 7), query=(0, 0))
    one = DynamicConvMap(**common, logits=weight[0], v=x[0], kernel_size=(3, 3), rel_pos_bias=None, softmax=False)
    out = torch.einsum("hm,hmd->hd", one.row(5, 0), one.values())
    assert error(out, expected[0, 5, 0]) < 1e-6


@pytest.mark.parametrize("causal", [False, True])
def test_flow(causal: bool) -> None:
    torch.manual_seed(0)
    q, k, v = torch.randn(3, 1, 12, 2, 4).double()
    expected = flow_attention(q, k, v, causal=causal, outer_eps=1e-6)
    common = dict(layer="", grid=(3, 4), key_grid=(3, 4), heads=2, image_size=(3, 4), query=(0, 0))
    one = FlowMap(**common, q=q[0], k=k[0], v=v[0], causal=causal, eps=1e-6, outer_eps=1e-6)
    for index in range(12):
        out = torch.einsum("hm,hmd->hd", one.flat_row(index), one.values())
        assert error(out, expected[0, index]) < 1e-6
