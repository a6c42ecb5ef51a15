"""convert_checkpoint: the family's own conversion is found, once is as good as twice."""

import sys
import types

import pytest
import timm
import torch
from torch import nn

import attnzoo
from attnzoo.weights import CheckpointError, convert_checkpoint


class Net(nn.Module):
    """A model whose published names and layout are not its own."""

    def __init__(self, num_classes: int = 5) -> None:
        super().__init__()
        self.stem = nn.Linear(3, 4)
        self.head = nn.Linear(4, num_classes) if num_classes else nn.Identity()


@pytest.fixture
def calls(monkeypatch):
    """Puts Net into a module of its own with a conversion that is not idempotent, and counts its calls."""
    family = types.ModuleType("family_of_net")
    family.calls = 0

    def checkpoint_filter_fn(state_dict, model):
        family.calls += 1
        return {
            name.replace("patch_embed", "stem"): tensor.flatten(1) if tensor.ndim == 4 else tensor
            for name, tensor in ((name, state_dict[name]) for name in ("patch_embed.weight", *_rest(state_dict)))
        }

    family.checkpoint_filter_fn = checkpoint_filter_fn
    monkeypatch.setitem(sys.modules, "family_of_net", family)
    monkeypatch.setattr(Net, "__module__", "family_of_net")
    return family


def _rest(state_dict):
    return [name for name in state_dict if name != "patch_embed.weight"]


def published(model: Net) -> dict[str, torch.Tensor]:
    return {
        name.replace("stem", "patch_embed"): tensor[..., None, None] if name == "stem.weight" else tensor
        for name, tensor in model.state_dict().items()
    }


def test_it_is_a_public_name():
    assert attnzoo.convert_checkpoint is convert_checkpoint


def test_published_names_go_through_the_familys_conversion(calls):
    model = Net()
    converted = convert_checkpoint(
        {"model": {f"module.{k}": v for k, v in published(model).items()}, "epoch": 1}, model
    )
    assert calls.calls == 1
    model.load_state_dict(converted, strict=True)
    assert torch.equal(converted["stem.weight"], model.stem.weight)


def test_the_models_own_names_pass_through(calls):
    model = Net()
    once = convert_checkpoint(published(model), model)
    twice = convert_checkpoint(once, model)
    assert twice.keys() == once.keys()
    assert all(twice[name] is once[name] for name in once)
    assert calls.calls == 1


def test_own_names_pass_through_without_their_head_and_with_one_too_many(calls):
    own = Net().state_dict()
    assert convert_checkpoint(own, Net(num_classes=0)).keys() == own.keys()
    headless = Net(num_classes=0).state_dict()
    assert convert_checkpoint(headless, Net()).keys() == headless.keys()
    assert calls.calls == 0


def test_another_networks_names_are_refused_with_the_first_keys(calls):
    with pytest.raises(CheckpointError, match=r"cannot be converted for Net \(KeyError: .*first keys are a, b$"):
        convert_checkpoint({"a": torch.ones(1), "b": torch.ones(1)}, Net())


def test_models_without_a_conversion_keep_their_names():
    model = Net()
    assert convert_checkpoint({"state_dict": {"x": torch.ones(1)}}, model).keys() == {"x"}


def test_the_model_inside_timms_feature_wrapper_is_used(calls, monkeypatch):
    features = timm.create_model("test_vit", features_only=True)
    seen = []
    monkeypatch.setattr(
        sys.modules[type(features.model).__module__],
        "checkpoint_filter_fn",
        lambda state_dict, model: seen.append(model) or state_dict,
    )
    convert_checkpoint({"x": torch.ones(1)}, features)
    assert seen == [features.model]


def test_timm_calls_it_with_the_checkpoint_first():
    model = timm.create_model("nat_mini", num_classes=3, embed_dim=16, num_heads=[1, 2, 4, 8], depths=[1, 1, 1, 1])
    converted = convert_checkpoint({"levels.0.blocks.0.attn.rpb": torch.zeros(1, 13, 13)}, model)
    assert list(converted) == ["stages.0.blocks.0.attn.rel_pos_bias"]
