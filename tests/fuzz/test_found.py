"""What the fuzzer found: arguments that once failed deep inside, or were refused without being named."""

from typing import Any

import pytest
import timm
import torch

from attnzoo.kernels import sparse_attention

REFUSED = [
    ("agent_pvt_tiny", {"img_size": (64, 1)}, "img_size"),
    ("agent_swin_tiny", {"num_agents": (9, 16)}, "num_agents"),
    ("agent_pvt_tiny", {"agent_grids": ((2, 2),)}, "agent_grids"),
    ("agent_deit_tiny", {"patch_size": 0}, "patch_size"),
    ("biformer_tiny", {"full_attn_heads": 5}, "full_attn_heads"),
    ("biformer_tiny", {"full_attn_lepe": "q"}, "full_attn_lepe"),
    ("biformer_tiny", {"head_dim": 7}, "head_dim"),
    ("flowformer", {"num_heads": 0}, "num_heads"),
    ("l2vit_tiny", {"drop_path_rate": float("nan")}, "drop_path_rate"),
    ("mavit_tiny", {"depths": ()}, "depths"),
    ("nat_mini", {"embed_dim": -8}, "embed_dim"),
    ("nat_mini", {"in_chans": 0}, "in_chans"),
    ("nat_mini", {"drop_rate": 1.5}, "drop_rate"),
    ("nat_isotropic_small", {"kernel_size": 0}, "kernel_size"),
    ("overlock_xt", {"smk_size": 2}, "smk_size"),
    ("s2aformer_mini", {"qk_dim": 0}, "qk_dim"),
    ("sparsifiner_deit_tiny", {"reduce_c_factor": 0}, "reduce_c_factor"),
    ("van_b0", {"mlp_ratios": (8, 8)}, "mlp_ratios"),
    ("vit_small_gqa", {"depth": -1}, "depth"),
    ("van_b0", {"features_only": True, "out_indices": (0, 4)}, "out_indices"),
    ("vit_small_gqa", {"features_only": True, "out_indices": 0}, "out_indices"),
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


@pytest.mark.parametrize("name", ["agent_deit_tiny", "sparsifiner_deit_tiny", "vit_small_gqa"])
def test_an_image_without_axes_is_refused(name: str) -> None:
    with torch.device("meta"), pytest.raises(TypeError, match="an image must be floating point"):
        timm.create_model(name)(torch.zeros((), dtype=torch.uint8))


def test_a_mask_without_columns_is_named() -> None:
    x, columns = torch.zeros(1, 1, 1, 1), torch.zeros(1, 1, 1, 0, dtype=torch.int64)
    with pytest.raises(ValueError, match="mask"):
        sparse_attention(x, x, x, columns)
