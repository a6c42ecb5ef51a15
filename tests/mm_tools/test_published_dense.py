"""Published detectors and segmenters, rebuilt from the fixtures' key lists, load strictly into today's."""

from pathlib import Path

import pytest
import torch
from mmdet.registry import MODELS as DETECTORS
from mmengine.registry import init_default_scope
from mmengine.runner.checkpoint import load_checkpoint as mmengine_load
from mmseg.registry import MODELS as SEGMENTERS
from parity import index, load_spec, published_state, requires_fixture
from torch import nn

import attnzoo
from attnzoo.registry import Backbone
from attnzoo.tools.main import main
from attnzoo.weights import CheckpointError, convert_checkpoint, load_checkpoint, read_checkpoint

FIXTURES = sorted(index()["dense"]) or ["nat_mini_dense"]

# As files of MMDetection 2.x and MMSegmentation 0.x have them.
HEADS_2X = {
    "retinanet": """neck.lateral_convs.0.conv.weight neck.fpn_convs.4.conv.bias bbox_head.cls_convs.0.conv.weight
        bbox_head.reg_convs.3.conv.bias bbox_head.retina_cls.weight bbox_head.retina_reg.bias""",
    "mask_rcnn": """neck.fpn_convs.3.conv.weight rpn_head.rpn_conv.weight rpn_head.rpn_cls.bias rpn_head.rpn_reg.weight
        roi_head.bbox_head.shared_fcs.1.weight roi_head.bbox_head.fc_cls.weight roi_head.bbox_head.fc_reg.bias
        roi_head.mask_head.convs.3.conv.weight roi_head.mask_head.upsample.weight
        roi_head.mask_head.conv_logits.bias""",
    "cascade": """roi_head.bbox_head.0.shared_convs.0.conv.weight roi_head.bbox_head.2.fc_cls.weight
        roi_head.mask_head.1.conv_logits.weight""",
    "upernet": """decode_head.psp_modules.0.1.conv.weight decode_head.psp_modules.3.1.bn.running_var
        decode_head.bottleneck.conv.weight decode_head.lateral_convs.2.bn.weight decode_head.fpn_convs.0.conv.weight
        decode_head.fpn_bottleneck.bn.bias decode_head.conv_seg.weight auxiliary_head.convs.0.conv.weight
        auxiliary_head.convs.0.bn.running_mean auxiliary_head.conv_seg.bias""",
    "semantic_fpn": """neck.lateral_convs.0.conv.weight decode_head.scale_heads.3.4.conv.weight
        decode_head.scale_heads.0.0.bn.weight decode_head.conv_seg.weight""",
}


def build(kind: str, backbone: str) -> nn.Module:
    """A detector or segmenter of a shipped config, on meta: names and shapes only."""
    from mmengine.config import Config

    from attnzoo.tools.dense.config import shipped_configs

    word = {"retinanet": "retinanet", "mask_rcnn": "mask-rcnn", "cascade": "cascade-mask-rcnn", "upernet": "upernet",
            "semantic_fpn": "fpn"}[kind]  # fmt: skip
    scope = "mmseg" if kind in ("upernet", "semantic_fpn") else "mmdet"
    names = {name: path for name, path in shipped_configs().items() if name.rsplit("/", 1)[1].startswith(f"{word}_")}
    path = next(path for name, path in names.items() if name.startswith(scope))
    config = Config.fromfile(path)
    init_default_scope(scope)
    model = config.model
    given = attnzoo.Backbone(backbone, out_norm=True)
    model.backbone = dict(type="attnzoo.Backbone", name=backbone, out_norm=True)
    if model.get("neck"):
        model.neck.in_channels = given.out_channels
    else:
        model.decode_head.in_channels = given.out_channels
        if model.get("auxiliary_head"):
            model.auxiliary_head.in_channels = given.out_channels[model.auxiliary_head.in_index]
    with torch.device("meta"):
        return (SEGMENTERS if scope == "mmseg" else DETECTORS).build(model)


def published(model: nn.Module, inside: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """A file's state dict: the fixture's backbone, the model's own heads, mmcv's buffers of averages."""
    heads = {name: value for name, value in model.state_dict().items() if not name.startswith("backbone.")}
    averages = {"ema_backbone_norm0_weight": torch.zeros(3)}
    return {**{f"backbone.{name}": value for name, value in inside.items()}, **heads, **averages}


@pytest.mark.parametrize("kind", sorted(HEADS_2X))
def test_heads_have_kept_their_names(kind: str) -> None:
    own = build(kind, "dinat_nano").state_dict()
    assert set(HEADS_2X[kind].split()) <= own.keys()


@pytest.mark.parametrize("fixture", FIXTURES)
@pytest.mark.parametrize("kind", ["mask_rcnn", "upernet"])
def test_whole_models_convert(fixture: str, kind: str) -> None:
    spec = requires_fixture(fixture)
    model = build(kind, index()["dense"][fixture]["model"])
    state = published(model, published_state(spec, "meta"))
    found = convert_checkpoint({"state_dict": {f"module.{name}": value for name, value in state.items()}}, model)
    own = model.state_dict()
    assert {name for name in own if not name.endswith("num_batches_tracked")} <= found.keys() <= own.keys()
    assert all(found[name].shape == own[name].shape for name in found)
    assert convert_checkpoint(found, model) == found


class Segmenter(nn.Module):
    """The smallest model around a backbone."""

    def __init__(self, name: str) -> None:
        super().__init__()
        self.backbone = Backbone(name, out_norm=True)
        self.decode_head = nn.Conv2d(self.backbone.out_channels[-1], 2, 1)


@pytest.fixture(scope="module")
def file(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Segmenter, dict[str, torch.Tensor]]:
    """A published file as mmcv writes it, the model that it fits, and what must come out."""
    spec = load_spec("overlock_xt_dense")
    if spec is None:
        pytest.skip("no fixture overlock_xt_dense.json; set ATTNZOO_PARITY to the folder of the fixtures")
    model = Segmenter("overlock_xt")
    inside = {name: value.float() for name, value in published_state(spec).items()}
    state = published(model, inside)
    path = tmp_path_factory.mktemp("published") / "upernet_overlock_xt.pth"
    torch.save({"meta": {"mmseg_version": "0.30.0", "config": "model = None"}, "state_dict": state}, path)
    expected = attnzoo.Backbone("overlock_xt", out_norm=True)
    expected.load_state_dict(convert_checkpoint(inside, expected))
    return path, model, {f"backbone.{name}": value for name, value in expected.state_dict().items()}


def same(state: dict[str, torch.Tensor], expected: dict[str, torch.Tensor]) -> None:
    for name, value in expected.items():
        if not name.endswith("num_batches_tracked"):
            assert torch.equal(state[name], value), name


def test_a_file_loads_strictly(file) -> None:
    path, model, expected = file
    model = Segmenter("overlock_xt")
    report = load_checkpoint(model, path)
    assert report.missing == report.unexpected == ()
    same(model.state_dict(), expected)


def test_mmengine_converts_it_on_the_way(file) -> None:
    path, _, expected = file
    model = Segmenter("overlock_xt")
    mmengine_load(model, str(path), strict=False)
    same(model.state_dict(), expected)


def test_the_command_converts_it(file, tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    path, _, expected = file
    out = tmp_path / "out.safetensors"
    assert main(["weights", "convert", "overlock_xt", str(path), str(out)]) == 0
    assert "of a detector or segmenter" in capsys.readouterr().out
    state = read_checkpoint(out)
    same(state, expected)
    model = Segmenter("overlock_xt")
    assert model.load_state_dict(state, strict=False).unexpected_keys == []
    report = load_checkpoint(model, out)
    assert report.missing == ()


def test_another_backbone_is_refused(file, tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    path, _, _ = file
    with pytest.raises(CheckpointError, match="does not fit"):
        load_checkpoint(Segmenter("dinat_nano"), path)
    assert main(["weights", "convert", "nat_mini", str(path), str(tmp_path / "out.safetensors")]) == 2
    assert "does not hold a nat_mini as its backbone" in capsys.readouterr().err
