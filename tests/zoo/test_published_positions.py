"""A published position embedding is a square image's, whatever image of as many patches the model is made for."""

import re

import pytest
import timm
import torch
from timm.layers import resample_abs_pos_embed

from attnzoo import convert_checkpoint

# 14×14 patches of 16 pixels, and as many in 7×28.
WIDE = (112, 448)
PUBLISHED = [(r"^stem\.", "patch_embed."), (r"^stages\.", "blocks.")]
RULES = {
    "agent_deit_tiny": PUBLISHED,
    "vit_small_gqa": PUBLISHED,
    "sparsifiner_deit_tiny": [*PUBLISHED, (r"\.attn\.predictor\.", ".attn.mask_predictor.")],
    "flowformer": [
        (r"^stem\.pos_embed$", "pos_embed"),
        (r"^stem\.", "patch_embed.0."),
        (r"^stages\.(\d)\.downsample\.", r"patch_embed.\1."),
        (r"^stages\.(\d)\.blocks\.(\d+)\.", r"blocks.\1.\2."),
    ],
    "agent_pvt_tiny": [
        (r"^stem\.pos_embed$", "pos_embed1"),
        (r"^stem\.", "patch_embed1."),
        (r"^stages\.(\d)\.downsample\.pos_embed$", lambda match: f"pos_embed{int(match[1]) + 1}"),
        (r"^stages\.(\d)\.downsample\.", lambda match: f"patch_embed{int(match[1]) + 1}."),
        (r"^stages\.(\d)\.blocks\.", lambda match: f"block{int(match[1]) + 1}."),
    ],
}


def published(name: str) -> dict[str, torch.Tensor]:
    state = {}
    for key, value in timm.create_model(name).state_dict().items():
        old = key
        for pattern, replacement in RULES[name]:
            old = re.sub(pattern, replacement, old)
        state[old] = value.flatten(1, 2) if value.ndim == 4 and "pos_embed" in old else value
    if name == "agent_pvt_tiny":
        for key in [key for key in state if ".attn.qkv." in key]:
            q, *kv = state.pop(key).chunk(3)
            state |= {key.replace(".qkv.", ".q."): q, key.replace(".qkv.", ".kv."): torch.cat(kv)}
    return state


@pytest.mark.parametrize(
    ("name", "key"),
    [
        ("agent_deit_tiny", "pos_embed"),
        ("vit_small_gqa", "pos_embed"),
        ("sparsifiner_deit_tiny", "pos_embed"),
        ("flowformer", "stem.pos_embed"),
    ],
)
def test_as_many_patches_in_another_grid(name: str, key: str) -> None:
    state = published(name)
    size = round((state["pos_embed"].shape[1]) ** 0.5)
    scale = size // 14
    converted = convert_checkpoint(state, timm.create_model(name, img_size=WIDE))
    prefix = state["pos_embed"].shape[1] - size**2
    wanted = resample_abs_pos_embed(state["pos_embed"], (7 * scale, 28 * scale), (size, size), num_prefix_tokens=prefix)
    torch.testing.assert_close(converted[key], wanted, rtol=0, atol=0)
    same = convert_checkpoint(state, timm.create_model(name))
    assert torch.equal(same[key], state["pos_embed"])


def test_sparsifiners_predictors_are_resampled_with_it() -> None:
    state = published("sparsifiner_deit_tiny")
    converted = convert_checkpoint(state, timm.create_model("sparsifiner_deit_tiny", img_size=WIDE))
    for leaf in ("proj_n", "proj_back_n"):
        own, old = converted[f"stages.0.attn.predictor.{leaf}"], state[f"blocks.0.attn.mask_predictor.{leaf}"]
        wanted = resample_abs_pos_embed(old[None], (7, 28), (14, 14), num_prefix_tokens=1)[0]
        torch.testing.assert_close(own, wanted, rtol=0, atol=0)


def test_agent_pvts_are_resampled_in_every_stage() -> None:
    state = published("agent_pvt_tiny")
    model = timm.create_model("agent_pvt_tiny", img_size=WIDE)
    converted = convert_checkpoint(state, model)
    model.load_state_dict(converted)
    for stage, key in enumerate(("stem", "stages.1.downsample", "stages.2.downsample")):
        side = 56 >> stage
        square = state[f"pos_embed{stage + 1}"].unflatten(1, (side, side)).permute(0, 3, 1, 2)
        wide = torch.nn.functional.interpolate(square, (side // 2, side * 2), mode="bilinear")
        torch.testing.assert_close(converted[f"{key}.pos_embed"], wide.permute(0, 2, 3, 1), rtol=0, atol=0)


@pytest.mark.parametrize("name", RULES)
def test_the_zoos_own_names_are_taken_as_they_are(name: str) -> None:
    model = timm.create_model(name, img_size=WIDE)
    state = model.state_dict()
    converted = convert_checkpoint({"state_dict": state}, model)
    assert all(torch.equal(converted[key], value) for key, value in state.items())
