"""Which blocks are patched, by model; bad input; what there is to gain."""

import pytest
import torch
from diffusers import DDIMScheduler, EDMEulerScheduler, UNet2DConditionModel
from diffusers.models.controlnets.multicontrolnet import MultiControlNetModel
from pipelines import CONTEXT, controlnet, latents_of, motion_unet, pipeline, pixart, sdxl_unet, unet, video_unet

from attnzoo.diffusion import (
    AgentAttentionCallback,
    AgentSelfAttention,
    AgentSettings,
    apply_agent_attention,
    estimate_agent_attention,
    remove_agent_attention,
)

FINEST = {
    "down_blocks.0.attentions.0.transformer_blocks.0.attn1",
    "up_blocks.1.attentions.0.transformer_blocks.0.attn1",
    "up_blocks.1.attentions.1.transformer_blocks.0.attn1",
}
MIDDLE = "mid_block.attentions.0.transformer_blocks.0.attn1"


def inputs(model, batch=2, side=16):
    torch.manual_seed(5)
    sample, context = torch.randn(batch, 4, side, side), torch.randn(batch, 5, CONTEXT)
    name = type(model).__name__
    if name == "PixArtTransformer2DModel":
        return dict(
            hidden_states=sample,
            encoder_hidden_states=context,
            timestep=torch.tensor([900] * batch),
            added_cond_kwargs={"resolution": None, "aspect_ratio": None},
        )
    if name == "UNetSpatioTemporalConditionModel":
        video = torch.randn(1, batch, 8, side, side)
        return dict(sample=video, timestep=1.6, encoder_hidden_states=context[:1, :1], added_time_ids=torch.zeros(1, 3))
    if name == "UNetMotionModel":
        return dict(sample=sample[:1, :, None].repeat(1, 1, 2, 1, 1), timestep=900, encoder_hidden_states=context)
    if name == "ControlNetModel":
        hint = torch.rand(batch, 3, 8 * side, 8 * side)
        return dict(sample=sample, timestep=900, encoder_hidden_states=context, controlnet_cond=hint)
    extra = {"text_embeds": torch.zeros(batch, CONTEXT), "time_ids": torch.zeros(batch, 6)}
    return dict(sample=sample, timestep=900, encoder_hidden_states=context, added_cond_kwargs=extra)


@torch.no_grad()
def output(model, **options):
    """The model's output; of a ControlNet's, the last one before the middle, which its patched block has changed."""
    found = model(**inputs(model, **options), return_dict=False)[0]
    return found[-1] if isinstance(found, (tuple, list)) else found


MODELS = [
    (unet, 1, FINEST),
    (unet, 2, FINEST | {MIDDLE}),
    (controlnet, 1, {"down_blocks.0.attentions.0.transformer_blocks.0.attn1"}),
    (motion_unet, 1, FINEST),
    (video_unet, 1, FINEST),
    (pixart, 1, {"transformer_blocks.0.attn1", "transformer_blocks.1.attn1"}),
    (
        sdxl_unet,
        2,
        {
            "down_blocks.1.attentions.0.transformer_blocks.0.attn1",
            "up_blocks.1.attentions.0.transformer_blocks.0.attn1",
            "up_blocks.1.attentions.1.transformer_blocks.0.attn1",
        },
    ),
]


@pytest.mark.parametrize(("build", "max_downsample", "names"), MODELS, ids=lambda value: getattr(value, "__name__", ""))
def test_patched_modules(build, max_downsample, names):
    """Exactly these: never a block whose tokens are frames."""
    model = build()
    plain = output(model)
    settings = dict(stop=1.0, cell=2, agent_ratio=0.75, max_downsample=max_downsample)
    applied = apply_agent_attention(model, **settings)
    assert set(applied.blocks) == names
    assert {name for name, module in model.named_modules() if type(module) is AgentSelfAttention} == names
    assert (output(model) - plain).abs().max() > 1e-5
    assert remove_agent_attention(model) == len(names)
    assert torch.equal(output(model), plain)


def test_levels_of_wrapped_models():
    """By the model that a block belongs to, not by those around it."""
    both = apply_agent_attention(MultiControlNetModel([controlnet(), controlnet()])).blocks
    assert both == tuple(f"nets.{index}.down_blocks.0.attentions.0.transformer_blocks.0.attn1" for index in (0, 1))
    with pytest.raises(ValueError, match="max_downsample=2 would do"):
        apply_agent_attention(torch.nn.Sequential(sdxl_unet()))
    assert apply_agent_attention(MultiControlNetModel([controlnet()]), agents=16).blocks


def test_a_model_in_peft():
    from peft import LoraConfig, get_peft_model

    config = LoraConfig(target_modules=["to_q"])
    model = get_peft_model(unet(), config).eval()
    applied = apply_agent_attention(model, agents=100)
    assert {name.removeprefix("base_model.model.") for name in applied.blocks} == FINEST
    slot = next(module.agent_slot for module in model.modules() if type(module) is AgentSelfAttention)
    for timestep, kind in ((900, "agents"), (100, "tome")):
        with torch.no_grad():
            model(torch.randn(2, 4, 16, 16), timestep, torch.randn(2, 5, CONTEXT))
        assert slot.schedule.stage.kind == kind
    assert estimate_agent_attention(model, 512, 512).bound == estimate_agent_attention(unet(), 512, 512).bound


def test_a_video_model_alone_has_its_own_timesteps():
    model = video_unet()
    apply_agent_attention(model)
    slot = next(module.agent_slot for module in model.modules() if type(module) is AgentSelfAttention)
    for timestep, kind in ((1.6, "agents"), (0.4, "agents"), (0.3, "tome"), (-1.5, "tome")):
        with torch.no_grad():
            model(**{**inputs(model), "timestep": timestep})
        assert slot.schedule.stage.kind == kind


def test_sdxl_level_by_level():
    model = sdxl_unet()
    assert len(apply_agent_attention(model, max_downsample=4).blocks) == 11
    assert len(apply_agent_attention(model, levels=(4,)).blocks) == 8


def grids_seen(model, side):
    apply_agent_attention(model, max_downsample=8)
    with torch.no_grad():
        output(model, side=side)
    slots = [module.agent_slot for module in model.modules() if type(module) is AgentSelfAttention]
    return {slot.grid for slot in slots}


def test_grids_are_the_blocks_own():
    assert grids_seen(unet(), 15) == {(15, 15), (8, 8)}
    assert grids_seen(pixart(), 16) == {(8, 8)}
    assert grids_seen(video_unet(), 16) == {(16, 16), (8, 8)}


REFUSED = [
    (dict(merge_ratio=1.0), "merge_ratio is 1.0"),
    (dict(merge_ratio=-0.1), "merge_ratio is -0.1"),
    (dict(agent_ratio=1), "agent_ratio is 1"),
    (dict(late_ratio=float("nan")), "late_ratio is nan"),
    (dict(stop=1.5), "stop is 1.5"),
    (dict(start=0.5), "stop is 0.4, before start 0.5"),
    (dict(cell=0), "cell is 0"),
    (dict(cell=1), "a cell of one token saves nothing"),
    (dict(cell=(2, 3, 4)), r"cell is \(2, 3, 4\)"),
    (dict(agents=0), "agents is 0"),
    (dict(agents=1024), "agents is 1024, but the largest chosen block has 1024 tokens"),
    (dict(agents=300, height=128, width=128), "largest chosen block has 256 tokens at latents of 16x16"),
    (dict(agent_source="pool"), "agent_source is 'pool'; it is one of 'merge', 'grid'"),
    (dict(late="later"), "late is 'later'"),
    (dict(preset="fast"), "preset is 'fast'; it is one of 'paper', 'hires', 'cpu'"),
    (dict(levels=()), r"levels is \(\)"),
    (dict(levels=(4,)), r"levels=\(4,\) leaves nothing to patch"),
    (dict(max_downsample=0), "max_downsample is 0"),
    (dict(min_tokens=True), "min_tokens is True"),
    (dict(shortcut=float("inf")), "shortcut is inf"),
    (dict(when="never"), "when is 'never'"),
]


@pytest.mark.parametrize(("settings", "message"), REFUSED)
def test_settings_out_of_range(pipe, plain, settings, message):
    with pytest.raises(ValueError, match=message) as caught:
        apply_agent_attention(pipe, **settings)
    assert "\n" not in str(caught.value)
    assert type(pipe.unet.down_blocks[0].attentions[0].transformer_blocks[0].attn1) is not AgentSelfAttention
    assert torch.equal(latents_of(pipe), plain)


def test_unknown_setting(pipe):
    with pytest.raises(TypeError, match="no setting 'ratio'; settings: agent_source, cell"):
        apply_agent_attention(pipe, ratio=0.4)


def test_max_downsample_1_on_sdxl():
    model = sdxl_unet()
    with pytest.raises(ValueError, match="max_downsample=1 leaves nothing to patch.* 2, 4; max_downsample=2 would do"):
        apply_agent_attention(model)
    assert not any(module._forward_pre_hooks for module in model.modules())


@pytest.mark.parametrize("thing", [None, "runwayml/stable-diffusion", object()])
def test_no_pipeline(thing):
    with pytest.raises(TypeError, match="pipeline with a unet or transformer"):
        apply_agent_attention(thing)


def test_nothing_to_patch():
    with pytest.raises(ValueError, match="Linear has no self-attention that can be replaced; this works with UNet2D"):
        apply_agent_attention(torch.nn.Linear(2, 2))


def test_a_module_that_another_hook_holds(pipe, plain):
    """Also when it is the last one: nothing is half-patched, and an older patch stays."""
    apply_agent_attention(pipe, stop=1.0)
    patched = latents_of(pipe)
    attn = pipe.unet.up_blocks[1].attentions[1].transformer_blocks[0].attn1
    attn.forward = attn.forward
    with pytest.raises(ValueError, match=r"up_blocks\.1\.attentions\.1\.transformer_blocks\.0\.attn1 is held by"):
        apply_agent_attention(pipe, "cpu", min_tokens=0)
    assert torch.equal(latents_of(pipe), patched)
    remove_agent_attention(pipe)
    assert torch.equal(latents_of(pipe), plain)
    with pytest.raises(ValueError, match="is held by another hook"):
        apply_agent_attention(pipe)
    assert not any(type(module) is AgentSelfAttention for module in pipe.unet.modules())


def test_callback_without_a_patch(pipe):
    with pytest.raises(ValueError, match="not patched"):
        AgentAttentionCallback(pipe)
    apply_agent_attention(pipe, start=0.1)
    with pytest.raises(ValueError, match="start is 0.1"):
        AgentAttentionCallback(pipe)


def test_stages():
    settings = AgentSettings(start=0.1, stop=0.5, late="todo", late_cell=(2, 3))
    kinds = [settings.stage_at(noise).kind for noise in (0.0, 0.09, 0.1, 0.5, 0.51, 1.0)]
    assert kinds == ["softmax", "softmax", "agents", "agents", "todo", "todo"]
    assert settings.late_stage.cell == (2, 3)
    assert not AgentSettings(stop=1.0).scheduled


@pytest.fixture(scope="module")
def sd15():
    with torch.device("meta"):
        return UNet2DConditionModel(cross_attention_dim=768)


# Operations of one step and self-attention's share by level, counted on the published configuration, and the bounds
# that follow for agents in every step and for the README's schedule.
PUBLISHED = [
    (512, 0.80, (0.134, 0.017, 0.002), 1.15, 1.11),
    (768, 2.15, (0.253, 0.032, 0.004), 1.30, 1.22),
    (1024, 4.67, (0.368, 0.046, 0.006), 1.50, 1.35),
    (2048, 42.2, (0.651, 0.081, 0.010), 2.41, 1.82),
]


@pytest.mark.parametrize(("size", "tflops", "shares", "step", "run"), PUBLISHED)
def test_estimate_of_stable_diffusion(sd15, size, tflops, shares, step, run):
    found = estimate_agent_attention(sd15, size, size)
    assert found.flops / 1e12 == pytest.approx(tflops, rel=0.01)
    assert [level.share for level in found.levels[:3]] == pytest.approx(shares, abs=6e-4)
    assert (found.step_bound, found.bound) == pytest.approx((step, run), abs=6e-3)
    assert [level.blocks for level in found.levels] == [5, 5, 5, 1]
    assert found.agent_steps == 20


def test_estimate_of_late_stages(sd15):
    bounds = {}
    for late, ratio in (("tome", 0.5), ("todo", 0.4)):
        bounds[late] = [
            estimate_agent_attention(sd15, size, size, late=late, late_ratio=ratio, start=0, stop=0).bound
            for size in (512, 2048)
        ]
    assert bounds["tome"] == pytest.approx([1.11, 1.76], abs=0.02)
    assert bounds["todo"] == pytest.approx([1.12, 1.96], abs=0.02)


def test_verdicts(sd15):
    assert estimate_agent_attention(sd15, 256, 256).verdict.startswith("nothing to gain at this size: at most 1.0")
    assert estimate_agent_attention(sd15, 512, 512).verdict.startswith("little to gain")
    assert estimate_agent_attention(sd15, 1024, 1024).verdict.startswith("worth trying")
    assert "no block has enough tokens" in estimate_agent_attention(sd15, 512, 512, preset="hires").verdict
    few = estimate_agent_attention(sd15, 1024, 1024, steps=4)
    assert few.agent_steps == 2
    assert "1.50x for a step with agents" in str(few)


def test_estimate_follows_the_schedulers_timesteps(pipe):
    assert estimate_agent_attention(pipe, 512, 512).agent_steps == 20
    assert estimate_agent_attention(pipe, 512, 512, steps=4, start=0.3, stop=0.4).agent_steps == 0


@pytest.mark.parametrize(
    "config",
    [
        dict(num_class_embeds=1000),
        dict(class_embed_type="timestep"),
        dict(class_embed_type="projection", projection_class_embeddings_input_dim=8),
    ],
)
def test_estimate_of_a_class_conditional_model(config):
    found = estimate_agent_attention(unet(**config), 512, 512)
    assert found.step_bound > 1.2


@pytest.mark.parametrize("build", [sdxl_unet, motion_unet, video_unet, pixart])
def test_estimates_of_other_models(build):
    found = estimate_agent_attention(build(), 512, 512, max_downsample=8)
    assert found.step_bound > 1.2
    assert sum(level.share for level in found.levels) < 1


@pytest.mark.parametrize(("size", "steps"), [(64, 2), (1024, 1), (2048, 1), (1024, 20)])
@pytest.mark.parametrize("scheduler", [DDIMScheduler, EDMEulerScheduler])
def test_when_auto_does_what_the_verdict_says(pipe, size, steps, scheduler):
    pipe.scheduler = scheduler()
    applied = apply_agent_attention(pipe, when="auto", height=size, width=size, steps=steps)
    assert bool(applied.blocks) is applied.estimate.worthwhile
    assert bool(applied.blocks) is not applied.estimate.verdict.startswith("nothing")
    assert ("no step has agents" in applied.estimate.verdict) is (
        bool(applied.blocks) and not applied.estimate.agent_steps
    )


def test_when_auto(pipe, plain):
    apply_agent_attention(pipe)
    applied = apply_agent_attention(pipe, "hires", when="auto", height=128, width=128)
    assert applied.blocks == ()
    assert "nothing to gain" in applied.estimate.verdict
    assert torch.equal(latents_of(pipe), plain)
    assert apply_agent_attention(pipe, when="auto", height=512, width=512).blocks


@pytest.mark.parametrize(
    ("call", "message"),
    [(dict(height=4), "height is 4"), (dict(width=1.5), "width is 1.5"), (dict(steps=0), "steps is 0")],
)
def test_bad_sizes(call, message):
    with pytest.raises(ValueError, match=message):
        estimate_agent_attention(unet(), **call)


def test_unknown_inputs():
    with pytest.raises(ValueError, match="inputs of ControlNetModel are not known"):
        estimate_agent_attention(controlnet(), 512, 512)
    with pytest.raises(ValueError, match="inputs of MultiControlNetModel are not known"):
        estimate_agent_attention(MultiControlNetModel([controlnet()]), 512, 512)


def test_wrong_type_of_pipeline_part():
    pipe = pipeline()
    pipe.unet = None
    with pytest.raises(TypeError, match="StableDiffusionPipeline"):
        apply_agent_attention(pipe)
