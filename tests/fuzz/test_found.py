"""What the fuzzer found: arguments that once failed deep inside, or were refused without being named."""

from pathlib import Path
from typing import Any

import pytest
import timm
import torch

from attnzoo.kernels import dynamic_depthwise_conv, sparse_attention, use_backend
from attnzoo.tools.cli import UserError
from attnzoo.tools.evaluation.class_map import load_class_map
from attnzoo.tools.training.config import load_recipe

REFUSED = [
    ("agent_pvt_tiny", {"img_size": (64, 1)}, "img_size"),
    ("agent_cswin_tiny", {"img_size": 1}, "img_size"),
    ("agent_swin_tiny", {"num_agents": (9, 16)}, "num_agents"),
    ("agent_pvt_tiny", {"agent_grids": ((2, 2),)}, "agent_grids"),
    ("agent_deit_tiny", {"patch_size": 0}, "patch_size"),
    ("biformer_tiny", {"full_attn_heads": 5}, "full_attn_heads"),
    ("biformer_tiny", {"full_attn_lepe": "q"}, "full_attn_lepe"),
    ("biformer_tiny", {"head_dim": 7}, "head_dim"),
    ("biformer_tiny", {"num_regions": 1}, "num_regions"),
    ("flowformer", {"num_heads": 0}, "num_heads"),
    ("l2vit_tiny", {"drop_path_rate": float("nan")}, "drop_path_rate"),
    ("mavit_tiny", {"depths": ()}, "depths"),
    ("nat_mini", {"embed_dim": -8}, "embed_dim"),
    ("nat_mini", {"in_chans": 0}, "in_chans"),
    ("nat_mini", {"drop_rate": 1.5}, "drop_rate"),
    ("nat_isotropic_small", {"kernel_size": 0}, "kernel_size"),
    ("overlock_xt", {"smk_size": 2}, "smk_size"),
    ("overlock_xt", {"kernel_sizes": (17, 15, 13, 3)}, "kernel_sizes"),
    ("s2aformer_mini", {"qk_dim": 0}, "qk_dim"),
    ("sparsifiner_deit_tiny", {"reduce_c_factor": 0}, "reduce_c_factor"),
    ("van_b0", {"mlp_ratios": (8, 8)}, "mlp_ratios"),
    ("vit_small_gqa", {"depth": -1}, "depth"),
    ("van_b0", {"features_only": True, "out_indices": (0, 4)}, "out_indices"),
    ("vit_small_gqa", {"features_only": True, "out_indices": 0}, "out_indices"),
    ("van_b0", {"features_only": True, "out_indices": (2, 0)}, "out_indices.*rising"),
    ("flowformer", {"features_only": True, "out_indices": (1, -3)}, "out_indices.*rising"),
]


@pytest.mark.parametrize(("name", "kwargs", "argument"), REFUSED)
def test_the_argument_is_named(name: str, kwargs: dict[str, Any], argument: str) -> None:
    with torch.device("meta"), pytest.raises((TypeError, ValueError), match=argument):
        timm.create_model(name, **kwargs)


@pytest.mark.parametrize("name", ["agent_pvt_tiny", "biformer_stl"])
def test_a_narrow_image_is_refused_before_the_last_stage(name: str) -> None:
    with torch.device("meta"):
        model = timm.create_model(name).eval()
        assert model(torch.zeros(1, 3, 32, 40)).shape == (1, 1000)
        with pytest.raises(ValueError, match="an image of 31x192 is too small; images of 32x32 and more work"):
            model(torch.zeros(1, 3, 31, 192))


@pytest.mark.parametrize("name", ["biformer_tiny", "overlock_xt", "van_b0"])
def test_logits_at_every_position_of_a_map_channels_first(name: str) -> None:
    with torch.device("meta"):
        model = timm.create_model(name, global_pool="", num_classes=5).eval()
        assert model(torch.zeros(2, 3, 64, 96)).shape == (2, 5, 2, 3)


@pytest.mark.parametrize("name", ["agent_deit_tiny", "sparsifiner_deit_tiny", "vit_small_gqa"])
def test_an_image_without_axes_is_refused(name: str) -> None:
    with torch.device("meta"), pytest.raises(TypeError, match="an image must be floating point"):
        timm.create_model(name)(torch.zeros((), dtype=torch.uint8))


def test_the_softmax_of_narrower_weights_is_as_exact_as_the_values() -> None:
    torch.manual_seed(0)
    x, weight = torch.randn(1, 4, 4, 2, 3, dtype=torch.float64), torch.randn(1, 4, 4, 2, 9)
    with use_backend("reference"):
        wanted = dynamic_depthwise_conv(x, weight, softmax=True)
    torch.testing.assert_close(dynamic_depthwise_conv(x, weight, softmax=True), wanted, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("text", ["[" * 2000 + "]" * 2000, "seed: 2026-99-99"])
def test_yaml_that_yaml_cannot_read(text: str, tmp_path: Path) -> None:
    (tmp_path / "recipe.yaml").write_text(text)
    with pytest.raises(UserError, match="is not YAML"):
        load_recipe(tmp_path / "recipe.yaml")


@pytest.mark.parametrize("key", ["optimizer.lr", "batch_size"])
def test_a_number_beyond_all_floats(key: str) -> None:
    with pytest.raises(UserError, match=f"{key} is 1000"):
        load_recipe("nat_mini_in1k", [f"{key}=1{'0' * 400}"])


def test_a_class_map_nested_too_deep(tmp_path: Path) -> None:
    (tmp_path / "map.json").write_text("[" * 200_000)
    with pytest.raises(UserError, match="no valid JSON"):
        load_class_map(str(tmp_path / "map.json"))


def test_a_mask_without_columns_is_named() -> None:
    x, columns = torch.zeros(1, 1, 1, 1), torch.zeros(1, 1, 1, 0, dtype=torch.int64)
    with pytest.raises(ValueError, match="mask"):
        sparse_attention(x, x, x, columns)
