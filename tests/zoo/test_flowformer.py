"""What is Flowformer's own: a position embedding that fits any image."""

import pytest
import timm
import torch

from attnzoo import convert_checkpoint

SMALL = dict(embed_dims=(24, 24), depths=(1, 1), num_classes=3)


@pytest.fixture
def published() -> dict[str, torch.Tensor]:
    """A small model's weights under the published names, as thop's counters leave the file."""
    model = timm.create_model("flowformer", img_size=32, **SMALL)
    names = {"stem.pos_embed": "pos_embed", "stem.": "patch_embed.0.", "stages.1.downsample.": "patch_embed.1."}
    state = {}
    for key, value in model.state_dict().items():
        old = next((to + key.removeprefix(own) for own, to in names.items() if key.startswith(own)), key)
        state[old.replace("stages.", "blocks.").replace(".blocks.", ".").replace("ls2.gamma", "gamma")] = value
    return state | {"total_ops": torch.zeros(1), "blocks.0.0.attn.total_params": torch.zeros(1)}


def test_same_size_is_loaded_as_it_is(published):
    model = timm.create_model("flowformer", img_size=32, **SMALL)
    model.load_state_dict(convert_checkpoint(published, model), strict=True)
    assert torch.equal(model.stem.pos_embed, published["pos_embed"])
    assert torch.equal(model.stages[1].blocks[0].ls2.gamma, published["blocks.1.0.gamma"])


def test_other_size_is_resized_when_loaded_and_when_run(published):
    small = timm.create_model("flowformer", img_size=32, **SMALL).eval()
    small.load_state_dict(convert_checkpoint(published, small), strict=True)
    wide = timm.create_model("flowformer", img_size=(48, 64), **SMALL).eval()
    wide.load_state_dict(convert_checkpoint(published, wide), strict=True)
    assert wide.stem.pos_embed.shape == (1, 12 * 16, 24)
    image = torch.randn(1, 3, 48, 64)
    with torch.no_grad():
        torch.testing.assert_close(small(image), wide(image))
