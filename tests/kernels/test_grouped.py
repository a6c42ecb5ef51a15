"""Grouped-query attention against its definition written as loops, and its two forms."""

import math

import pytest
import torch
from parity import relative_error

from attnzoo.kernels import grouped_query_attention, use_backend

BACKENDS = ["reference", "torch"]
UNEQUAL = torch.tensor([0, 0, 0, 2])


def draw(batch=2, queries=5, keys=7, heads=4, kv_heads=2, width=4, value_width=None, dtype=torch.float64):
    q = torch.randn(batch, queries, heads, width, dtype=dtype)
    k = torch.randn(batch, keys, kv_heads, width, dtype=dtype)
    return q, k, torch.randn(batch, keys, kv_heads, value_width or width, dtype=dtype)


def run(backend, *args, **kwargs):
    with use_backend(backend):
        return grouped_query_attention(*args, **kwargs)


def by_loops(q, k, v, groups, scale):
    out = q.new_zeros(*q.shape[:3], v.shape[-1])
    for b, n, h in ((b, n, h) for b in range(q.shape[0]) for n in range(q.shape[1]) for h in range(q.shape[2])):
        weights = [math.exp(scale * float(q[b, n, h] @ key)) for key in k[b, :, groups[h]]]
        out[b, n, h] = sum(w * value for w, value in zip(weights, v[b, :, groups[h]], strict=True)) / sum(weights)
    return out


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("value_width", [4, 3])
def test_is_the_definition(backend, value_width):
    q, k, v = draw(value_width=value_width)
    assert relative_error(run(backend, q, k, v), by_loops(q, k, v, [0, 0, 1, 1], 0.5)) < 1e-12
    q, k, v = draw(kv_heads=3, value_width=value_width)
    found = run(backend, q, k, v, UNEQUAL, scale=0.3)
    assert relative_error(found, by_loops(q, k, v, UNEQUAL.tolist(), 0.3)) < 1e-12


@pytest.mark.parametrize(("dtype", "bound"), [(torch.float64, 1e-12), (torch.float32, 1e-6)])
@pytest.mark.parametrize(("heads", "kv_heads", "width"), [(6, 3, 64), (8, 8, 16), (5, 1, 7)])
def test_torch_is_the_reference(heads, kv_heads, width, dtype, bound):
    q, k, v = draw(1, 131, 67, heads, kv_heads, width, dtype=dtype)
    for groups in (None, torch.randint(kv_heads, (heads,))):
        truth = run("reference", *(x.double() for x in (q, k, v)), groups)
        assert relative_error(run("torch", q, k, v, groups), truth) < bound


@pytest.mark.parametrize("groups", [[0, 0, 0, 1, 1, 2], [2, 0, 0, 1, 2, 2], [1] * 6])
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16])
@torch.no_grad()
def test_many_keys_are_read_where_they_are(groups, dtype, monkeypatch):
    """A call a run of heads, whatever the layout; where a head is none of k's, an error."""
    monkeypatch.setattr(torch.Tensor, "index_select", lambda *args: pytest.fail("keys are copied"))
    q, k, v = draw(3, 35, 701, 6, 3, 33, value_width=16, dtype=torch.float64)
    k = k.transpose(1, 2).contiguous().transpose(1, 2)
    truth = run("reference", q, k, v, torch.tensor(groups))
    q, k, v = (x.to(dtype) for x in (q, k, v))
    found = run("torch", q, k, v, torch.tensor(groups))
    assert found.is_contiguous() and found.dtype == dtype
    assert relative_error(found, truth) < {torch.float64: 1e-12, torch.float32: 1e-6, torch.bfloat16: 1.6e-2}[dtype]
    with pytest.raises(IndexError):
        run("torch", q, k, v, torch.tensor([*groups[:5], 3]))


@pytest.mark.parametrize("backend", BACKENDS)
def test_views_of_a_projection_and_half_precision(backend):
    packed = torch.randn(2, 9, 3, 4, 8).transpose(0, 1)
    q, k, v = packed.unbind(2)
    expected = run(backend, *(x.contiguous() for x in (q, k, v)))
    assert relative_error(run(backend, q, k, v), expected) < 1e-6
    for dtype, bound in ((torch.float16, 1e-3), (torch.bfloat16, 1.6e-2)):
        found = run(backend, *(x.to(dtype) for x in (q, k, v)))
        assert found.dtype == dtype
        assert relative_error(found, expected) < bound


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("groups", [None, torch.tensor([1, 0, 1, 1])])
def test_gradcheck_and_no_image(backend, groups):
    inputs = [x.requires_grad_() for x in draw(1, 3, 4, width=3)]
    with use_backend(backend):
        assert torch.autograd.gradcheck(lambda *x: grouped_query_attention(*x, groups), inputs)
    assert run(backend, *draw(0), groups).shape == (0, 5, 4, 4)


def test_a_head_that_no_query_reads_gets_no_gradient_but_zeros():
    q, k, v = (x.requires_grad_() for x in draw(kv_heads=3))
    grouped_query_attention(q, k, v, UNEQUAL).sum().backward()
    assert v.grad[:, :, 1].abs().max() == 0
    assert v.grad[:, :, 0].abs().max() > 0


@pytest.mark.parametrize(
    ("change", "error", "says"),
    [
        (lambda q, k, v: (q[0], k, v), ValueError, "q must be"),
        (lambda q, k, v: (q, k[..., :3], v), ValueError, "k must have q's batch and channels"),
        (lambda q, k, v: (q, k, v[:, :3]), ValueError, "v must have k's shape"),
        (lambda q, k, v: (q, k.float(), v), TypeError, "k has dtype"),
        (lambda q, k, v: (q, k, v.long()), TypeError, "v must be floating point"),
        (lambda q, k, v: (q, None, v), TypeError, "k must be a tensor"),
        (lambda q, k, v: (q, k[:, :0], v[:, :0]), ValueError, "needs a head, a channel and a key"),
        (lambda q, k, v: (q[:, :, :3], k, v), ValueError, "3 heads are no multiple of k's 2"),
        (lambda q, k, v: (q, k, v, [0, 0, 1, 1]), TypeError, "groups must be an int64 tensor"),
        (lambda q, k, v: (q, k, v, torch.zeros(3, dtype=torch.int64)), ValueError, r"groups must have shape \(4,\)"),
    ],
)
def test_errors(change, error, says):
    with pytest.raises(error, match=says):
        grouped_query_attention(*change(*draw()))


def test_scale_is_a_number():
    with pytest.raises(TypeError, match="scale must be a number"):
        grouped_query_attention(*draw(), scale="1")
