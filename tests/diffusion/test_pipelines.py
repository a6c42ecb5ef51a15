"""Agent attention in complete pipelines, together with everything else that changes attention there."""

import copy
import io

import pytest
import torch
from diffusers import (
    StableDiffusionControlNetPipeline,
    StableDiffusionImg2ImgPipeline,
    StableDiffusionInpaintPipeline,
    StableDiffusionPAGPipeline,
    StableDiffusionPipeline,
)
from diffusers.models.attention_processor import Attention, AttnProcessor2_0
from PIL import Image
from pipelines import CONTEXT, PROMPT, controlnet, latents_of

from attnzoo.diffusion import AgentSelfAttention, apply_agent_attention, remove_agent_attention

# One agent for four tokens: enough of them at 16 x 16 tokens to change the image well above rounding.
SETTINGS = dict(stop=1.0, cell=2, agent_ratio=0.75, merge_ratio=0.2)


def patched(model):
    return [module for module in model.modules() if type(module) is AgentSelfAttention]


def differs(a, b):
    return (a - b).abs().max().item() > 1e-3


@pytest.fixture
def agents(pipe, plain):
    """What the patched pipeline draws; it is patched now."""
    apply_agent_attention(pipe, **SETTINGS)
    drawn = latents_of(pipe)
    assert differs(drawn, plain)
    return drawn


def restored(pipe, plain):
    remove_agent_attention(pipe)
    assert not patched(pipe.unet)
    for module in pipe.unet.modules():
        assert not module._forward_pre_hooks
        assert not module._forward_pre_hooks_with_kwargs
        assert "agent_slot" not in vars(module)
    return torch.equal(latents_of(pipe), plain)


def test_bit_identical_after_removal(pipe, plain, agents):
    assert restored(pipe, plain)
    assert remove_agent_attention(pipe) == 0


@pytest.mark.parametrize("preset", ["paper", "hires", "cpu"])
def test_one_seed_gives_one_image(pipe, preset):
    apply_agent_attention(pipe, preset, min_tokens=0)
    first = latents_of(pipe, 256)
    latents_of(pipe, 128, steps=3, seed=5)
    assert torch.equal(latents_of(pipe, 256), first)


def test_a_drawn_destination_changes_the_image_and_follows_its_seed(pipe, agents):
    drawn = []
    for seed in (0, 1, 0):
        apply_agent_attention(pipe, **SETTINGS, random=True, seed=seed)
        drawn.append(latents_of(pipe))
    assert torch.equal(drawn[0], drawn[2])
    assert differs(drawn[0], drawn[1])


def test_applying_again_replaces_the_settings(pipe, plain, agents):
    apply_agent_attention(pipe, agent_source="grid", **SETTINGS)
    assert differs(latents_of(pipe), agents)
    for _ in range(3):
        apply_agent_attention(pipe, **SETTINGS)
    assert torch.equal(latents_of(pipe), agents)
    assert len(patched(pipe.unet)) == 3
    assert restored(pipe, plain)


def test_still_active_after_set_attn_processor(pipe, plain, agents):
    pipe.unet.set_attn_processor(AttnProcessor2_0())
    assert torch.equal(latents_of(pipe), agents)
    pipe.unet.set_default_attn_processor()  # an unfused one, which rounds differently
    torch.testing.assert_close(latents_of(pipe), agents, rtol=1e-4, atol=1e-4)
    pipe.unet.set_attn_processor(AttnProcessor2_0())
    assert restored(pipe, plain)


def test_attention_slicing(pipe, plain, agents):
    pipe.enable_attention_slicing(1)
    torch.testing.assert_close(latents_of(pipe), agents, rtol=1e-4, atol=1e-4)
    pipe.disable_attention_slicing()
    assert torch.equal(latents_of(pipe), agents)
    assert restored(pipe, plain)


@pytest.mark.parametrize("late", ["tome", "todo"])
def test_late_stages_under_slicing_and_fusing(pipe, late):
    apply_agent_attention(pipe, stop=0.0, late=late)
    drawn = latents_of(pipe)
    pipe.enable_attention_slicing(1)
    torch.testing.assert_close(latents_of(pipe), drawn, rtol=1e-4, atol=1e-4)
    pipe.disable_attention_slicing()
    pipe.fuse_qkv_projections(vae=False)
    torch.testing.assert_close(latents_of(pipe), drawn, rtol=1e-4, atol=1e-4)


def test_fuse_qkv_projections(pipe, plain, agents):
    pipe.fuse_qkv_projections(vae=False)
    torch.testing.assert_close(latents_of(pipe), agents, rtol=1e-4, atol=1e-4)
    pipe.unfuse_qkv_projections(vae=False)
    assert torch.equal(latents_of(pipe), agents)
    assert restored(pipe, plain)


def test_ip_adapter_before_and_after_the_patch(pipe, plain, agents):
    state = ip_adapter_state(pipe.unet)
    images = [torch.randn(2, 1, 1, 24, generator=torch.Generator().manual_seed(3))]
    pipe.unet._load_ip_adapter_weights([state])
    pipe.set_ip_adapter_scale(1.0)
    with_both = latents_of(pipe, ip_adapter_image_embeds=images)
    assert differs(with_both, agents)
    remove_agent_attention(pipe)
    adapter_only = latents_of(pipe, ip_adapter_image_embeds=images)
    assert differs(with_both, adapter_only)
    apply_agent_attention(pipe, **SETTINGS)
    assert torch.equal(latents_of(pipe, ip_adapter_image_embeds=images), with_both)
    pipe.unload_ip_adapter()
    assert torch.equal(latents_of(pipe), agents)
    assert restored(pipe, plain)


def ip_adapter_state(unet):
    """Random weights of an IP-Adapter for images embedded as 24 numbers."""
    generator = torch.Generator().manual_seed(2)

    def weights(*shape):
        return torch.randn(*shape, generator=generator) / 5

    state = {"image_proj": {}, "ip_adapter": {}}
    state["image_proj"]["proj.weight"], state["image_proj"]["proj.bias"] = (
        weights(4 * CONTEXT, 24),
        weights(4 * CONTEXT),
    )
    state["image_proj"]["norm.weight"], state["image_proj"]["norm.bias"] = torch.ones(CONTEXT), torch.zeros(CONTEXT)
    number = 1
    for name, module in unet.named_modules():
        if name.endswith("attn2"):
            for key in ("k", "v"):
                state["ip_adapter"][f"{number}.to_{key}_ip.weight"] = weights(module.inner_dim, CONTEXT)
            number += 2
    return state


def test_lora_before_and_after_the_patch(pipe, plain, agents):
    from peft import LoraConfig

    config = LoraConfig(
        r=2, lora_alpha=8, target_modules=["to_q", "to_k", "to_v", "to_out.0"], init_lora_weights="gaussian"
    )
    torch.manual_seed(0)
    pipe.unet.add_adapter(config)
    for name, parameter in pipe.unet.named_parameters():
        if "lora_B" in name:
            torch.nn.init.normal_(parameter, std=0.2)
    with_both = latents_of(pipe)
    assert differs(with_both, agents)
    remove_agent_attention(pipe)
    lora_only = latents_of(pipe)
    assert differs(lora_only, with_both)
    apply_agent_attention(pipe, **SETTINGS)
    assert torch.equal(latents_of(pipe), with_both)
    pipe.unet.disable_adapters()
    assert torch.equal(latents_of(pipe), agents)
    pipe.unet.delete_adapters("default")
    remove_agent_attention(pipe)
    torch.testing.assert_close(latents_of(pipe), plain)


@pytest.mark.parametrize("layer", ["down_blocks.0", "mid"])
def test_pag_also_on_a_patched_layer(pipe, plain, agents, layer):
    """A perturbed layer is to be what PAG makes of it, not agents."""
    call = dict(pag_scale=3.0, guidance_scale=5.0)
    guided = StableDiffusionPAGPipeline.from_pipe(pipe, pag_applied_layers=[layer])
    guided.set_progress_bar_config(disable=True)
    drawn = latents_of(guided, **call)
    assert differs(drawn, agents)
    remove_agent_attention(guided)
    without = latents_of(guided, **call)
    assert differs(drawn, without)
    apply_agent_attention(guided, **SETTINGS)
    perturbed = guided.unet.down_blocks[0].attentions[0].transformer_blocks[0].attn1
    calls = []
    if layer == "down_blocks.0":
        from attnzoo.zoo.diffusion import attention

        original = attention.attend

        def noted(attn, *args, **kwargs):
            calls.append(attn is perturbed)
            return original(attn, *args, **kwargs)

        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(attention, "attend", noted)
            assert torch.equal(latents_of(guided, **call), drawn)
        assert calls
        assert not any(calls)
    assert torch.equal(latents_of(pipe), agents)


def test_controlnet(pipe, agents):
    both = StableDiffusionControlNetPipeline.from_pipe(pipe, controlnet=controlnet())
    both.set_progress_bar_config(disable=True)
    control = torch.rand(1, 3, 128, 128, generator=torch.Generator().manual_seed(0))
    drawn = latents_of(both, image=control)
    assert differs(drawn, agents)
    apply_agent_attention(both.controlnet, **SETTINGS)
    assert patched(both.controlnet)
    assert differs(latents_of(both, image=control), drawn)
    remove_agent_attention(both.controlnet)
    assert torch.equal(latents_of(both, image=control), drawn)


def test_free_u(pipe, plain, agents):
    pipe.enable_freeu(s1=0.9, s2=0.2, b1=1.2, b2=1.4)
    with_both = latents_of(pipe)
    pipe.disable_freeu()
    assert torch.equal(latents_of(pipe), agents)
    assert torch.isfinite(with_both).all()
    assert restored(pipe, plain)


def test_image_to_image_starts_in_the_right_stage(pipe):
    """At strength 0.4 the noise is past 60 %: no step has agents."""
    apply_agent_attention(pipe, stop=0.4, late="none")
    image = Image.effect_noise((128, 128), 80).convert("RGB")
    other = StableDiffusionImg2ImgPipeline.from_pipe(pipe)
    other.set_progress_bar_config(disable=True)
    stages = stages_of(other, image=image, strength=0.4, steps=10)
    assert stages == ["softmax"] * 4
    assert stages_of(other, image=image, strength=0.8, steps=10) == ["agents"] * 2 + ["softmax"] * 6


def stages_of(pipe, steps, **call):
    from attnzoo.zoo.diffusion.patch import schedules_of

    (schedule,) = schedules_of(pipe)
    seen = []
    handle = pipe.unet.register_forward_hook(lambda *_: seen.append(schedule.stage.kind))
    pipe(PROMPT, num_inference_steps=steps, generator=torch.Generator().manual_seed(0), output_type="latent", **call)
    handle.remove()
    return seen


def test_inpainting(pipe, agents):
    image, mask = Image.new("RGB", (128, 128), "green"), Image.new("L", (128, 128), 255)
    other = StableDiffusionInpaintPipeline.from_pipe(pipe)
    other.set_progress_bar_config(disable=True)
    call = dict(image=image, mask_image=mask, height=128, width=128, steps=2)
    assert stages_of(other, **call) == ["agents"] * 2


def test_paper_preset_switches_after_two_fifths_of_fifty_steps(pipe):
    apply_agent_attention(pipe)
    assert stages_of(pipe, steps=50, height=64, width=64) == ["agents"] * 20 + ["tome"] * 30


def test_sizes_that_do_not_divide(pipe):
    for height, width in ((264, 392), (72, 200), (8, 8), (64, 8)):
        remove_agent_attention(pipe)
        plain = latents_of(pipe, height, width, steps=2)
        apply_agent_attention(pipe, stop=1.0)
        drawn = latents_of(pipe, height, width, steps=2)
        assert torch.isfinite(drawn).all()
        assert drawn.shape == plain.shape
    apply_agent_attention(pipe, stop=1.0)
    assert differs(latents_of(pipe, 264, 392, steps=2), latents_of(pipe, 392, 264, steps=2).mT)


def test_min_tokens_leaves_small_images_alone(pipe, plain):
    apply_agent_attention(pipe, **SETTINGS, min_tokens=257)
    assert torch.equal(latents_of(pipe), plain)
    apply_agent_attention(pipe, **SETTINGS, min_tokens=256)
    assert differs(latents_of(pipe), plain)


def test_deepcopy(pipe, agents):
    copied = copy.deepcopy(pipe.unet)
    with torch.no_grad():
        for parameter in copied.parameters():
            parameter.zero_()
    assert torch.equal(latents_of(pipe), agents)
    pipe.unet, original = copied, pipe.unet
    assert differs(latents_of(pipe), agents)
    apply_agent_attention(copied, **SETTINGS, late="none")
    remove_agent_attention(copied)
    assert patched(original)
    pipe.unet = original
    assert torch.equal(latents_of(pipe), agents)


def test_pickle(pipe, agents):
    file = io.BytesIO()
    torch.save(pipe.unet, file)
    file.seek(0)
    loaded = torch.load(file, weights_only=False)
    assert len(patched(loaded)) == 3
    pipe.unet = loaded
    assert torch.equal(latents_of(pipe), agents)


def test_saving_and_loading_gives_the_unpatched_pipeline(pipe, plain, agents, tmp_path):
    keys = list(pipe.unet.state_dict())
    pipe.save_pretrained(tmp_path)
    loaded = StableDiffusionPipeline.from_pretrained(tmp_path, use_safetensors=True)
    loaded.set_progress_bar_config(disable=True)
    assert not patched(loaded.unet)
    assert torch.equal(latents_of(loaded), plain)
    remove_agent_attention(pipe)
    assert list(pipe.unet.state_dict()) == keys


def test_unet_called_by_keyword_and_by_position(pipe):
    apply_agent_attention(pipe)
    sample, context = torch.randn(2, 4, 16, 16), torch.randn(2, 5, CONTEXT)
    for timestep in (900, torch.tensor(100)):
        by_keyword = pipe.unet(sample=sample, timestep=timestep, encoder_hidden_states=context).sample
        assert torch.equal(by_keyword, pipe.unet(sample, timestep, context).sample)


def test_accelerate_offload_before_and_after(pipe, plain, agents):
    from accelerate import cpu_offload
    from accelerate.hooks import remove_hook_from_module

    cpu_offload(pipe.unet, execution_device=torch.device("cpu"))
    assert torch.equal(latents_of(pipe), agents)
    remove_agent_attention(pipe)
    assert torch.equal(latents_of(pipe), plain)
    apply_agent_attention(pipe, **SETTINGS)
    assert torch.equal(latents_of(pipe), agents)
    remove_hook_from_module(pipe.unet, recurse=True)
    assert torch.equal(latents_of(pipe), agents)
    assert restored(pipe, plain)


@pytest.mark.parametrize("kind", ["leaf_level", "block_level"])
def test_group_offload_before_and_after(pipe, plain, kind):
    """Weights that move round differently, on which a ranking may depend; means of cells do not."""
    from diffusers.hooks import apply_group_offloading

    def close(drawn, expected):
        torch.testing.assert_close(drawn, expected, rtol=1e-4, atol=1e-4)

    settings = dict(stop=1.0, cell=2, agent_source="grid", merge_ratio=0.0)
    apply_agent_attention(pipe, **settings)
    agents = latents_of(pipe)
    assert differs(agents, plain)
    options = {"num_blocks_per_group": 1} if kind == "block_level" else {}
    apply_group_offloading(pipe.unet, torch.device("cpu"), torch.device("cpu"), offload_type=kind, **options)
    close(latents_of(pipe), agents)
    remove_agent_attention(pipe)
    close(latents_of(pipe), plain)
    apply_agent_attention(pipe, **settings)
    close(latents_of(pipe), agents)


def test_the_timestep_is_found_behind_another_hook(pipe):
    """Hooks that replace forward hide its arguments."""
    apply_agent_attention(pipe)
    expected = stages_of(pipe, steps=5, height=64, width=64)
    forward = pipe.unet.forward
    pipe.unet.forward = lambda *args, **kwargs: forward(*args, **kwargs)
    assert stages_of(pipe, steps=5, height=64, width=64) == expected == ["agents"] * 2 + ["tome"] * 3


def test_pyramid_attention_broadcast_after_the_patch_and_before(pipe, plain, agents):
    from diffusers import PyramidAttentionBroadcastConfig, apply_pyramid_attention_broadcast

    config = PyramidAttentionBroadcastConfig(
        spatial_attention_block_skip_range=2,
        spatial_attention_timestep_skip_range=(-1, 0),
        spatial_attention_block_identifiers=("transformer_blocks",),
        current_timestep_callback=lambda: 500,
    )
    apply_pyramid_attention_broadcast(pipe.unet, config)
    hooked = [name for name, module in pipe.unet.named_modules() if "forward" in vars(module)]
    assert any(name.endswith("attn1") for name in hooked)
    assert torch.equal(latents_of(pipe), agents)
    remove_agent_attention(pipe)
    assert torch.equal(latents_of(pipe), plain)
    with pytest.raises(ValueError, match=r"attn1 is held by another hook"):
        apply_agent_attention(pipe, **SETTINGS)
    assert not patched(pipe.unet)
    assert torch.equal(latents_of(pipe), plain)


def test_another_class_is_not_touched(pipe):
    class Other(Attention):
        pass

    for block in (pipe.unet.down_blocks[0], *pipe.unet.up_blocks[1:]):
        for transformer in block.attentions:
            transformer.transformer_blocks[0].attn1.__class__ = Other
    applied = apply_agent_attention(pipe, **SETTINGS, max_downsample=8)
    assert [name.split(".")[0] for name in applied.blocks] == ["mid_block"]
