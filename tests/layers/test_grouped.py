"""Grouped-query attention's layers against the published modules, and how they divide heads."""

import copy

import numpy as np
import pytest
import torch
from parity import load_arrays, reference_input, reference_state, relative_error, requires_fixture
from torch.utils.checkpoint import checkpoint

from attnzoo.layers import DynamicGQA, GroupedQueryAttention, KeyDistributedGQA, PerturbedGQA
from attnzoo.layers.grouped import allocate_heads, group_fused_attention, key_norms, pool_heads

PUBLISHED = {
    "op_kdgqa_mhsa": GroupedQueryAttention,
    "op_kdgqa_gqa": GroupedQueryAttention,
    "op_kdgqa_gqa_8_2": GroupedQueryAttention,
    "op_kdgqa_kdgqa": KeyDistributedGQA,
    "op_kdgqa_kdgqa_8_4": KeyDistributedGQA,
    "op_kdgqa_dgqa_diff": DynamicGQA,
    "op_kdgqa_dgqa_ema": DynamicGQA,
    "op_kdgqa_pgqa": PerturbedGQA,
    "op_kdgqa_pgqa_quiet": GroupedQueryAttention,
}
LAYERS = [GroupedQueryAttention, KeyDistributedGQA, DynamicGQA, PerturbedGQA]


def numpy_noise(seed):
    stream = np.random.RandomState(seed)
    return lambda rows, columns: torch.from_numpy(stream.random_sample((rows, columns)))


def published(spec):
    arguments = spec["arguments"]
    heads = arguments["num_heads"]
    own = {"update": arguments["kind"]} if "kind" in arguments else {}
    layer = (
        PUBLISHED[spec["name"]](arguments["dim"], heads, arguments.get("num_kv_heads", heads), **own).double().eval()
    )
    layer.load_state_dict(reference_state(spec["state"]), strict="kind" not in arguments)
    if "noise" in spec:
        layer.noise = numpy_noise(spec["noise"]["seed"])
    return layer


@pytest.mark.parametrize("name", PUBLISHED)
def test_published_module(name):
    spec, arrays = requires_fixture(name), load_arrays(name)
    layer = published(spec)
    outputs = ["output", "output_second_call"][: len(spec["inputs"])]
    for x, output, counts in zip(
        spec["inputs"].values(), outputs, spec.get("query_heads_per_group_by_block", [None] * 2), strict=False
    ):
        found = layer(reference_input(x))
        assert relative_error(found, arrays[output]) < 1e-7
        assert abs(found.mean().item() - spec["outputs"][output]["mean"]) < 1e-10
        if isinstance(layer, DynamicGQA):
            assert layer.head_counts.tolist() == counts
        elif isinstance(layer, KeyDistributedGQA):
            k = layer.k(reference_input(x)).unflatten(-1, (layer.num_kv_heads, -1))
            assert layer.heads_per_group(k).tolist() == counts
    if "cache_after" in arrays:
        assert relative_error(layer.key_norms, arrays["cache_after"]) < 1e-7


def test_published_conversion():
    spec, arrays = requires_fixture("op_kdgqa_convert"), load_arrays("op_kdgqa_convert")
    sizes = [spec["arguments"][key] for key in ("num_heads", "num_kv_heads")]
    for prefix in ("", "blocks.3.attn."):
        state = {prefix + key: value for key, value in reference_state(spec["state"]).items()}
        found = group_fused_attention({**state, "head.weight": torch.ones(1)}, *sizes)
        assert found.pop("head.weight").item() == 1
        assert set(found) == {prefix + key for key in arrays}
        assert all(relative_error(found[prefix + key], value) < 1e-7 for key, value in arrays.items())
    with pytest.raises(ValueError, match="num_kv_heads=4"):
        pool_heads(torch.randn(48, 3), 6, 4)


def test_as_many_key_heads_as_query_heads_is_plain_attention():
    layer, x = GroupedQueryAttention(24, 4, 4).double(), torch.randn(2, 7, 24, dtype=torch.float64)
    q, k, v = (project(x).unflatten(-1, (4, 6)).transpose(1, 2) for project in (layer.q, layer.k, layer.v))
    weights = (q @ k.transpose(-2, -1) / 6**0.5).softmax(-1)
    assert relative_error(layer(x), layer.proj((weights @ v).transpose(1, 2).flatten(2))) < 1e-12


def by_steps(shares, heads):
    """The published rule: round, then one head at a time."""
    counts = [round(share / sum(shares) * heads) for share in shares]
    while sum(counts) > heads:
        counts[counts.index(max(counts))] -= 1
    while sum(counts) < heads:
        counts[counts.index(min(counts))] += 1
    return counts


def test_heads_are_divided_as_published():
    numbers = np.random.RandomState(0)
    for groups, heads in ((2, 8), (3, 6), (4, 16), (5, 7), (7, 20)):
        for _ in range(200):
            shares = numbers.random_sample(groups) ** 3
            found = allocate_heads(torch.tensor(shares), heads)
            assert found.tolist() == by_steps(shares.tolist(), heads), (shares, heads)
    # All in one group's favour, and halves, which round to even.
    assert allocate_heads(torch.tensor([1e-9, 1.0, 0.0]), 6).tolist() == [0, 6, 0]
    assert allocate_heads(torch.tensor([1.0, 1.0, 2.0]), 6).tolist() == by_steps([1, 1, 2], 6) == [2, 2, 2]


@pytest.mark.parametrize("shares", [[0.0, 0.0, 0.0], [float("nan")] * 3, [float("inf"), 1.0, 1.0]])
def test_shares_that_say_nothing_are_equal(shares):
    assert allocate_heads(torch.tensor(shares), 8).tolist() == [3, 3, 2]


def test_equal_norms_and_one_group():
    keys = torch.randn(1, 5, 1, 3)
    assert KeyDistributedGQA(12, 4, 2).heads_per_group(torch.cat([keys, -keys], dim=2)).tolist() == [2, 2]
    assert KeyDistributedGQA(12, 4, 1).heads_per_group(keys).tolist() == [4]


@pytest.mark.parametrize("update", ["diff", "ema"])
def test_dynamic_bookkeeping_across_training(update):
    torch.manual_seed(0)
    layer = DynamicGQA(24, 8, 4, update=update, window_size=2).double().train()
    kept, counts = torch.zeros(4, dtype=torch.float64), [2, 2, 2, 2]
    for step in range(5):
        x = torch.randn(2, 3, 24, dtype=torch.float64) * torch.rand(24, dtype=torch.float64) * (1 + step)
        norms = key_norms(layer.k(x).unflatten(-1, (4, -1)))
        if step % 2 == 0:
            shares = (kept - norms).abs() if update == "diff" else 0.9 * norms + 0.1 * kept
            kept, counts = (kept + norms) / 2, by_steps(shares.tolist(), 8)
        layer(x)
        torch.testing.assert_close(layer.key_norms, kept)
        assert layer.head_counts.tolist() == counts
    other = DynamicGQA(24, 8, 4, update=update, window_size=2).double()
    other.load_state_dict(layer.state_dict())
    assert other.step == 5
    torch.testing.assert_close(other(x), layer(x))


def test_a_checkpointed_forward_runs_the_same_step_again():
    torch.manual_seed(1)
    layer = DynamicGQA(24, 8, 4, update="diff").double().train()
    with torch.no_grad():
        layer.k.weight.mul_(torch.linspace(0.2, 3, 12)[:, None])
    twin, x = copy.deepcopy(layer), torch.randn(2, 5, 24, dtype=torch.float64)
    for _ in range(3):
        for module, run in ((layer, layer), (twin, lambda y: checkpoint(twin, y, use_reentrant=False))):
            module.zero_grad()
            run(x).square().sum().backward()
    assert twin.step == layer.step == 3
    for (name, a), b in zip(layer.named_parameters(), twin.parameters(), strict=True):
        torch.testing.assert_close(a.grad, b.grad, msg=name)


def test_noise_is_fixed_in_evaluation_and_drawn_in_training():
    torch.manual_seed(0)
    layer, x = PerturbedGQA(24, 4, 2), torch.randn(2, 5, 24)
    assert not torch.equal(layer(x), layer(x))
    layer.generator = torch.Generator().manual_seed(3)
    drawn = [layer(x), layer(x)]
    assert not torch.equal(*drawn)
    layer.generator.manual_seed(3)
    assert torch.equal(layer(x), drawn[0])
    layer.generator = None
    layer.eval()
    assert torch.equal(layer(x), layer(x))
    other = PerturbedGQA(24, 4, 2, seed=1).eval()
    other.load_state_dict(layer.state_dict())
    assert not torch.allclose(other(x), layer(x))


def test_noise_has_the_output_s_mean_and_deviation():
    layer = PerturbedGQA(64, 4, 2).double().eval()
    q, k, v = torch.randn(2, 50, 4, 16), torch.randn(2, 50, 2, 16), torch.randn(2, 50, 2, 16)
    plain = GroupedQueryAttention.attend(layer, *(x.double() for x in (q, k, v)))
    noise = plain - layer.attend(*(x.double() for x in (q, k, v)))
    rows, noise = (x.transpose(1, 2).flatten(2) for x in (plain, noise))
    torch.testing.assert_close(noise.mean(-1), rows.mean(-1))
    torch.testing.assert_close(noise.std(-1), rows.std(-1))
    alike = torch.corrcoef(torch.cat([noise[0], rows[0]])).abs()
    assert (alike[:4, :4] - torch.eye(4)).max() < 0.15
    assert alike[:4, 4:].max() < 0.15


@pytest.mark.parametrize("layer", LAYERS)
def test_every_parameter_gets_a_gradient_and_no_image_works(layer):
    module = layer(24, 4, 2).train()
    module(torch.randn(2, 5, 24)).square().sum().backward()
    assert all(p.grad is not None for p in module.parameters())
    assert module(torch.randn(0, 5, 24)).shape == (0, 5, 24)


@pytest.mark.parametrize("layer", LAYERS)
@pytest.mark.parametrize(("dtype", "bound"), [(torch.float16, 1e-2), (torch.bfloat16, 3e-2)])
def test_autocast_on_the_tokens_of_1024_pixels(layer, dtype, bound):
    torch.manual_seed(0)
    module, x = layer(64, 2, 1).eval(), torch.randn(1, 4097, 64)
    with torch.no_grad():
        expected = module(x)
        with torch.autocast("cpu", dtype):
            found = module(x)
    assert relative_error(found, expected) < bound


@pytest.mark.parametrize(
    ("build", "says"),
    [
        (lambda: GroupedQueryAttention(24, 5), "num_heads=5"),
        (lambda: GroupedQueryAttention(24, 4, 3), "num_kv_heads=3"),
        (lambda: KeyDistributedGQA(24, 4, 0), "num_kv_heads=0"),
        (lambda: DynamicGQA(24, 4, 2, update="mean"), "update='mean'"),
        (lambda: DynamicGQA(24, 4, 2, window_size=0), "window_size=0"),
    ],
)
def test_arguments(build, says):
    with pytest.raises(ValueError, match=says):
        build()
