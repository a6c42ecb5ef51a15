"""ContMix, its block and the dilated re-parameterised convolution against the published modules."""

import copy

import pytest
import torch
from parity import (
    fast_float64_depthwise,
    load_arrays,
    reference_input,
    reference_state,
    relative_error,
    requires_fixture,
)

from attnzoo.kernels import use_backend
from attnzoo.layers import ContMix, ContMixBlock, DilatedReparamConv
from attnzoo.layers.contmix import ResponseNorm2d
from attnzoo.zoo._blocks import rename_keys

BLOCKS = ["op_contmix_k7", "op_contmix_k13_scale", "op_contmix_k13_small"]
CONVOLUTIONS = [f"op_overlock_dilated_reparam_k{size}" for size in (7, 13, 15, 17)]
_CONTMIX = "attn.contmix."
_RULES = [
    (r"^rpb1$", f"{_CONTMIX}rel_pos_bias_small"),
    (r"^rpb2$", f"{_CONTMIX}rel_pos_bias"),
    (r"^weight_(query|value)\.0\.", rf"{_CONTMIX}\1.conv."),
    (r"^weight_(query|value)\.1\.", rf"{_CONTMIX}\1.norm."),
    (r"^weight_key\.1\.", f"{_CONTMIX}key.conv."),
    (r"^weight_key\.2\.", f"{_CONTMIX}key.norm."),
    (r"^weight_proj\.", f"{_CONTMIX}weight_proj."),
    (r"^fusion_proj\.0\.", f"{_CONTMIX}proj.conv."),
    (r"^fusion_proj\.1\.", f"{_CONTMIX}proj.norm."),
    (r"^lepe\.0\.", "attn.lepe."),
    (r"^lepe\.1\.", "attn.lepe_norm."),
    (r"^se_layer\.proj\.1\.", "attn.se.fc1."),
    (r"^se_layer\.proj\.3\.", "attn.se.fc2."),
    (r"^gate\.0\.", "attn.gate.conv."),
    (r"^gate\.1\.", "attn.gate.norm."),
    (r"^proj\.0\.", "attn.norm."),
    (r"^proj\.1\.", "attn.proj."),
    (r"^mlp\.0\.", "mlp.fc1."),
    (r"^mlp\.2\.", "mlp.dwconv."),
    (r"^mlp\.3\.gamma$", "mlp.grn.weight"),
    (r"^mlp\.3\.beta$", "mlp.grn.bias"),
    (r"^mlp\.4\.", "mlp.fc2."),
    (r"^(ls\d)\.weight$", r"\1.gamma"),
    (r"^(ls\d)\.bias$", r"\1.beta"),
    (r"\blk_origin\.", "large.conv."),
    (r"\borigin_bn\.", "large.norm."),
    (r"\bdil_conv_(k\d+_\d+)\.", r"branches.\1.conv."),
    (r"\bdil_bn_(k\d+_\d+)\.", r"branches.\1.norm."),
]


def load(module, spec):
    """The fixture's weights; BatchNorm's counters, which it does not list, keep their zeros."""
    own = module.state_dict()
    state = rename_keys(reference_state(spec["state"]), _RULES)
    # The response norm's vectors and a 1×1 convolution over affinities have other shapes there.
    state = {key: value.reshape(own[key].shape) for key, value in state.items()}
    state.update({key: value for key, value in own.items() if key.endswith("num_batches_tracked")})
    module.load_state_dict(state)
    return module.double().eval()


def check(found, name, output, bound=1e-7):
    assert relative_error(found, load_arrays(name)[output]) < bound
    expected = requires_fixture(name)["outputs"][output]
    assert abs(found.mean().item() - expected["mean"]) < 1e-9 * expected["std"]


@pytest.mark.parametrize("backend", ["reference", "torch"])
@pytest.mark.parametrize("name", BLOCKS)
def test_published_block(name, backend):
    spec = requires_fixture(name)
    given = spec["arguments"]
    block = ContMixBlock(
        given["dim"],
        given["kernel_size"],
        given["smk_size"],
        given["num_heads"],
        given["mlp_ratio"],
        init_values=given["ls_init_value"],
    ).double()
    load(block, spec)
    with torch.no_grad(), use_backend(backend), fast_float64_depthwise():
        check(block(reference_input(spec["inputs"]["x"])), name, "output")


@pytest.mark.parametrize("name", CONVOLUTIONS)
def test_published_convolution(name):
    spec = requires_fixture(name)
    given = spec["arguments"]
    branches = tuple(zip(given["kernel_sizes"], given["dilates"], strict=True))
    assert list(DilatedReparamConv(2, given["kernel_size"]).branches) == [f"k{k}_{r}" for k, r in branches]
    module = load(DilatedReparamConv(given["channels"], given["kernel_size"], branches).double(), spec)
    x = reference_input(spec["inputs"]["x"])
    with torch.no_grad(), fast_float64_depthwise():
        check(module(x), name, "output")
        weight, bias = module.merged()
        check(weight, name, "merged_weight")
        check(bias, name, "merged_bias")


@pytest.mark.parametrize(("dtype", "bound"), [(torch.float64, 1e-10), (torch.float32, 1e-5)])
@pytest.mark.parametrize("kernel_size", [7, 13, 15, 17])
def test_reparameterized_is_the_sum_of_branches(kernel_size, dtype, bound):
    torch.manual_seed(0)
    module = DilatedReparamConv(4, kernel_size, dtype=dtype)
    x = torch.randn(2, 4, 19, 22, dtype=dtype)
    with torch.no_grad(), fast_float64_depthwise():
        for _ in range(3):
            module(x + 1)
        for norm in module.modules():
            if isinstance(norm, torch.nn.BatchNorm2d):
                norm.weight.uniform_(0.5, 1.5)
                norm.bias.normal_()
                norm.eval()
        # The norms use their statistics but the module still sums its branches.
        branches = module(x)
        merged = copy.deepcopy(module).eval()(x)
        module.reparameterize()
        module.reparameterize()
        assert relative_error(merged, branches) < bound
        assert relative_error(module(x), branches) < bound
    assert [name for name, _ in module.named_parameters()] == ["conv.weight", "conv.bias"]
    deployed = DilatedReparamConv(4, kernel_size, deploy=True, dtype=dtype)
    deployed.load_state_dict(module.state_dict())


def test_gradients_in_evaluation_are_those_of_the_branches():
    torch.manual_seed(0)
    module = DilatedReparamConv(3, 7, dtype=torch.float64)
    x = torch.randn(1, 3, 9, 8, dtype=torch.float64)
    gradients = []
    for training in (True, False):
        for child in module.modules():
            child.training = training and not isinstance(child, torch.nn.BatchNorm2d)
        gradients.append(torch.autograd.grad(module(x).square().sum(), list(module.parameters())))
    for found, expected in zip(*gradients, strict=True):
        assert relative_error(found, expected) < 1e-10


@pytest.mark.parametrize("size", [(1, 1), (5, 3), (6, 19), (13, 13), (30, 17)])
def test_any_size(size):
    block = ContMixBlock(16, 13, num_heads=2).eval()
    with torch.no_grad():
        assert block(torch.randn(1, 16, *size)).isfinite().all()
        assert block(torch.randn(0, 16, *size)).shape == (0, 16, *size)


@pytest.mark.parametrize("short", range(1, 17))
def test_enlarged_maps_hold_the_window(short):
    for kernel_size in (7, 13, 15, 17):
        contmix = ContMix(8, kernel_size, num_heads=1)
        for size in ((short, short), (short, short + 5)):
            assert min(contmix._enlarged_size(*size)) >= kernel_size or min(size) >= kernel_size


def test_every_parameter_gets_a_gradient():
    torch.manual_seed(0)
    for block in (ContMixBlock(16, init_values=1.0), ContMixBlock(16, ctx_dim=8)):
        block(torch.randn(2, sum(p.shape[0] for p in [block.dwconv1.weight]), 9, 12)).square().sum().backward()
        assert all(p.grad is not None and p.grad.abs().sum() > 0 for p in block.parameters())


@pytest.mark.parametrize(("dtype", "bound"), [(torch.float16, 1e-2), (torch.bfloat16, 3e-2)])
def test_autocast_at_the_map_of_a_large_image(dtype, bound):
    torch.manual_seed(0)
    block, x = ContMixBlock(16, 13).eval(), torch.randn(1, 16, 64, 64)
    with torch.no_grad():
        expected = block(x)
        with torch.autocast("cpu", dtype):
            found = block(x)
    assert relative_error(found, expected) < bound


def test_response_norm_of_values_whose_squares_overflow():
    norm, x = ResponseNorm2d(4).half(), torch.randn(1, 4, 256, 256)
    norm.weight.data.fill_(1.0)
    x = (100 * x).half()
    assert relative_error(norm(x), copy.deepcopy(norm).double()(x.double())) < 2e-3


@pytest.mark.parametrize("layer", [ContMix, ContMixBlock])
@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"num_heads": 0}, "num_heads=0"),
        ({"num_heads": 3}, "num_heads=3: four times it does not divide dim=16"),
        ({"kernel_size": 6}, "kernel_size=6 is not odd"),
        ({"smk_size": 4}, "smk_size=4 is not odd"),
        ({"smk_size": 9}, "smk_size=9 is not odd or exceeds kernel_size=7"),
    ],
)
def test_bad_arguments(layer, arguments, message):
    with pytest.raises(ValueError, match=message):
        layer(16, **arguments)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"kernel_size": 9}, "kernel_size=9 has no published branches; 7, 13, 15, 17 have"),
        ({"kernel_size": 6, "branches": ((3, 1),)}, "kernel_size=6 is not odd"),
        ({"kernel_size": 7, "branches": ((3, 4),)}, r"\(3, 4\) is no part of a 7 kernel"),
    ],
)
def test_bad_convolution(arguments, message):
    with pytest.raises(ValueError, match=message):
        DilatedReparamConv(4, **arguments)
