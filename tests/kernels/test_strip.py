"""Strip attention against its definition written as loops, and its two forms."""

import math

import pytest
import torch
from parity import relative_error

from attnzoo.kernels import strip_attention, use_backend

BACKENDS = ["reference", "torch"]


def draw(batch=2, queries=6, keys=4, heads=2, qk_width=1, width=5, dtype=torch.float64):
    q = torch.randn(batch, queries, heads, qk_width, dtype=dtype)
    k = torch.randn(batch, keys, heads, qk_width, dtype=dtype)
    return q, k, torch.randn(batch, keys, heads, width, dtype=dtype)


def run(backend, *args, **kwargs):
    with use_backend(backend):
        return strip_attention(*args, **kwargs)


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize(("qk_width", "scale"), [(1, None), (3, None), (3, 0.2), (7, None)])
def test_is_the_definition(backend, qk_width, scale):
    q, k, v = draw(qk_width=qk_width)
    factor = scale or qk_width**-0.5
    expected = torch.zeros(2, 6, 2, 5, dtype=torch.float64)
    for b, n, h in ((b, n, h) for b in range(2) for n in range(6) for h in range(2)):
        weights = [math.exp(factor * float(q[b, n, h] @ key)) for key in k[b, :, h]]
        expected[b, n, h] = sum(w * value for w, value in zip(weights, v[b, :, h], strict=True)) / sum(weights)
    assert relative_error(run(backend, q, k, v, scale=scale), expected) < 1e-12


@pytest.mark.parametrize(("dtype", "bound"), [(torch.float64, 1e-12), (torch.float32, 1e-6)])
@pytest.mark.parametrize(
    ("queries", "keys", "heads", "width"), [(784, 49, 2, 32), (131, 17, 3, 7), (1, 1, 1, 1), (90, 300, 2, 32)]
)
def test_torch_is_the_reference(queries, keys, heads, width, dtype, bound):
    q, k, v = draw(1, queries, keys, heads, 1, width, dtype=dtype)
    truth = run("reference", *(x.double() for x in (q, k, v)))
    assert relative_error(run("torch", q, k, v), truth) < bound


def test_gradcheck_of_many_keys():
    inputs = [x.requires_grad_() for x in draw(1, 2, 260, 1, 1, 2)]
    assert torch.autograd.gradcheck(strip_attention, inputs)


def test_autocast_lowers_no_score():
    q, k, v = draw(dtype=torch.float32)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        found = run("torch", q, k, v)
    assert found.dtype == torch.float32
    assert torch.equal(found, run("torch", q, k, v))


@pytest.mark.parametrize("backend", BACKENDS)
def test_gradcheck_views_and_no_image(backend):
    inputs = [x.requires_grad_() for x in draw(1, 3, 4, 2, 2, 3)]
    with use_backend(backend):
        assert torch.autograd.gradcheck(strip_attention, inputs)
    q, k, v = (x.transpose(0, 1).contiguous().transpose(0, 1) for x in draw())
    assert relative_error(run(backend, q, k, v), run(backend, *(x.contiguous() for x in (q, k, v)))) < 1e-12
    assert run(backend, *draw(0)).shape == (0, 6, 2, 5)


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16], ids=str)
def test_half_precision(backend, dtype):
    torch.manual_seed(0)
    inputs = [x.to(dtype) for x in draw(1, 256, 64, 1, 1, 32)]
    found = run(backend, *inputs)
    assert found.dtype == dtype
    # Against the truth of the rounded inputs: that of the others is as far off as their rounding takes it.
    assert relative_error(found, run("reference", *(x.double() for x in inputs))) < torch.finfo(dtype).eps / 2


@pytest.mark.parametrize(
    ("change", "error", "says"),
    [
        (lambda q, k, v: (q, k[:, :, :1], v[:, :, :1]), ValueError, "k must have q's 2 heads"),
        (lambda q, k, v: (q, k[0], v), ValueError, "k must be"),
        (lambda q, k, v: (q, k, v[:, 1:]), ValueError, "v must have k's shape"),
        (lambda q, k, v: (q.half(), k, v), TypeError, "k has dtype"),
    ],
)
def test_errors(change, error, says):
    with pytest.raises(error, match=says):
        strip_attention(*change(*draw()))
