"""Agents in the first two fifths of the noise, whatever the scheduler counts in."""

import copy
import io

import diffusers
import pytest
import torch
from pipelines import latents_of

from attnzoo.diffusion import AgentSelfAttention, apply_agent_attention, estimate_agent_attention

LOGARITHMS = dict(timestep_type="continuous", prediction_type="v_prediction")
SCHEDULERS = [
    ("DDIMScheduler", {}, 4),
    ("DPMSolverMultistepScheduler", {}, 4),
    ("HeunDiscreteScheduler", {}, 7),
    ("EDMEulerScheduler", {}, 6),
    ("EDMDPMSolverMultistepScheduler", {}, 6),
    ("EulerDiscreteScheduler", LOGARITHMS, 5),
    ("EulerDiscreteScheduler", {**LOGARITHMS, "sigma_min": 0.002, "sigma_max": 700.0, "use_karras_sigmas": True}, 6),
    ("IPNDMScheduler", {}, 3),
    ("CMStochasticIterativeScheduler", {}, 5),
]


def stages(pipe, steps=10):
    slot = next(module.agent_slot for module in pipe.unet.modules() if type(module) is AgentSelfAttention)
    seen = []
    handle = pipe.unet.register_forward_hook(lambda *_: seen.append(slot.schedule.stage.kind))
    latents_of(pipe, 64, steps=steps)
    handle.remove()
    return seen


@pytest.mark.parametrize(("name", "config", "agents"), SCHEDULERS)
def test_agents_come_first_and_then_merging(pipe, name, config, agents):
    pipe.scheduler = getattr(diffusers, name)(**config)
    apply_agent_attention(pipe)
    seen = stages(pipe)
    assert seen == ["agents"] * agents + ["tome"] * (len(seen) - agents)
    expected = round(10 * agents / len(seen))
    assert estimate_agent_attention(pipe, 256, 256, 10).agent_steps == expected
    apply_agent_attention(pipe, stop=1.0)
    assert set(stages(pipe)) == {"agents"}


def test_a_scheduler_exchanged_after_applying(pipe):
    apply_agent_attention(pipe)
    first = stages(pipe)
    pipe.scheduler, own = diffusers.EDMEulerScheduler(), pipe.scheduler
    assert stages(pipe) == ["agents"] * 6 + ["tome"] * 4
    pipe.scheduler = own
    assert stages(pipe) == first


def test_copies_and_files_of_the_model_do_not_hold_the_pipeline(pipe):
    pipe.scheduler = diffusers.EDMEulerScheduler()
    apply_agent_attention(pipe)
    expected = stages(pipe)
    file = io.BytesIO()
    torch.save(pipe.unet, file)
    file.seek(0)
    for model in (copy.deepcopy(pipe.unet), torch.load(file, weights_only=False)):
        pipe.unet = model
        schedule = next(m.agent_slot.schedule for m in model.modules() if type(m) is AgentSelfAttention)
        assert schedule.noise_range._pipe is None
        assert stages(pipe) == expected


def test_a_scheduler_that_needs_more_than_a_number_of_steps(pipe):
    pipe.scheduler = diffusers.FlowMatchEulerDiscreteScheduler(use_dynamic_shifting=True)
    apply_agent_attention(pipe)
    schedule = next(m.agent_slot.schedule for m in pipe.unet.modules() if type(m) is AgentSelfAttention)
    assert schedule.noise_range.bounds == (0.0, 1000.0)
