"""The dense backbone around timm's models: their stems, stages, layouts, sizes and checkpoints are each their own."""

from pathlib import Path

import pytest
import timm
import torch

import attnzoo
from attnzoo.weights import CheckpointError, save_safetensors

# By model: the stages that a neck takes, and what is frozen up to the first of them.
MODELS = {
    "pvt_v2_b0": ((0, 1, 2, 3), ("patch_embed", "stages.0")),
    "convnext_atto": ((0, 1, 2, 3), ("stem", "stages.0")),
    "swin_tiny_patch4_window7_224": ((0, 1, 2, 3), ("patch_embed", "layers.0")),
    "resnet18": ((1, 2, 3, 4), ("conv1", "bn1", "layer1")),
    "nextvit_small": ((0, 1, 2, 3), ("stem", "stages.0")),
    "mobilevitv2_050": ((1, 2, 3, 4), ("stem", "stages.0", "stages.1")),
}


@pytest.mark.parametrize("name", sorted(MODELS))
def test_maps_and_freezing(name: str) -> None:
    out_indices, frozen = MODELS[name]
    backbone = attnzoo.Backbone(name, out_indices=out_indices, frozen_stages=out_indices[0], drop_path_rate=0.0).train()
    # MobileViT rounds a map up to whole patches of two where a side is no multiple of 64.
    height, width = (64, 128) if name.startswith("mobilevit") else (64, 96)
    maps = backbone(torch.randn(2, 3, height, width))
    assert [tuple(m.shape) for m in maps] == [
        (2, channels, height // stride, width // stride)
        for channels, stride in zip(backbone.out_channels, (4, 8, 16, 32), strict=True)
    ]
    for parameter, p in backbone.body.named_parameters():
        assert p.requires_grad != parameter.startswith(tuple(f"{part}." for part in frozen)), parameter
    for part in frozen:
        assert not any(module.training for module in backbone.body.get_submodule(part).modules())
    sum(m.square().mean() for m in maps).backward()
    assert all((p.grad is not None) == p.requires_grad for p in backbone.parameters())


def test_hiera_whose_second_argument_is_a_mask() -> None:
    backbone = attnzoo.Backbone("hiera_tiny_224", img_size=(64, 96), out_norm=True)
    maps = backbone(torch.randn(1, 3, 64, 96))
    assert [tuple(m.shape[1:]) for m in maps] == [(96, 16, 24), (192, 8, 12), (384, 4, 6), (768, 2, 3)]


def test_stem_alone_is_stage_zero_of_a_resnet() -> None:
    backbone = attnzoo.Backbone("resnet18", out_indices=(1, 2, 3, 4), frozen_stages=0)
    frozen = {name.split(".")[1] for name, p in backbone.named_parameters() if not p.requires_grad}
    assert frozen == {"conv1", "bn1"}


def test_position_embeddings_freeze_with_the_stem() -> None:
    backbone = attnzoo.Backbone("vit_tiny_patch16_224", out_indices=(2, 5, 8, 11), frozen_stages=2)
    assert not backbone.body.pos_embed.requires_grad and not backbone.body.cls_token.requires_grad
    assert [all(p.requires_grad for p in block.parameters()) for block in backbone.body.blocks] == [False] * 3 + [
        True
    ] * 9


@pytest.mark.parametrize("name", ["swin_tiny_patch4_window7_224", "vit_tiny_patch16_224"])
def test_any_size_is_the_models_own_at_its_own_size(name: str) -> None:
    """What lets other sizes in does not change the features of the published size."""
    indices = (0, 3)
    torch.manual_seed(0)
    backbone = attnzoo.Backbone(name, out_indices=indices).eval()
    original = timm.create_model(name, num_classes=0).eval()
    original.load_state_dict(backbone.body.state_dict(), strict=False)
    image = torch.randn(1, 3, 224, 224)
    with torch.no_grad():
        expected = original.forward_intermediates(image, list(indices), intermediates_only=True)
        for found, each in zip(backbone(image), expected, strict=True):
            torch.testing.assert_close(found, each)
    with pytest.raises(AssertionError, match="224"):
        original(torch.randn(1, 3, 96, 160))


@pytest.mark.parametrize("name", ["pvt_v2_b0", "resnet18", "swin_tiny_patch4_window7_224"])
def test_a_classifiers_checkpoint_fits(name: str, tmp_path: Path) -> None:
    """With its head, its last norm and the stages after the last map, which the backbone does without."""
    classifier = timm.create_model(name)
    save_safetensors(classifier.state_dict(), tmp_path / "classifier.safetensors")
    out_indices = MODELS[name][0][:3]
    backbone = attnzoo.Backbone(
        name, out_indices=out_indices, out_norm=True, checkpoint=str(tmp_path / "classifier.safetensors")
    )
    own = classifier.state_dict()
    assert all(torch.equal(value, own[key]) for key, value in backbone.body.state_dict().items())


def test_another_models_checkpoint_does_not_fit(tmp_path: Path) -> None:
    save_safetensors(timm.create_model("resnet18").state_dict(), tmp_path / "resnet.safetensors")
    with pytest.raises(CheckpointError, match="does not fit"):
        attnzoo.Backbone("pvt_v2_b0", checkpoint=str(tmp_path / "resnet.safetensors"))


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (dict(name="pvt_v2_b00"), r"there is no model 'pvt_v2_b00'; did you mean pvt_v2_b0"),
        (dict(name="biformer_tinny"), r"did you mean biformer_tiny"),
        (dict(name="zzz"), r"^there is no model 'zzz'$"),
        (dict(name="resnet18", out_indices=(1, 5)), r"out_indices=\(1, 5\): resnet18 has stages 0 to 4"),
        (dict(name="pvt_v2_b0", out_indices=(2, 1)), r"stages 0 to 3, in rising order"),
        (dict(name="pvt_v2_b0", out_indices=()), r"out_indices=\(\)"),
        (dict(name="pvt_v2_b0", frozen_stages=4), r"frozen_stages=4: pvt_v2_b0 has stages 0 to 3; -1 freezes none"),
        (dict(name="hrnet_w18_small", frozen_stages=1), r"hrnet_w18_small has no (module|stages)"),
        (dict(name="resnet18", no_such_argument=1), r"no_such_argument"),
    ],
)
def test_arguments_that_do_not_fit(arguments: dict[str, object], message: str) -> None:
    with pytest.raises((ValueError, TypeError), match=message) as caught:
        attnzoo.Backbone(**arguments)
    assert "\n" not in str(caught.value)
