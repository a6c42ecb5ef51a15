"""Models that are saved, and created again from what was saved, by timm's own ways."""

from pathlib import Path

import pytest
import timm
import torch
from timm.models import save_for_hf

import attnzoo
from attnzoo.weights import CheckpointError, load_checkpoint, save_safetensors

POOLS = [
    ("biformer_nano", "avg"),
    ("dinat_nano", "max"),
    ("van_b0", "avgmax"),
    ("s2aformer_mini", ""),
    ("vit_small_gqa", "token"),
]
RESAMPLED = [
    "agent_deit_tiny",
    "agent_pvt_tiny",
    "flowformer",
    "sparsifiner_deit_tiny",
    "vit_rpb_small",
    "vit_small_gqa",
]


@pytest.mark.parametrize(("name", "global_pool"), POOLS)
def test_timms_folder_for_the_hub(name: str, global_pool: str, tmp_path: Path) -> None:
    torch.manual_seed(0)
    classes = 4 if global_pool else 0
    model = timm.create_model(name, num_classes=classes, global_pool=global_pool).eval()
    save_for_hf(model, tmp_path)
    again = timm.create_model(f"local-dir:{tmp_path}", pretrained=True).eval()
    image = torch.randn(1, 3, 64, 64)
    with torch.no_grad():
        torch.testing.assert_close(again(image), model(image), rtol=0, atol=0)


@pytest.mark.parametrize("name", RESAMPLED)
def test_a_file_of_the_zoos_names_at_another_size(name: str, tmp_path: Path) -> None:
    """As ``attnzoo weights convert`` and training write it, through timm's checkpoint_path."""
    torch.manual_seed(0)
    kwargs = {"num_basis": 16} if name.startswith("sparsifiner") else {}
    small = timm.create_model(name, img_size=160, **kwargs).eval()
    file = str(tmp_path / "model.safetensors")
    save_safetensors(small.state_dict(), file)
    large = timm.create_model(name, img_size=192, checkpoint_path=file, **kwargs).eval()
    image = torch.randn(1, 3, 192, 192)
    with torch.no_grad():
        expected, found = small(image), large(image)
    # Agents' biases have a grid of their own: two interpolations there, one here.
    tolerance = 2e-2 if name.startswith("agent") else 1e-4
    assert (found - expected).norm() / expected.norm() < tolerance


@pytest.mark.parametrize("name", ["agent_pvt_tiny", "flowformer"])
def test_a_dense_backbone_of_the_zoos_names_at_another_size(name: str, tmp_path: Path) -> None:
    """Alone and inside a segmenter, whose training at one size goes on at another."""
    torch.manual_seed(0)
    small, large, again = (attnzoo.Backbone(name, img_size=size, out_norm=True).eval() for size in (160, 192, 192))
    torch.nn.init.constant_(small.norms[0].bias, 0.5)
    save_safetensors(small.state_dict(), tmp_path / "model.safetensors")
    load_checkpoint(large, tmp_path / "model.safetensors")
    inside = torch.nn.ModuleDict({"backbone": again})
    inside.load_state_dict({f"backbone.{key}": value for key, value in small.state_dict().items()})
    image = torch.randn(1, 3, 192, 192)
    with torch.no_grad():
        for expected, found, other in zip(small(image), large(image), again(image), strict=True):
            assert (found - expected).norm() / expected.norm() < 2e-2
            torch.testing.assert_close(other, found, rtol=0, atol=0)


def test_a_published_file_with_a_number_that_is_none(tmp_path: Path) -> None:
    state = timm.create_model("agent_deit_tiny").state_dict()
    state = {key.replace("stem.", "patch_embed."): value for key, value in state.items()}
    state["patch_embed.proj.weight"] = torch.full_like(state["patch_embed.proj.weight"], torch.nan)
    torch.save({"model": state}, tmp_path / "published.pth")
    with pytest.raises(CheckpointError, match="NaN"):
        timm.create_model("agent_deit_tiny", checkpoint_path=str(tmp_path / "published.pth"))
