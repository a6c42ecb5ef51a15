"""torch.compile: as many graphs as there are stages, whatever is compiled and when."""

import logging

import pytest
import torch
from pipelines import CONTEXT, latents_of, sdxl_unet
from torch._dynamo.testing import CompileCounterWithBackend

from attnzoo.diffusion import AgentAttentionCallback, apply_agent_attention, remove_agent_attention

pytestmark = pytest.mark.compiles
SETTINGS = dict(cell=2, agent_ratio=0.75, merge_ratio=0.2)


@pytest.fixture(autouse=True)
def fresh():
    torch._dynamo.reset()
    yield
    torch._dynamo.reset()


@pytest.fixture
def counter():
    return CompileCounterWithBackend("eager")


def close(a, b):
    torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize(("late", "random"), [("none", False), ("tome", True)])
def test_whole_unet_two_graphs_with_the_callback(pipe, counter, late, random):
    apply_agent_attention(pipe, **SETTINGS, late=late, random=random)
    eager = latents_of(pipe, steps=5, callback_on_step_end=AgentAttentionCallback(pipe))
    apply_agent_attention(pipe, **SETTINGS, late=late, random=random)
    pipe.unet.compile(fullgraph=True, backend=counter)
    first = latents_of(pipe, steps=5, callback_on_step_end=AgentAttentionCallback(pipe))
    second = latents_of(pipe, steps=5, callback_on_step_end=AgentAttentionCallback(pipe))
    assert counter.frame_count == 2
    assert torch.equal(first, second)
    close(first, eager)


def test_whole_unet_draws_anew_whatever_ran_before(pipe, counter):
    """Also at another size: numbers drawn for it would not fit."""
    apply_agent_attention(pipe)
    eager = latents_of(pipe, 256, steps=5)
    latents_of(pipe, 64, steps=2, seed=3)
    pipe.unet.compile(fullgraph=True, backend=counter)
    callback = AgentAttentionCallback(pipe)
    close(latents_of(pipe, 256, steps=5, callback_on_step_end=callback), eager)
    assert counter.frame_count == 2


def test_whole_unet_called_with_a_number(unet, counter):
    apply_agent_attention(unet, random=True, cell=2, agent_ratio=0.75, stop=1.0)
    sample, context = torch.randn(2, 4, 16, 16), torch.randn(2, 5, CONTEXT)
    with torch.no_grad():
        eager = [unet(sample, timestep, context).sample for timestep in (900, 100)]
        unet.compile(fullgraph=True, backend=counter)
        for timestep, expected in zip((900, 100), eager, strict=True):
            close(unet(sample, timestep, context).sample, expected)
    assert not torch.equal(*eager)


def test_a_run_after_an_interrupted_one_begins_with_agents(pipe, counter):
    apply_agent_attention(pipe, **SETTINGS)
    pipe.unet.compile(fullgraph=True, backend=counter)
    callback = AgentAttentionCallback(pipe)
    expected = latents_of(pipe, 64, steps=5, callback_on_step_end=callback)

    def interrupt(pipeline, step_index, timestep, kwargs):
        kwargs = callback(pipeline, step_index, timestep, kwargs)
        if step_index == 2:
            raise KeyboardInterrupt
        return kwargs

    with pytest.raises(KeyboardInterrupt):
        latents_of(pipe, 64, steps=5, callback_on_step_end=interrupt)
    assert torch.equal(latents_of(pipe, 64, steps=5, callback_on_step_end=callback), expected)


def test_the_callback_gives_what_the_timestep_gives(pipe):
    apply_agent_attention(pipe, **SETTINGS)
    by_timestep = latents_of(pipe, steps=10)
    callback = AgentAttentionCallback(pipe)
    for _ in range(2):
        assert torch.equal(latents_of(pipe, steps=10, callback_on_step_end=callback), by_timestep)
    assert torch.equal(latents_of(pipe, steps=10), by_timestep)


def test_the_callback_counts_steps(pipe):
    apply_agent_attention(pipe, **SETTINGS)
    seen = []

    def note(*_):
        slots = [module.agent_slot for module in pipe.unet.modules() if hasattr(module, "agent_slot")]
        seen.append(slots[0].schedule.stage.kind)

    pipe.unet.register_forward_hook(note)
    latents_of(pipe, steps=5, callback_on_step_end=AgentAttentionCallback(pipe, cutoff_step_index=3))
    latents_of(pipe, steps=5, callback_on_step_end=AgentAttentionCallback(pipe, cutoff_step_ratio=0.2))
    assert seen == ["agents"] * 3 + ["tome"] * 2 + ["agents"] + ["tome"] * 4


def test_applied_after_torch_compile_it_follows_the_timestep(pipe, counter):
    apply_agent_attention(pipe, **SETTINGS)
    eager = latents_of(pipe, steps=5)
    remove_agent_attention(pipe)
    plain = latents_of(pipe, steps=5)
    pipe.unet = torch.compile(pipe.unet, fullgraph=True, backend=counter)
    apply_agent_attention(pipe, **SETTINGS)
    close(latents_of(pipe, steps=5), eager)
    assert counter.frame_count == 2
    remove_agent_attention(pipe)
    close(latents_of(pipe, steps=5), plain)
    assert not pipe.unet._forward_pre_hooks


def test_removed_from_the_module_inside_a_wrapper(pipe):
    plain = latents_of(pipe, steps=2)
    inner = pipe.unet
    pipe.unet = torch.compile(inner, disable=True)  # the wrapper alone
    apply_agent_attention(pipe, **SETTINGS, random=True)
    assert not torch.equal(latents_of(pipe, steps=2), plain)
    remove_agent_attention(inner)
    assert torch.equal(latents_of(pipe, steps=2), plain)


def test_compiled_as_a_whole_without_the_callback_says_so(pipe, counter, caplog):
    apply_agent_attention(pipe, **SETTINGS)
    pipe.unet.compile(fullgraph=True, backend=counter)
    with caplog.at_level(logging.WARNING, logger="attnzoo"):
        latents_of(pipe, steps=3)
    assert "AgentAttentionCallback" in caplog.text
    assert counter.frame_count == 1


def test_compiled_as_a_whole_without_the_callback_stays_in_the_first_stage(pipe, counter):
    """Not in the one that the run before ended in."""
    apply_agent_attention(pipe, **SETTINGS, stop=1.0)
    agents = latents_of(pipe, steps=3)
    apply_agent_attention(pipe, **SETTINGS)
    latents_of(pipe, steps=3)
    pipe.unet.compile(fullgraph=True, backend=counter)
    close(latents_of(pipe, steps=3), agents)


def test_repeated_blocks(pipe, counter):
    """The blocks share graphs: three patched ones are not compiled three times."""
    apply_agent_attention(pipe, **SETTINGS)
    eager = latents_of(pipe, steps=5)
    pipe.unet.compile_repeated_blocks(fullgraph=True, backend=counter)
    close(latents_of(pipe, steps=5), eager)
    assert counter.frame_count == 3  # one for the block in the middle
    remove_agent_attention(pipe)
    plain = latents_of(pipe, steps=5)
    apply_agent_attention(pipe, **SETTINGS)
    close(latents_of(pipe, steps=5), eager)
    remove_agent_attention(pipe)
    assert torch.equal(latents_of(pipe, steps=5), plain)


def test_many_repeated_blocks_stay_below_the_limit(counter):
    """Eleven blocks of two shapes, all patched, in both stages."""
    model = sdxl_unet()
    apply_agent_attention(model, **SETTINGS, max_downsample=4)
    model.compile_repeated_blocks(fullgraph=True, backend=counter)
    extra = {"text_embeds": torch.zeros(2, CONTEXT), "time_ids": torch.zeros(2, 6)}
    context, sample = torch.randn(2, 5, CONTEXT), torch.randn(2, 4, 32, 32)
    with torch.no_grad():
        for timestep in (900, 800, 300, 200):
            model(sample, timestep, context, added_cond_kwargs=extra)
    assert counter.frame_count <= 6


def test_another_size_after_compiling(pipe, counter):
    """Its rows and columns differ too. Not with a backend that rounds differently: merging would choose others."""
    apply_agent_attention(pipe, **SETTINGS, stop=1.0)
    eager = latents_of(pipe, 192, 128, steps=1)
    pipe.unet.compile_repeated_blocks(fullgraph=True, backend=counter)
    latents_of(pipe, 128, steps=1)
    close(latents_of(pipe, 192, 128, steps=1), eager)


def test_inductor(pipe):
    apply_agent_attention(pipe, **SETTINGS, agent_source="grid", stop=1.0)
    eager = latents_of(pipe, steps=1)
    pipe.unet.down_blocks[0].attentions[0].transformer_blocks[0].compile(fullgraph=True)
    torch.testing.assert_close(latents_of(pipe, steps=1), eager, rtol=1e-3, atol=1e-3)
