"""Sparsifiner's attention: the predicted connections against the published predictor's, and what they are used for."""

import pytest
import torch
from parity import load_arrays, reference_input, reference_state, relative_error, requires_fixture

from attnzoo.layers import SparsifinerAttention
from attnzoo.layers.sparsifiner import ConnectivityPredictor, resample_mixing, resample_tokens

MASKS = ["op_sparsifiner_mask", "op_sparsifiner_mask_threshold", "op_sparsifiner_mask_tokens"]


def connected(selected, keys):
    """Columns as a bool mask; a bool mask as it is."""
    if selected.dtype == torch.bool:
        return selected
    return torch.zeros(*selected.shape[:3], keys, dtype=torch.bool).scatter(-1, selected, True)


def layer_and_input(grid=(6, 5), dtype=torch.float64, **predictor):
    torch.manual_seed(0)
    layer = SparsifinerAttention(24, 2, grid, predictor=dict(num_basis=9, **predictor)).to(dtype)
    return layer, torch.randn(2, 1 + grid[0] * grid[1], 24, dtype=dtype)


@pytest.mark.parametrize("name", MASKS)
def test_published_connections(name):
    spec, arrays = requires_fixture(name), load_arrays(name)
    arguments = spec["arguments"]
    names = ("attn_keep_rate", "reduce_n_factor", "reduce_c_factor", "basis_threshold", "basis_coef_topk")
    settings = {key: arguments[key] for key in (*names, "basis_coef_threshold", "attn_score_threshold")}
    side = round((arguments["num_tokens"] - 1) ** 0.5)
    head_dim = arguments["dim"] // arguments["num_heads"]
    predictor = ConnectivityPredictor((side, side), arguments["num_heads"], head_dim, **settings).double()
    predictor.load_state_dict(reference_state(spec["state"]))
    q, k = (reference_input(spec["inputs"][key]).transpose(1, 2) for key in "qk")
    keep = arrays["token_mask"].bool() if "token_mask" in arrays else None
    scores, coefs = predictor.estimate(q, k, keep=keep)
    assert relative_error(coefs, arrays["basis_coef"]) < 1e-7
    assert relative_error(scores, arrays["approx_attn"]) < 1e-7
    assert abs(scores.mean().item() - spec["outputs"]["approx_attn"]["mean"]) < 1e-10
    mask = arrays["attn_mask"].bool()
    assert mask[:, :, 0].all()
    assert torch.equal(connected(predictor.select(scores, keep), side**2 + 1), mask[:, :, 1:])


@pytest.mark.parametrize("predictor", [{}, dict(basis_coef_threshold=0.05, attn_score_threshold=0.3)])
def test_attention_over_the_connections(predictor):
    layer, x = layer_and_input(**predictor)
    layer.eval()
    q, k, v = layer.qkv(x).unflatten(-1, (3, 2, -1)).unbind(2)
    scores, _ = layer.predictor.estimate(q, k)
    mask = connected(layer.predictor.select(scores), 31)
    mask = torch.cat([torch.ones_like(mask[:, :, :1]), mask], dim=2)
    weights = torch.einsum("bnhd,bmhd->bhnm", q, k) / 12**0.5
    weights = weights.masked_fill(~mask, float("-inf")).softmax(-1).nan_to_num(0.0)
    out, looked_at = layer(x)
    expected = layer.proj(torch.einsum("bhnm,bmhd->bnhd", weights, v).flatten(2))
    assert relative_error(out, expected) < 1e-12
    assert relative_error(looked_at, weights[:, :, 0, 1:].mean(1)) < 1e-12


def test_the_budget_and_dropped_patches():
    layer, _ = layer_and_input(attn_keep_rate=0.3)
    q, k = torch.randn(2, 2, 31, 2, 12, dtype=torch.float64)
    keep = torch.rand(2, 30) > 0.5
    scores, _ = layer.predictor.estimate(q, k, keep=keep)
    assert (connected(layer.predictor.select(scores), 31).sum(-1) == 10).all()
    mask = connected(layer.predictor.select(scores, keep, num_kept=4), 31)
    assert (mask.sum(-1) == 4).all()
    assert not (mask[..., 1:] & ~keep[:, None, None]).any()


def test_training_changes_no_value_and_teaches_the_predictor():
    layer, x = layer_and_input()
    x.requires_grad_()
    results = []
    for training in (True, False):
        layer.train(training)
        layer.zero_grad()
        x.grad = None
        out, _ = layer(x)
        out.square().sum().backward()
        results.append((out.detach(), x.grad.clone(), layer.qkv.weight.grad.clone()))
        gradients = [p.grad for p in layer.predictor.parameters()]
        assert all(g.abs().max() > 0 for g in gradients) if training else gradients == [None] * 6
    for trained, evaluated in zip(*results, strict=True):
        torch.testing.assert_close(trained, evaluated, rtol=1e-10, atol=1e-12)


def test_resampling_keeps_the_class_token_and_what_is_constant():
    table = torch.full((1 + 6 * 5, 3), 2.0)
    table[0] = torch.arange(3.0)
    tokens, mixing = (fit(table, (6, 5), (12, 10)) for fit in (resample_tokens, resample_mixing))
    assert tokens.shape == mixing.shape == (121, 3)
    assert torch.equal(tokens[0], table[0]) and torch.equal(mixing[0], table[0])
    torch.testing.assert_close(tokens[1:], torch.full((120, 3), 2.0))
    torch.testing.assert_close(mixing[1:].sum(0), table[1:].sum(0))


@pytest.mark.parametrize("grid", [(12, 9), (5, 6), (3, 2)])
def test_other_maps(grid):
    layer, _ = layer_and_input()
    out, looked_at = layer.eval()(torch.randn(2, 1 + grid[0] * grid[1], 24, dtype=torch.float64), grid)
    assert out.shape == (2, 1 + grid[0] * grid[1], 24) and out.isfinite().all()
    assert looked_at.shape == (2, grid[0] * grid[1])


@pytest.mark.parametrize(("dtype", "bound"), [(torch.float16, 1e-2), (torch.bfloat16, 3e-2)])
def test_autocast_on_the_tokens_of_1024_pixels(dtype, bound):
    torch.manual_seed(0)
    layer, x = SparsifinerAttention(32, 1, (14, 14)).eval(), torch.randn(1, 4097, 32)
    with torch.no_grad():
        expected, _ = layer(x, (64, 64))
        with torch.autocast("cpu", dtype):
            found, _ = layer(x, (64, 64))
    assert relative_error(found, expected) < bound


@pytest.mark.parametrize(
    ("settings", "says"),
    [
        (dict(attn_keep_rate=0.0), "attn_keep_rate=0.0"),
        (dict(attn_keep_rate=1.5), "attn_keep_rate=1.5"),
        (dict(reduce_n_factor=0), "reduce_n_factor=0"),
        (dict(reduce_n_factor=200), "reduce_n_factor=200"),
        (dict(reduce_c_factor=33), "reduce_c_factor=33"),
        (dict(num_basis=0), "num_basis=0"),
        (dict(basis_coef_topk=33), "basis_coef_topk=33"),
    ],
)
def test_arguments(settings, says):
    with pytest.raises(ValueError, match=says):
        ConnectivityPredictor((14, 14), 2, 32, **settings)
    with pytest.raises(ValueError, match="num_heads=3"):
        SparsifinerAttention(64, 3, (14, 14))


def test_gradients_of_every_sample():
    torch.manual_seed(0)
    layer = SparsifinerAttention(16, 2, (4, 4), predictor=dict(reduce_n_factor=2)).double().eval()
    x = torch.randn(3, 17, 16, dtype=torch.float64)
    parameters = dict(layer.named_parameters())

    def loss(parameters, sample):
        return torch.func.functional_call(layer, parameters, (sample[None],))[0].square().sum()

    each = torch.func.vmap(torch.func.grad(loss), in_dims=(None, 0))(parameters, x)
    layer(x)[0].square().sum().backward()
    torch.testing.assert_close(each["qkv.weight"].sum(0), layer.qkv.weight.grad)
