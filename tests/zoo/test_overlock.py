"""What OverLoCK has that other families do not: merged convolutions, a second classifier, an overview."""

import copy

import pytest
import timm
import torch
from parity import (
    fast_float64_depthwise,
    load_arrays,
    load_spec,
    published_state,
    reference_input,
    relative_error,
    requires_fixture,
)
from timm.layers import LayerNorm2d
from timm.models import group_parameters

from attnzoo.weights import CheckpointError

SMALL = dict(
    embed_dims=(8, 16, 32, 64), depths=(1, 1, 1, 1), focus_depths=(2, 2), num_heads=(1, 2), head_dim=32, num_classes=5
)


def small(**kwargs):
    torch.manual_seed(0)
    return timm.create_model("overlock_xt", **{**SMALL, **kwargs})


@pytest.fixture
def image():
    return torch.randn(2, 3, 96, 128, generator=torch.Generator().manual_seed(0))


def trained(**kwargs):
    """A model whose norms have seen something and whose vectors are no constants."""
    model = small(**kwargs)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))
        model.train()(torch.randn(8, 3, 64, 64))
    return model.eval()


@pytest.mark.parametrize("fixture", ["overlock_xt", "overlock_xt_reparam"])
def test_all_published_maps(fixture):
    spec = requires_fixture(fixture)
    model = timm.create_model("overlock_xt", deploy=fixture.endswith("reparam")).double().eval()
    model.load_state_dict(published_state(spec))
    base = []
    model.stages[2].blocks.register_forward_hook(lambda module, inputs, output: base.append(output))
    with torch.no_grad(), fast_float64_depthwise():
        maps, overview = model.forward_overview(reference_input(spec["input"]))
        logits = model.forward_head(maps[-1])
    found = [maps[0], maps[1], base[0], overview, maps[2], maps[3]]
    for each, row in zip(found, spec["features"], strict=True):
        assert list(each.shape) == row["shape"], row["point"]
        values = each.flatten()[torch.tensor(row["index"])]
        assert relative_error(values, torch.tensor(row["value"], dtype=torch.float64)) < 1e-8, row["point"]
    assert relative_error(logits, load_arrays(fixture)["logits"]) < 1e-7


def test_published_dense_maps():
    spec = requires_fixture("overlock_xt_dense")
    state = published_state(spec)
    model = timm.create_model("overlock_xt", num_classes=0).double().eval()
    model.prune_intermediate_layers([0, 1, 2, 3])
    norms = torch.nn.ModuleList(LayerNorm2d(channels) for channels in (56, 112, 340, 420, 336))
    output = model.overview_output()
    dense = {key: state.pop(key) for key in list(state) if key.startswith(("extra_norm.", "h_proj."))}
    model.load_state_dict(state)
    norms.double().load_state_dict({key.removeprefix("extra_norm."): dense[key] for key in dense if "norm" in key})
    output.norm = norms[4]
    output.proj.load_state_dict({leaf: dense[f"h_proj.0.{leaf}"] for leaf in ("weight", "bias")})
    output.ls.load_state_dict({"gamma": dense["h_proj.1.weight"].flatten(), "beta": dense["h_proj.1.bias"]})
    assert sum(p.numel() for p in torch.nn.ModuleList([model, norms[:4], output]).parameters()) == spec["num_params"]
    with torch.no_grad(), fast_float64_depthwise():
        maps = model.forward_dense(reference_input(spec["input"]), norms, output)
    for each, row in zip(maps, spec["features"], strict=True):
        values = each.flatten()[torch.tensor(row["index"])]
        assert relative_error(values, torch.tensor(row["value"], dtype=torch.float64)) < 1e-8, row["point"]
    assert relative_error(maps[3], load_arrays("overlock_xt_dense")["feat3"]) < 1e-7


def test_reparameterize_keeps_the_outputs(image):
    model = trained()
    merged = copy.deepcopy(model).reparameterize()
    deployed = small(deploy=True)
    deployed.load_state_dict(merged.state_dict())
    assert sum(p.numel() for p in merged.parameters()) < sum(p.numel() for p in model.parameters())
    with torch.no_grad():
        wanted = model(image)
        assert relative_error(merged(image), wanted) < 1e-5
        assert torch.equal(deployed.eval()(image), merged(image))
        model, image = model.double(), image.double()
        assert relative_error(copy.deepcopy(model).reparameterize()(image), model(image)) < 1e-10


def test_timm_reparameterizes_it_too(image):
    model = trained()
    merged = timm.utils.reparameterize_model(model)
    assert {"stages.0.blocks.0.conv.conv.weight"} <= set(merged.state_dict()) - set(model.state_dict())
    with torch.no_grad():
        assert relative_error(merged(image), model(image)) < 1e-5


def test_merged_model_takes_the_branches_of_a_published_file(image):
    state = published_state(load_spec("overlock_xt") or pytest.skip("no fixture overlock_xt.json"))
    model, merged = timm.create_model("overlock_xt").double(), timm.create_model("overlock_xt", deploy=True).double()
    model.load_state_dict(state)
    merged.load_state_dict(state)
    wanted = model.reparameterize().state_dict()
    for key, value in merged.state_dict().items():
        torch.testing.assert_close(value, wanted[key], rtol=1e-12, atol=1e-12)


def test_merged_file_asks_for_a_merged_model():
    state = published_state(load_spec("overlock_xt_reparam") or pytest.skip("no fixture overlock_xt_reparam.json"))
    with pytest.raises(CheckpointError, match="deploy=True"):
        timm.create_model("overlock_xt").load_state_dict(state)


def test_reparameterized_weights_are_for_a_merged_model():
    with torch.device("meta"):
        names = set(timm.create_model("overlock_xt.in1k_reparam").state_dict())
        assert names == set(timm.create_model("overlock_xt", deploy=True).state_dict())
        assert names != set(timm.create_model("overlock_xt.in1k").state_dict())


def test_second_classifier_trains_when_asked(image):
    model = small(aux_loss=True)
    logits = model.train()(image)
    assert {name: tuple(value.shape) for name, value in logits.items()} == {"main": (2, 5), "aux": (2, 5)}
    sum(value.square().sum() for value in logits.values()).backward()
    assert all(p.grad is not None for p in model.parameters())
    assert all(p.grad.abs().sum() > 0 for p in model.aux_head.parameters())
    plain = small()
    plain.load_state_dict(model.state_dict())
    model.eval(), plain.eval()
    with torch.no_grad():
        assert torch.equal(model(image), plain(image))


def test_second_classifier_rests_otherwise(image):
    model = small().train()
    model(image).square().sum().backward()
    assert all(p.grad.abs().sum() == 0 for p in model.aux_head.parameters())
    assert model.aux_head.norm.num_batches_tracked == 0


def test_second_classifier_follows_the_first():
    model = small()
    model.reset_classifier(7)
    assert model.aux_head.fc.out_features == 7
    model.reset_classifier(0)
    assert model.aux_head is None
    pruned = small()
    pruned.prune_intermediate_layers([2])
    pruned.reset_classifier(3)
    assert pruned.aux_head is None and not [key for key in pruned.state_dict() if "aux" in key]


def test_maps_carry_the_context(image):
    model = timm.create_model("overlock_xt", features_only=True, **{**SMALL, "num_classes": 0})
    assert model.feature_info.channels() == [8, 16, 48, 80]
    assert model.feature_info.reduction() == [4, 8, 16, 32]
    assert [each.shape[1] for each in model(image)] == [8, 16, 48, 80]


def test_layers_are_grouped_in_the_order_of_the_forward():
    model = small()
    for coarse in (False, True):
        groups = group_parameters(model, model.group_matcher(coarse=coarse), reverse=True)
        order = [
            "stem.conv1.weight",
            "stages.0.blocks.0.norm.weight",
            "stages.2.blocks.0.norm.weight",
            "stages.2.overview.blocks.0.norm.weight",
            "stages.2.focus.blocks.0.norm1.weight",
            "stages.3.blocks.1.norm1.weight",
            "head.weight",
        ]
        depths = [groups[name] for name in order]
        assert depths == sorted(set(depths))


@pytest.mark.parametrize("name", ["depths", "focus_depths", "embed_dims"])
def test_bad_arguments(name):
    with pytest.raises(ValueError, match=rf"{name}="):
        timm.create_model("overlock_xt", **{name: (1, 2, 3)})
