"""What is computed, against what the published AgentSD computes."""

import pytest
import torch
from diffusers.models.attention import BasicTransformerBlock
from diffusers.models.attention_processor import Attention
from parity import PARITY, load_arrays, published_state, reference_input, relative_error, requires_fixture

from attnzoo.diffusion import Stage, attend, attend_agents, plan_tokens
from attnzoo.zoo.diffusion.merging import _add_rows, _add_rows_by_product, match_tokens, merge_tokens, unmerge_tokens

BOUND = 1e-10


def fixtures(kind):
    found = sorted(path.stem for path in PARITY.glob(f"op_agentsd_{kind}_*.json"))
    return found or [f"op_agentsd_{kind}"]


def stage_of(args):
    return Stage(
        "agents",
        cell=(args["sy"], args["sx"]),
        merge_ratio=args["ratio"],
        agent_ratio=args["agent_ratio"],
        score_power=args.get("k_scale2", 0.3),
        shortcut=args.get("k_shortcut", 0.075),
    )


def self_attention(channels, heads, state):
    attn = Attention(channels, heads=heads, dim_head=channels // heads, bias=False).double()
    attn.load_state_dict(state, strict=True)
    return attn


@pytest.mark.parametrize("name", fixtures("attention"))
@torch.no_grad()
def test_attention(name):
    spec = requires_fixture(name)
    x, agents = (reference_input(spec["inputs"][key]) for key in ("x", "agent"))
    args = spec["args"]
    attn = self_attention(x.shape[-1], args["heads"], published_state(spec))
    out = attend_agents(attn, x, agents, args["k_scale2"], args["k_shortcut"])
    assert relative_error(out, load_arrays(name)["out"]) < BOUND


@pytest.mark.parametrize("name", fixtures("branch"))
@torch.no_grad()
def test_branch(name):
    spec, arrays = requires_fixture(name), load_arrays(name)
    state, stage = published_state(spec), stage_of(spec["args"])
    x = reference_input(spec["inputs"]["x"])
    channels = x.shape[-1]
    norm = torch.nn.functional.layer_norm(
        x, (channels,), state.pop("norm1.weight"), state.pop("norm1.bias"), spec["norm_eps"]
    )
    attn = self_attention(channels, spec["heads"], {key.removeprefix("attn1."): t for key, t in state.items()})
    choice = arrays["dst_choice"].long() if spec["random_dst"] else None
    out = attend(attn, norm, x, tuple(spec["tokens"]), stage, choice)
    assert relative_error(out, arrays["branch"]) < BOUND
    plan = plan_tokens(stage, *spec["tokens"])
    assert (plan.features, plan.agents) == (spec["merged_tokens"], spec["agent_tokens"])


@pytest.mark.parametrize("name", fixtures("block"))
@torch.no_grad()
def test_whole_block(name):
    """Through the patched class and its hooks."""
    from attnzoo.zoo.diffusion import patch
    from attnzoo.zoo.diffusion.attention import AgentSelfAttention, Slot
    from attnzoo.zoo.diffusion.schedule import Schedule
    from attnzoo.zoo.diffusion.settings import AgentSettings

    spec, arrays = requires_fixture(name), load_arrays(name)
    x, context = (reference_input(spec["inputs"][key]) for key in ("x", "context"))
    heads = spec["heads"]
    block = BasicTransformerBlock(
        x.shape[-1], heads, x.shape[-1] // heads, cross_attention_dim=context.shape[-1], norm_eps=spec["norm_eps"]
    )
    block.double().eval().load_state_dict(published_state(spec), strict=True)
    schedule = Schedule(AgentSettings())
    schedule.stage = stage_of(spec["args"])
    slot = Slot(schedule)
    slot.grid = tuple(spec["tokens"])
    block.attn1.agent_slot, block.attn1.__class__ = slot, AgentSelfAttention
    patch._hook(block, patch._INPUT_HOOK, slot.take_input)
    branch = []
    block.attn1.register_forward_hook(lambda module, args, out: branch.append(out))
    out = block(x, encoder_hidden_states=context)
    assert relative_error(out, arrays["block"]) < BOUND
    assert relative_error(branch[0], arrays["branch"]) < BOUND
    assert slot.x is None


def test_token_counts():
    """All of the published table: 7 latents, 3 levels, 5 settings."""
    spec = requires_fixture("op_agentsd_counts")
    for row in spec["rows"]:
        (height, width), (rows, columns) = row["latent"], row["tokens"]
        args = row["args"]
        downsample = round((height / rows * width / columns) ** 0.5)
        stage = stage_of(args) if downsample <= args["max_downsample"] else Stage()
        plan = plan_tokens(stage, rows, columns)
        assert (plan.features, plan.agents) == (row["merged_tokens"], row["agent_tokens"]), row
        assert (plan.agents is not None) == row["agent_used"]


def test_merging_is_the_mean_and_unmerging_copies():
    x = torch.randn(2, 35, 6, dtype=torch.float64)
    matching = match_tokens(x, (5, 7), (2, 3))
    assert matching.destinations.tolist() == [0, 3, 14, 17]
    merged = merge_tokens(x, matching, 31)
    for image in range(2):
        for slot, destination in enumerate(matching.destinations.tolist()):
            members = matching.ranked[image][matching.partners[image] == slot]
            mean = x[image, [destination, *members.tolist()]].mean(0)
            torch.testing.assert_close(merged[image, slot], mean)
    back = unmerge_tokens(merged, matching, 31)
    for image in range(2):
        for token, partner in zip(matching.ranked[image], matching.partners[image], strict=True):
            assert torch.equal(back[image, token], merged[image, partner])
    assert torch.equal(unmerge_tokens(merge_tokens(x, matching, 0), matching, 0), x)


def test_sums_by_product_are_the_sums():
    sums, rows = torch.randn(2, 4, 3, dtype=torch.float64), torch.randn(2, 9, 3, dtype=torch.float64)
    index = torch.randint(4, (2, 9))
    torch.testing.assert_close(_add_rows_by_product(sums, index, rows), _add_rows(sums, index, rows))


def test_a_chunked_search_finds_the_same(monkeypatch):
    from attnzoo.zoo.diffusion import merging

    x = torch.randn(2, 64, 8, dtype=torch.float64)
    whole = match_tokens(x, (8, 8), (2, 2))
    monkeypatch.setattr(merging, "_CHUNK", 100)
    parts = match_tokens(x, (8, 8), (2, 2))
    assert torch.equal(whole.ranked, parts.ranked)
    assert torch.equal(whole.partners, parts.partners)


def test_a_token_of_zeros_gives_no_nan():
    x = torch.randn(2, 16, 8)
    x[:, 3] = 0
    attn = Attention(8, heads=2, dim_head=4)
    assert torch.isfinite(attend(attn, x, x, (4, 4), Stage("agents", merge_ratio=0.3, agent_ratio=0.9))).all()


@pytest.mark.parametrize("grid", [(1, 1), (3, 3), (1, 40), (2, 9)])
@pytest.mark.parametrize("source", ["merge", "grid"])
@pytest.mark.parametrize("kind", ["agents", "tome", "todo"])
def test_tiny_grids(grid, source, kind):
    x = torch.randn(2, grid[0] * grid[1], 8)
    attn = Attention(8, heads=2, dim_head=4)
    out = attend(attn, x, x, grid, Stage(kind, agent_source=source, merge_ratio=0.4))
    assert out.shape == x.shape
    assert torch.isfinite(out).all()


@torch.no_grad()
def test_grid_agents_are_the_means_of_the_cells():
    x = torch.randn(2, 64, 8, dtype=torch.float64)
    attn = Attention(8, heads=2, dim_head=4).double()
    means = x.view(2, 2, 4, 2, 4, 8).mean((2, 4)).flatten(1, 2)
    out = attend(attn, x, x, (8, 8), Stage("agents", agent_source="grid"))
    torch.testing.assert_close(out, attend_agents(attn, x, means))


@torch.no_grad()
def test_todo_takes_one_key_a_cell():
    x = torch.randn(2, 30, 8, dtype=torch.float64)
    attn = Attention(8, heads=2, dim_head=4).double()
    fewer = x.view(2, 5, 6, 8)[:, ::2, ::2].flatten(1, 2)
    torch.testing.assert_close(attend(attn, x, x, (5, 6), Stage("todo", cell=(2, 2))), attn(x, fewer))


@pytest.mark.parametrize("source", ["merge", "grid"])
def test_a_wanted_number_of_agents(source):
    for agents in (16, 30, 100):
        plan = plan_tokens(Stage("agents", agent_source=source, agents=agents), 32, 48)
        assert plan.agents <= max(agents, 96 if source == "merge" else 0)
        assert plan.agents >= 0.8 * agents
