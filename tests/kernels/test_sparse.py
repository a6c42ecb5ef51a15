"""Sparse attention against its definition written as loops, its two forms, and what the sparse one costs."""

import math
from functools import partial

import pytest
import torch
from parity import relative_error
from torch.utils.flop_counter import FlopCounterMode

from attnzoo.kernels import sparse_attention, use_backend
from attnzoo.kernels.sparse import largest_entries, top_mask

BACKENDS = ["reference", "torch"]


def draw(batch=2, queries=5, keys=7, heads=2, width=4, value_width=None, dtype=torch.float64):
    q = torch.randn(batch, queries, heads, width, dtype=dtype)
    k = torch.randn(batch, keys, heads, width, dtype=dtype)
    return q, k, torch.randn(batch, keys, heads, value_width or width, dtype=dtype)


def columns_of(q, k, budget):
    return torch.rand(q.shape[0], q.shape[2], q.shape[1], k.shape[1]).topk(budget, -1).indices


def as_mask(columns, keys):
    return torch.zeros(*columns.shape[:3], keys, dtype=torch.bool).scatter(-1, columns, True)


def bias_of(q, k):
    return torch.randn(q.shape[0], q.shape[2], q.shape[1], k.shape[1], dtype=q.dtype)


def run(backend, *args, **kwargs):
    with use_backend(backend):
        return sparse_attention(*args, **kwargs)


def by_loops(q, k, v, mask, bias, scale):
    out = q.new_zeros(*q.shape[:3], v.shape[-1])
    for b, n, h in ((b, n, h) for b in range(q.shape[0]) for n in range(q.shape[1]) for h in range(q.shape[2])):
        kept = mask[b, h, n].nonzero().flatten().tolist()
        weights = [math.exp(scale * float(q[b, n, h] @ k[b, m, h]) + float(bias[b, h, n, m])) for m in kept]
        for m, w in zip(kept, weights, strict=True):
            out[b, n, h] += w / sum(weights) * v[b, m, h]
    return out


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("with_bias", [False, True])
def test_is_the_definition_of_a_mask(backend, with_bias):
    q, k, v = draw(value_width=3)
    mask = torch.rand(2, 2, 5, 7) > 0.5
    mask[0, 1, 2] = False
    bias = bias_of(q, k)
    found = run(backend, q, k, v, mask, bias=bias if with_bias else None, scale=0.3)
    assert relative_error(found, by_loops(q, k, v, mask, bias if with_bias else 0 * bias, 0.3)) < 1e-12
    assert (found[0, 2, 1] == 0).all()


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize(("keys", "budget"), [(7, 3), (7, 7), (70, 1), (70, 2)])
@pytest.mark.parametrize("with_bias", [False, True])
def test_is_the_definition_of_columns(backend, keys, budget, with_bias):
    q, k, v = draw(keys=keys, value_width=3)
    columns, bias = columns_of(q, k, budget), bias_of(q, k)
    found = run(backend, q, k, v, columns, bias=bias if with_bias else None)
    expected = by_loops(q, k, v, as_mask(columns, keys), bias if with_bias else 0 * bias, 0.5)
    assert relative_error(found, expected) < 1e-12


@pytest.mark.parametrize(("dtype", "bound"), [(torch.float64, 1e-12), (torch.float32, 1e-6)])
@pytest.mark.parametrize("budget", [4, 50])
def test_torch_is_the_reference(budget, dtype, bound):
    q, k, v = draw(2, 196, 197, 3, 64, dtype=dtype)
    columns = columns_of(q, k, budget)
    truth = run("reference", *(x.double() for x in (q, k, v)), columns)
    assert relative_error(run("torch", q, k, v, columns), truth) < bound
    assert relative_error(run("torch", q, k, v, as_mask(columns, 197)), truth) < bound


def test_a_mask_for_all_images_and_heads():
    q, k, v = draw()
    mask = torch.rand(1, 1, 5, 7) > 0.4
    full = mask.expand(2, 2, 5, 7)
    for backend in BACKENDS:
        assert relative_error(run(backend, q, k, v, mask), run(backend, q, k, v, full)) < 1e-12


@pytest.mark.parametrize("budget", [2, 4, 8])
def test_cost_follows_the_budget(budget):
    q, k, v = draw(1, 256, 256, 2, 16, dtype=torch.float32)
    with FlopCounterMode(display=False) as counter:
        sparse_attention(q, k, v, columns_of(q, k, budget))
    assert counter.get_total_flops() == 2 * 2 * 2 * 256 * budget * 16


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("keys", [5, 60])
def test_gradcheck(backend, keys):
    inputs = [x.requires_grad_() for x in (*draw(1, 2, keys, 2, 3), torch.randn(1, 2, 2, keys, dtype=torch.float64))]
    columns = columns_of(inputs[0], inputs[1], 2)
    mask = as_mask(columns, keys)
    mask[0, 0, 1] = False
    with use_backend(backend):
        for kept in (columns, mask):
            attend = partial(sparse_attention, mask=kept)
            assert torch.autograd.gradcheck(lambda q, k, v, bias, attend=attend: attend(q, k, v, bias=bias), inputs)


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("budget", [1, 20])
def test_views_half_precision_and_no_image(backend, budget):
    packed = torch.randn(40, 2, 3, 2, 8).transpose(0, 1)
    q, k, v = packed.unbind(2)
    columns = columns_of(q, k, budget)
    expected = run(backend, *(x.contiguous() for x in (q, k, v)), columns)
    assert relative_error(run(backend, q, k, v, columns), expected) < 1e-6
    for dtype, bound in ((torch.float16, 1e-3), (torch.bfloat16, 1.6e-2)):
        found = run(backend, *(x.to(dtype) for x in (q, k, v)), columns)
        assert found.dtype == dtype
        assert relative_error(found, expected) < bound
    assert run(backend, q[:0], k[:0], v[:0], columns[:0]).shape == (0, 40, 2, 8)
    assert run(backend, q[:, :0], k, v, columns[:, :, :0]).shape == (2, 0, 2, 8)


@pytest.mark.parametrize(
    ("mask", "error", "says"),
    [
        (torch.ones(2, 2, 5, 7), TypeError, "mask must be a bool or int64"),
        (torch.ones(2, 2, 5, 6, dtype=torch.bool), ValueError, r"a bool mask must be \[B, heads, N, M\]"),
        (torch.ones(3, 2, 5, 7, dtype=torch.bool), ValueError, "a bool mask must be"),
        (torch.zeros(2, 2, 4, 3, dtype=torch.int64), ValueError, "columns must be"),
        (torch.zeros(2, 2, 5, 0, dtype=torch.int64), ValueError, "from 1 to 7"),
        (torch.zeros(2, 2, 5, 8, dtype=torch.int64), ValueError, "from 1 to 7"),
    ],
)
def test_mask_errors(mask, error, says):
    with pytest.raises(error, match=says):
        sparse_attention(*draw(), mask)


def test_other_errors():
    q, k, v = draw()
    mask = torch.ones(2, 2, 5, 7, dtype=torch.bool)
    with pytest.raises(ValueError, match="k must have q's 2 heads"):
        sparse_attention(q, k[:, :, :1], v[:, :, :1], mask)
    with pytest.raises(TypeError, match="bias must be a tensor of q's dtype"):
        sparse_attention(q, k, v, mask, bias=torch.zeros(2, 2, 5, 7))
    with pytest.raises(ValueError, match="bias must be"):
        sparse_attention(q, k, v, mask, bias=torch.zeros(2, 2, 5, 6, dtype=torch.float64))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
@pytest.mark.parametrize(("keys", "budget"), [(40, 1), (40, 10), (40, 40), (100, 4)])
def test_the_largest_entries_are_those_of_topk(dtype, keys, budget):
    scores = torch.stack([torch.randperm(keys) for _ in range(12)]).view(2, 3, 2, keys).to(dtype)
    found = largest_entries(scores.requires_grad_(), budget)
    as_columns = dtype == torch.bfloat16 or budget * 24 <= keys
    assert found.dtype == (torch.int64 if as_columns else torch.bool)
    assert torch.equal(as_mask(found, keys) if as_columns else found, as_mask(scores.topk(budget).indices, keys))


@pytest.mark.parametrize("values", [[3.0, 1.0, 1.0, 2.0], [math.inf, -math.inf, -math.inf, 0.0]])
def test_equal_entries_do_not_exceed_the_budget(values):
    scores = torch.tensor(values).expand(1, 1, 5, 4)
    assert top_mask(scores, 3) is None
    found = as_mask(largest_entries(scores, 3), 4)
    assert (found.sum(-1) == 3).all()
    assert found[..., [0, 3]].all()


def test_many_threads_select_by_themselves(monkeypatch):
    scores = torch.rand(1, 1, 5, 8)
    by_sorting = largest_entries(scores, 3)
    monkeypatch.setattr(torch, "get_num_threads", lambda: 16)
    assert top_mask(scores, 3) is None
    assert torch.equal(as_mask(largest_entries(scores, 3), 8), by_sorting)


def test_an_entry_that_is_not_a_number_is_kept():
    scores = torch.tensor([0.1, math.nan, 0.3, 0.2]).view(1, 1, 1, 4)
    assert largest_entries(scores, 2).flatten().tolist() in ([False, True, True, False], [1, 2], [2, 1])
