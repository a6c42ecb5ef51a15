"""Bi-level routing attention against the definition written as loops, and its implementations against each other."""

import numpy as np
import pytest
import torch
from parity import relative_error

from attnzoo.kernels import bi_level_routing_attention, use_backend

BACKENDS = ["reference", "torch"]
# (H, W), num_regions, topk: each path of the torch implementation, square and not.
CASES = [
    ((12, 12), 3, 1),
    ((12, 9), 3, 4),
    ((10, 12), (5, 3), 2),
    ((14, 14), 7, 16),
    ((14, 7), 7, 12),
    ((6, 8), (2, 4), 8),
    ((7, 7), 7, 3),
    ((8, 8), 1, 1),
]


def run(backend, *args, **kwargs):
    with use_backend(backend):
        return bi_level_routing_attention(*args, **kwargs)


def draw(size, batch=2, heads=2, width=4, value_width=None, dtype=torch.float64, grad=False):
    q, k = (torch.randn(batch, *size, heads, width, dtype=dtype) for _ in range(2))
    v = torch.randn(batch, *size, heads, value_width or width, dtype=dtype)
    return [x.requires_grad_(grad) for x in (q, k, v)]


def by_loops(q, k, v, regions, topk, scale):
    """The definition, one region at a time, in NumPy."""
    q, k, v = (x.numpy() for x in (q, k, v))
    rows, cols = (regions, regions) if isinstance(regions, int) else regions
    height, width = q.shape[1] // rows, q.shape[2] // cols
    blocks = [
        (slice(i * height, (i + 1) * height), slice(j * width, (j + 1) * width))
        for i in range(rows)
        for j in range(cols)
    ]
    out = np.zeros((*q.shape[:-1], v.shape[-1]))
    for image in range(q.shape[0]):
        key_means = np.stack([k[image][block].mean((0, 1)).ravel() for block in blocks])
        for block in blocks:
            affinity = key_means @ q[image][block].mean((0, 1)).ravel()
            chosen = [blocks[i] for i in np.argsort(-affinity)[:topk]]
            for head in range(q.shape[3]):
                keys = np.concatenate([k[image][c][:, :, head].reshape(-1, q.shape[-1]) for c in chosen])
                values = np.concatenate([v[image][c][:, :, head].reshape(-1, v.shape[-1]) for c in chosen])
                weights = np.exp(scale * q[image][block][:, :, head] @ keys.T)
                out[image][block][:, :, head] = weights @ values / weights.sum(-1, keepdims=True)
    return torch.from_numpy(out)


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize(("size", "regions", "topk"), CASES, ids=str)
def test_is_the_definition(size, regions, topk, backend):
    torch.manual_seed(0)
    q, k, v = draw(size, value_width=3)
    out = run(backend, q, k, v, regions, topk)
    # The published scale: that of all heads together.
    assert relative_error(out, by_loops(q, k, v, regions, topk, 8**-0.5)) < 1e-12
    out = run(backend, q, k, v, regions, topk, scale=0.9)
    assert relative_error(out, by_loops(q, k, v, regions, topk, 0.9)) < 1e-12


@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float64, 1e-12), (torch.float32, 1e-6)], ids=str)
@pytest.mark.parametrize(("size", "regions", "topk"), [*CASES, ((28, 28), 7, 4), ((56, 63), 7, 1)], ids=str)
def test_torch_is_the_reference(size, regions, topk, dtype, tolerance):
    torch.manual_seed(1)
    inputs = draw(size, batch=3, heads=3, width=8, dtype=dtype, grad=True)
    expected, found = (run(backend, *inputs, regions, topk) for backend in BACKENDS)
    assert relative_error(found, expected) < tolerance
    weights = torch.randn_like(expected)
    gradients = [torch.autograd.grad(out, inputs, weights) for out in (found, expected)]
    for a, b in zip(*gradients, strict=True):
        assert relative_error(a, b) < tolerance


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize(("regions", "topk"), [(2, 1), (2, 2), (2, 4), ((1, 2), 1)], ids=str)
def test_gradcheck(regions, topk, backend):
    torch.manual_seed(2)
    inputs = draw((6, 6) if topk == 1 else (4, 4), batch=1, heads=2, width=2, grad=True)
    with use_backend(backend):
        assert torch.autograd.gradcheck(lambda *x: bi_level_routing_attention(*x, regions, topk), inputs)


def test_routing_has_no_gradient_and_is_one_choice_for_all_heads():
    """Keys of regions that are not chosen get no gradient, in any head."""
    torch.manual_seed(3)
    q, k, v = draw((6, 6), batch=1, heads=3, grad=True)
    bi_level_routing_attention(q, k, v, 3, 1).square().sum().backward()
    touched = (k.grad != 0).any(-1)
    assert torch.equal(touched.any(-1), touched.all(-1))
    assert 0 < touched.any(-1).sum() < 36


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize(("size", "regions", "topk"), [((14, 21), 7, 4), ((14, 14), 7, 16)], ids=str)
def test_half_precision_is_as_near_the_truth_as_the_reference(size, regions, topk, dtype):
    torch.manual_seed(4)
    inputs = [x.to(dtype) for x in draw(size, heads=2, width=16)]
    truth = run("reference", *(x.double() for x in inputs), regions, topk)
    found = {backend: run(backend, *inputs, regions, topk) for backend in BACKENDS}
    assert found["torch"].dtype == found["reference"].dtype == dtype
    assert relative_error(found["torch"], truth) <= 2 * relative_error(found["reference"], truth)
    assert relative_error(found["reference"], truth) < torch.finfo(dtype).eps / 2


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("topk", [2, 7])
def test_views_and_expanded_gradients(topk, backend):
    torch.manual_seed(5)
    packed = torch.randn(2, 9, 3, 2, 4, 12, dtype=torch.float64).permute(0, 1, 5, 2, 3, 4).requires_grad_()
    out = run(backend, *packed.unbind(3), 3, topk)
    copies = [x.detach().contiguous().requires_grad_() for x in packed.unbind(3)]
    expected = run(backend, *copies, 3, topk)
    assert relative_error(out, expected) < 1e-14
    gradient = torch.autograd.grad(out, packed, torch.ones((), dtype=torch.float64).expand_as(out))[0]
    expected = torch.autograd.grad(expected, copies, torch.ones_like(expected))
    assert relative_error(gradient, torch.stack(expected, 3)) < 1e-14


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("topk", [1, 20, 49])
def test_batch_of_none(topk, backend):
    inputs = draw((14, 14), batch=0, value_width=3, grad=True)
    out = run(backend, *inputs, 7, topk)
    assert out.shape == (0, 14, 14, 2, 3)
    out.sum().backward()
    assert inputs[0].grad.shape == inputs[0].shape


X = torch.zeros(1, 8, 12, 2, 4)
BAD = [
    (ValueError, r"q must be \[B, H, W, heads, D\], got shape \(8, 12, 2, 4\)", dict(q=X[0], k=X[0], v=X[0])),
    (TypeError, "q must be floating point, got torch.int32", dict(q=X.int())),
    (TypeError, "k has dtype torch.float16 but q has torch.float32", dict(k=X.half())),
    (ValueError, "k must have q's shape", dict(k=X[:, :4])),
    (ValueError, "v must have q's shape", dict(v=X[:, :, :4])),
    (ValueError, r"multiples of num_regions \(3, 3\), got \(8, 12\)", dict(num_regions=3)),
    (ValueError, "num_regions must be at least 1, got 0", dict(num_regions=0)),
    (ValueError, r"num_regions must be one int or 2 of them, got \(2, 2, 2\)", dict(num_regions=(2, 2, 2))),
    (TypeError, "num_regions must be an int", dict(num_regions=2.0)),
    (ValueError, "topk must be from 1 to 16, the number of regions, got 17", dict(topk=17)),
    (ValueError, "topk must be from 1 to 16, the number of regions, got 0", dict(topk=0)),
    (TypeError, "topk must be an int", dict(topk=1.5)),
    (TypeError, "scale must be a number or None", dict(scale=torch.ones(()))),
]


@pytest.mark.parametrize(("error", "message", "change"), BAD, ids=[row[1][:30] for row in BAD])
def test_bad_arguments(error, message, change):
    with pytest.raises(error, match=message):
        bi_level_routing_attention(**(dict(q=X, k=X, v=X, num_regions=4, topk=2) | change))
