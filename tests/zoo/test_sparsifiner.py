"""What is Sparsifiner's own among the models: dropped patches, other image sizes, two classifiers."""

import pytest
import timm
import torch

import attnzoo
from attnzoo.layers.sparsifiner import resample_mixing

TINY = dict(depth=4, num_classes=5)


def build(name="sparsifiner_deit_tiny", **kwargs):
    torch.manual_seed(0)
    return timm.create_model(name, **{**TINY, **kwargs}).eval()


def test_dropped_patches_stay_dropped():
    model = build(depth=8, token_pruning_loc=[1, 6], token_keep_rate=0.5)
    with torch.no_grad():
        tokens = model.forward_intermediates(
            torch.randn(2, 3, 224, 224), output_fmt="NLC", intermediates_only=True, norm=False
        )
    kept = [(x != 0).any(-1) for x in tokens]
    assert [k.sum(1).tolist() for k in kept] == [[196] * 2] + [[98] * 2] * 5 + [[49] * 2] * 2
    assert not (kept[6] & ~kept[5]).any()


def test_keeping_all_patches_drops_none():
    image = torch.randn(1, 3, 224, 224)
    with torch.no_grad():
        assert torch.equal(build(token_pruning_loc=[1], token_keep_rate=1.0)(image), build()(image))


def test_another_size_than_the_predictors():
    model, fixed = build(), build(dynamic_img_size=False)
    with torch.no_grad():
        assert model(torch.randn(1, 3, 256, 320)).isfinite().all()
        assert torch.equal(fixed(image := torch.randn(1, 3, 224, 224)), model(image))
        with pytest.raises(ValueError, match=r"256×320 is not the 14×14 patches .* 224×224 works"):
            fixed(torch.randn(1, 3, 256, 320))


def test_a_checkpoint_for_another_size_is_resampled():
    source, model = build(), build(img_size=(256, 320), num_basis=32)
    model.load_state_dict(attnzoo.convert_checkpoint(source.state_dict(), model))
    key = "stages.2.attn.predictor.proj_n"
    expected = resample_mixing(source.state_dict()[key], (14, 14), (16, 20))
    assert torch.equal(model.state_dict()[key], expected)
    image = torch.randn(1, 3, 256, 320)
    with torch.no_grad():
        torch.testing.assert_close(model(image), source(image))
    with pytest.raises(ValueError, match="32 basis rows, the model 53: num_basis"):
        attnzoo.convert_checkpoint(source.state_dict(), build(img_size=(256, 320)))


def test_both_classifiers_of_lvvit():
    model = build("sparsifiner_lvvit_small", depth=2)
    image = torch.randn(2, 3, 64, 64)
    with torch.no_grad():
        tokens = model.forward_features(image)
        expected = model.head(tokens[:, 0]) + 0.5 * model.aux_head(tokens[:, 1:]).amax(1)
        torch.testing.assert_close(model(image), expected)
        assert [layer.out_features for layer in model.get_classifier()] == [5, 5]
        model.reset_classifier(3)
        assert model(image).shape == (2, 3)
        model.reset_classifier(0)
        assert torch.equal(model(image), tokens[:, 0])
        assert not [key for key in model.state_dict() if "head" in key]


@pytest.mark.parametrize(
    ("settings", "says"),
    [
        (dict(token_pruning_loc=[4]), r"token_pruning_loc=\(4,\)"),
        (dict(token_pruning_loc=[1], token_keep_rate=1.5), "token_keep_rate=1.5"),
        (dict(attn_keep_rate=2.0), "attn_keep_rate=2.0"),
        (dict(lvvit=True, patch_size=8), "patch_size=8"),
    ],
)
def test_arguments(settings, says):
    with pytest.raises(ValueError, match=says):
        build(**settings)
