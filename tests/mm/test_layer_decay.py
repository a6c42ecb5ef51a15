"""LayerDecay's parameter groups, against rates and decays worked out by name."""

import pytest
import torch
from torch import nn

from attnzoo.registry import Backbone

from mmengine.optim import build_optim_wrapper  # isort: skip

LR, DECAY, RATE = 1e-3, 0.05, 0.5


class Detector(nn.Module):
    def __init__(self, name: str = "biformer_nano", **settings: object) -> None:
        super().__init__()
        self.backbone = Backbone(name, out_norm=True, **settings)
        self.head = nn.Conv2d(8, 4, 1)


def _groups(model: nn.Module, **paramwise: object) -> tuple[dict[str, tuple[float, float]], int]:
    """Learning rate and weight decay by parameter, and the number of groups."""
    wrapper = build_optim_wrapper(
        model,
        dict(
            type="OptimWrapper",
            constructor="attnzoo.LayerDecay",
            optimizer=dict(type="AdamW", lr=LR, weight_decay=DECAY),
            paramwise_cfg=dict(layer_decay=RATE, **paramwise),
        ),
    )
    names = {id(parameter): name for name, parameter in model.named_parameters()}
    groups = wrapper.optimizer.param_groups
    found = [(names[id(p)], (group["lr"], group["weight_decay"])) for group in groups for p in group["params"]]
    assert len(found) == len(dict(found))
    return dict(found), len(groups)


def test_rates_fall_towards_the_stem() -> None:
    model = Detector()
    found, count = _groups(model)
    assert found.keys() == dict(model.named_parameters()).keys()
    blocks = [
        f"backbone.body.stages.{s}.blocks.{b}."
        for s, stage in enumerate(model.backbone.body.stages)
        for b in range(len(stage.blocks))
    ]
    layers = len(blocks) + 1  # and the stem
    for name, parameter in model.named_parameters():
        lr, decay = found[name]
        if name.startswith("backbone.body.stem"):
            assert lr == pytest.approx(LR * RATE**layers), name
        block = next((i for i, prefix in enumerate(blocks) if name.startswith(prefix)), None)
        if block is not None:
            assert lr == pytest.approx(LR * RATE ** (layers - 1 - block)), name
        if name.startswith(("head", "backbone.norms")):
            assert lr == LR, name
        assert decay == (0.0 if parameter.ndim <= 1 else DECAY), name
    assert count <= 2 * (layers + 1)


def test_timm_models_have_layers_too() -> None:
    found, _ = _groups(Detector("pvt_v2_b0"))
    rates = [found[f"backbone.body.stages.{stage}.blocks.1.mlp.fc1.weight"][0] for stage in range(4)]
    assert rates == sorted(rates) and rates[-1] == pytest.approx(LR * RATE)
    assert found["backbone.body.patch_embed.proj.weight"][0] < rates[0]


def test_names_without_decay() -> None:
    model = Detector("nat_mini")
    found, _ = _groups(model)
    named = {f"backbone.body.{name}" for name in model.backbone.body.no_weight_decay()}
    matrices = [name for name in named if dict(model.named_parameters())[name].ndim > 1]
    assert matrices
    assert all(found[name][1] == 0.0 for name in matrices)


def test_custom_keys_multiply_rates_and_decide_decay() -> None:
    plain, _ = _groups(Detector())
    found, _ = _groups(
        Detector(),
        custom_keys={"stages.1": dict(lr_mult=0.1), "head.bias": dict(decay_mult=2.0), "stem": dict(decay_mult=0.0)},
    )
    for name, (lr, decay) in plain.items():
        expected = (lr * 0.1 if "stages.1" in name else lr, decay)
        if name == "head.bias":
            expected = (lr, 2 * DECAY)
        elif "stem" in name:
            expected = (lr, 0.0)
        assert found[name] == pytest.approx(expected), name


def test_frozen_parameters_are_left_out() -> None:
    found, _ = _groups(Detector(frozen_stages=0))
    assert not any(name.startswith(("backbone.body.stem", "backbone.body.stages.0.")) for name in found)
    assert any(name.startswith("backbone.body.stages.1.") for name in found)


@pytest.mark.parametrize("paramwise", [None, {}, {"layer_decay": 0}, {"layer_decay": 1.5}, {"layer_decay": "0.9"}])
def test_rates_that_make_no_sense(paramwise: dict[str, object] | None) -> None:
    cfg = dict(constructor="attnzoo.LayerDecay", optimizer=dict(type="SGD", lr=0.1), paramwise_cfg=paramwise)
    with pytest.raises(ValueError, match=rf"paramwise_cfg.layer_decay={(paramwise or {}).get('layer_decay')}:"):
        build_optim_wrapper(nn.Linear(2, 2), cfg)


def test_layer_decay_needs_a_rate_to_lower() -> None:
    cfg = dict(constructor="attnzoo.LayerDecay", optimizer=dict(type="Adam"), paramwise_cfg=dict(layer_decay=0.9))
    with pytest.raises(ValueError, match=r"optimizer\.lr is missing"):
        build_optim_wrapper(nn.Linear(2, 2), cfg)


def test_one_step_moves_layers_by_their_rates() -> None:
    model = Detector()
    wrapper = build_optim_wrapper(
        model,
        dict(
            constructor="attnzoo.LayerDecay",
            optimizer=dict(type="SGD", lr=1.0),
            paramwise_cfg=dict(layer_decay=RATE),
        ),
    )
    before = {name: p.detach().clone() for name, p in model.named_parameters()}
    wrapper.update_params(sum(p.sum() for p in model.parameters()))
    moved = {name: (before[name] - p).mean().item() for name, p in model.named_parameters()}
    assert moved["head.weight"] == pytest.approx(1.0, rel=1e-4)
    assert moved["backbone.body.stages.3.blocks.0.block.mlp.fc2.weight"] == pytest.approx(RATE, rel=1e-4)
    assert torch.tensor(list(moved.values())).min() > 0
