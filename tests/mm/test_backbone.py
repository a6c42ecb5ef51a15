"""attnzoo.Backbone as an MMEngine module: weights, initialisation, freezing, and channels against necks and heads."""

import hashlib
from pathlib import Path

import pytest
import torch
from file_server import FileServer
from safetensors.torch import save
from torch import nn

from attnzoo.registry import MODELS, Backbone
from attnzoo.weights import CheckpointError, save_safetensors

from mmengine.model import BaseModule, Sequential  # isort: skip


class Part(BaseModule):
    """What a neck or head shows of itself."""

    def __init__(self, **settings: object) -> None:
        super().__init__()
        for name, value in settings.items():
            setattr(self, name, value)


class Whole(BaseModule):
    """A detector as MMDetection builds them: the parts in turn, none told of another."""

    def __init__(self, backbone: nn.Module, **parts: nn.Module | None) -> None:
        super().__init__()
        self.backbone = backbone
        for name, part in parts.items():
            setattr(self, name, part)


@pytest.fixture(scope="module")
def nano() -> Backbone:
    return MODELS.build(dict(type="attnzoo.Backbone", name="biformer_nano"))


def test_is_a_base_module_that_gives_a_tuple(nano: Backbone) -> None:
    assert isinstance(nano, BaseModule)
    maps = nano(torch.randn(1, 3, 64, 96))
    assert isinstance(maps, tuple)
    assert [m.shape[1] for m in maps] == nano.out_channels == [32, 48, 96, 160]


def test_initialisation_stays_unless_init_cfg_says_otherwise() -> None:
    backbone = Backbone("biformer_nano")
    before = {name: value.clone() for name, value in backbone.state_dict().items()}
    backbone.init_weights()
    assert all(torch.equal(value, before[name]) for name, value in backbone.state_dict().items())
    constant = Backbone("biformer_nano", init_cfg=dict(type="Constant", layer="Conv2d", val=0.5))
    Whole(constant).backbone.init_weights()
    convolutions = [module for module in constant.modules() if isinstance(module, nn.Conv2d)]
    assert convolutions and all((module.weight == 0.5).all() for module in convolutions)


@pytest.mark.parametrize("how", ["checkpoint", "init_cfg"])
def test_loaded_weights_are_not_initialised_again(how: str, tmp_path: Path) -> None:
    file = tmp_path / "weights.safetensors"
    source = Backbone("biformer_nano")
    save_safetensors(source.body.state_dict(), file)
    constant = dict(type="Constant", layer="Conv2d", val=0.5)
    if how == "checkpoint":
        arguments = dict(checkpoint=str(file), init_cfg=constant)
    else:
        arguments = dict(init_cfg=[constant, dict(type="Pretrained", checkpoint=str(file))])
    backbone = Backbone("biformer_nano", out_norm=True, **arguments)
    assert backbone.is_init
    backbone.init_weights()
    assert all(torch.equal(value, backbone.state_dict()[name]) for name, value in source.state_dict().items())


def test_weights_from_two_places_or_none(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"one place; got pretrained=True, 'a\.pth'"):
        Backbone("biformer_nano", pretrained=True, init_cfg=dict(type="Pretrained", checkpoint="a.pth"))
    with pytest.raises(CheckpointError, match=r"absent\.pth"):
        Backbone("biformer_nano", checkpoint=str(tmp_path / "absent.pth"))


def test_weights_from_an_address(server: FileServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As MMEngine's own ``init_cfg`` takes them; a hash in the file's name is checked."""
    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    source = Backbone("biformer_nano")
    content = save(source.state_dict())
    right, wrong = (f"/nano-{digits}.pth" for digits in (hashlib.sha256(content).hexdigest()[:8], "0123abcd"))
    server.files = {right: content, wrong: content}
    backbone = Backbone("biformer_nano", init_cfg=dict(type="Pretrained", checkpoint=server.url(right)))
    assert all(torch.equal(value, backbone.state_dict()[name]) for name, value in source.state_dict().items())
    with pytest.raises(CheckpointError, match="SHA-256"):
        Backbone("biformer_nano", checkpoint=server.url(wrong))


def test_a_prefix_is_the_backbones_or_refused(tmp_path: Path) -> None:
    source = Backbone("biformer_nano").body.state_dict()
    for prefix in ("backbone", "encoder"):
        save_safetensors({f"{prefix}.{name}": value for name, value in source.items()}, tmp_path / prefix)

    def build(prefix: str) -> Backbone:
        init_cfg = dict(type="Pretrained", checkpoint=str(tmp_path / prefix.rstrip(".")), prefix=prefix)
        return Backbone("biformer_nano", init_cfg=init_cfg)

    for prefix in ("backbone", "backbone."):
        assert all(torch.equal(value, source[name]) for name, value in build(prefix).body.state_dict().items())
    with pytest.raises(ValueError, match=r"prefix='encoder\.'; only 'backbone\.' works"):
        build("encoder.")


@pytest.mark.parametrize(
    "init_cfg",
    [
        dict(checkpoint="a.pth"),
        dict(type="Pretrained"),
        dict(type="Pretrained", checkpoint=None),
        [dict(layer="Conv2d")],
    ],
)
def test_an_incomplete_init_cfg(init_cfg: object) -> None:
    with pytest.raises(ValueError, match=r"lacks its type or its checkpoint, as in dict\(type='Pretrained'"):
        Backbone("biformer_nano", init_cfg=init_cfg)


def test_frozen_stages_and_norm_eval_survive_train() -> None:
    backbone = Backbone("pvt_v2_b0", frozen_stages=1).train()
    assert all(not p.requires_grad for p in backbone.body.patch_embed.parameters())
    assert [all(p.requires_grad for p in stage.parameters()) for stage in backbone.body.stages] == [0, 0, 1, 1]
    assert [stage.training for stage in backbone.body.stages] == [False, False, True, True]
    norms = Backbone("resnet18", out_indices=(1, 2, 3, 4), norm_eval=True).train().modules()
    assert not any(module.training for module in norms if isinstance(module, nn.BatchNorm2d))


def test_neck_with_the_right_channels(nano: Backbone) -> None:
    Whole(
        nano, neck=Part(in_channels=[32, 48, 96, 160]), decode_head=Part(in_channels=[256] * 4, in_index=[0, 1, 2, 3])
    )
    Whole(nano, neck=Part(in_channels=(32, 48, 96, 160)))
    Whole(nano, neck=Part(), head=Part(in_channels=160))
    Whole(nano, neck=None, decode_head=Part(in_channels=[48, 160], in_index=[1, 3]))
    Whole(nano, decode_head=Part(in_channels=32 + 96, in_index=[0, 2]), auxiliary_head=Part(in_channels=96, in_index=2))
    Whole(nn.Identity(), neck=Part(in_channels=[1, 2]))


@pytest.mark.parametrize(
    ("parts", "message"),
    [
        (
            dict(neck=Part(in_channels=[256, 512, 1024, 2048])),
            r"neck.in_channels=\[256, 512, 1024, 2048\]: biformer_nano with out_indices=\(0, 1, 2, 3\) gives "
            r"\[32, 48, 96, 160\]",
        ),
        (dict(neck=Part(in_channels=[32, 48, 96])), r"gives \[32, 48, 96, 160\]"),
        (dict(neck=Sequential(Part(in_channels=[1] * 4), Part(in_channels=[2] * 4))), r"neck.in_channels=\[1, 1"),
        (dict(neck=Part(in_channels=2048)), r"neck.in_channels=2048: .* gives 160"),
        (dict(decode_head=Part(in_channels=[32, 48], in_index=[1, 3])), r"decode_head.* gives \[48, 160\]"),
        (dict(decode_head=Part(in_channels=100, in_index=[0, 1])), r"gives 80"),
        (dict(decode_head=Part(in_channels=100, in_index=9)), r"decode_head.in_index=9: .* gives 4 maps"),
        (dict(neck=Part(), head=Part(in_channels=512)), r"head.in_channels=512"),
    ],
)
def test_neck_or_head_of_another_backbone(nano: Backbone, parts: dict[str, nn.Module], message: str) -> None:
    with pytest.raises(ValueError, match=message) as caught:
        Whole(nano, **parts)
    assert "\n" not in str(caught.value)


def test_out_indices_decide_the_channels() -> None:
    backbone = Backbone("biformer_nano", out_indices=(1, 3))
    Whole(backbone, neck=Part(in_channels=[48, 160]))
    with pytest.raises(ValueError, match=r"out_indices=\(1, 3\) gives \[48, 160\]"):
        Whole(backbone, neck=Part(in_channels=[32, 48, 96, 160]))


def test_a_module_of_ones_own_is_not_looked_at(nano: Backbone) -> None:
    class Own(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.backbone = nano
            self.head = nn.Conv2d(32, 1, 1)

    Own()
    Whole(nano, head=nn.Conv2d(32, 1, 1))
