"""Linear and magnitude-aware attention against their definitions written as loops, and the two forms of each."""

import math

import pytest
import torch
from parity import relative_error

from attnzoo.kernels import (
    _linear_in_place,
    _magnitude_aware,
    linear_attention,
    magnitude_aware_linear_attention,
    use_backend,
)
from attnzoo.kernels._chunks import buffer_bytes
from attnzoo.kernels.rotary import rotate

BACKENDS = ["reference", "torch"]
SPACES = [(1,), (7,), (5, 3), (2, 4, 3)]
OPS = {"linear": linear_attention, "mala": magnitude_aware_linear_attention}


def draw(space, batch=2, heads=2, width=4, value_width=None, dtype=torch.float64):
    q, k = (torch.randn(batch, *space, heads, width, dtype=dtype) for _ in range(2))
    return q, k, torch.randn(batch, *space, heads, value_width or width, dtype=dtype)


def draw_rotation(space, width=4, dtype=torch.float64):
    angle = 6 * torch.rand(*space, width // 2, dtype=dtype)
    return angle.cos(), angle.sin()


def features(op, q, k):
    return (q.abs(), k.abs()) if op == "linear" else (q, k)


def run(op, backend, *args, **kwargs):
    with use_backend(backend):
        return OPS[op](*args, **kwargs)


def linear_by_loops(q, k, v, eps):
    out = torch.zeros_like(v)
    for b, h in ((b, h) for b in range(q.shape[0]) for h in range(q.shape[2])):
        for i in range(q.shape[1]):
            weights = [sum(x * y for x, y in zip(q[b, i, h], k[b, j, h], strict=True)) for j in range(k.shape[1])]
            total = max(sum(weights), eps)
            out[b, i, h] = sum(w * v[b, j, h] / total for j, w in enumerate(weights))
    return out


def mala_by_loops(q, k, v, cos, sin, scale, eps):
    def feature(x):
        return [c + 1 if c > 0 else math.exp(c) for c in x.tolist()]

    def turned(x, n):
        half = len(x) // 2
        first = [x[j] * cos[n, j].item() - x[j + half] * sin[n, j].item() for j in range(half)]
        return first + [x[j + half] * cos[n, j].item() + x[j] * sin[n, j].item() for j in range(half)]

    def dot(x, y):
        return sum(a * b for a, b in zip(x, y, strict=True))

    out, tokens = torch.zeros_like(v), q.shape[1]
    for b, h in ((b, h) for b in range(q.shape[0]) for h in range(q.shape[2])):
        queries, keys = ([feature(x[b, n, h]) for n in range(tokens)] for x in (q, k))
        for i in range(tokens):
            z = scale * sum(dot(queries[i], key) for key in keys) / tokens
            for j in range(tokens):
                product = scale / tokens * dot(turned(queries[i], i), turned(keys[j], j))
                out[b, i, h] += ((1 + 1 / (z + eps)) * product - z / tokens) * v[b, j, h]
    return out


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("space", SPACES)
def test_linear_is_the_definition(space, backend):
    q, k, v = draw(space, value_width=3)
    q, k = features("linear", q, k)
    flat = [x.flatten(1, -3) for x in (q, k, v)]
    for eps in (1e-6, 5.0):
        expected = linear_by_loops(*flat, eps).view_as(v)
        assert relative_error(run("linear", backend, q, k, v, eps=eps), expected) < 1e-12


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("space", SPACES)
def test_mala_is_the_definition(space, backend):
    q, k, v = draw(space, value_width=3)
    cos, sin = draw_rotation(space)
    flat = [x.flatten(1, -3) for x in (q, k, v)]
    expected = mala_by_loops(*flat, cos.flatten(0, -2), sin.flatten(0, -2), 0.3, 1e-3).view_as(v)
    found = run("mala", backend, q, k, v, rotation=(cos, sin), scale=0.3, eps=1e-3)
    assert relative_error(found, expected) < 1e-12


def test_mala_without_a_rotation_has_weights_that_sum_to_one():
    q, k, v = draw((6, 5))
    out = magnitude_aware_linear_attention(q, k, torch.ones_like(v), eps=0.0)
    torch.testing.assert_close(out, torch.ones_like(v), rtol=1e-12, atol=1e-12)


def test_rotation_keeps_lengths_and_knows_only_differences():
    position = torch.arange(9, dtype=torch.float64)[:, None] * torch.tensor([1.0, 0.1, 0.01], dtype=torch.float64)
    x, y = torch.randn(2, 6, dtype=torch.float64)
    turned, other = rotate(x.expand(9, 6), position.cos(), position.sin()), rotate(y, *(position.cos(), position.sin()))
    torch.testing.assert_close(turned.norm(dim=-1), x.norm().expand(9))
    torch.testing.assert_close((turned[3:] * other[:-3]).sum(-1), (turned[3] @ other[0]).expand(6))
    with pytest.raises(ValueError, match="even number of channels"):
        rotate(torch.randn(2, 5), torch.randn(2, 2), torch.randn(2, 2))


@pytest.mark.parametrize("op", OPS)
@pytest.mark.parametrize(("dtype", "bound"), [(torch.float64, 1e-12), (torch.float32, 1e-6)])
def test_torch_is_the_reference(op, dtype, bound):
    for space, width, heads in (((56, 56), 64, 1), ((13, 17), 32, 3), ((131,), 8, 2)):
        q, k, v = draw(space, heads=heads, width=width, dtype=dtype)
        settings = {"rotation": draw_rotation(space, width, dtype)} if op == "mala" else {}
        q, k = features(op, q, k)
        truth = run(op, "reference", *(x.double() for x in (q, k, v)), **settings)
        assert relative_error(run(op, "torch", q, k, v, **settings), truth) < bound


@torch.no_grad()
@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16])
@pytest.mark.parametrize(
    ("batch", "heads", "threads"), [(3, 2, 1), (3, 2, 3), (2, 3, 2), (1, 4, 4), (4, 1, 2), (0, 2, 1), (2, 3, 4)]
)
def test_linear_without_a_gradient_reads_heads_where_they_lie(batch, heads, threads, dtype, monkeypatch):
    monkeypatch.setattr(_linear_in_place, "_LEAST_VALUES", 1)
    monkeypatch.setattr(torch, "get_num_threads", lambda: threads)
    packed = torch.rand(batch, 5, 6, 3, heads, 4).to(dtype)
    q, k, v = packed.unbind(3)
    in_place = max(batch, heads) >= threads
    assert _linear_in_place.reads_in_place(q) == in_place
    found = run("linear", "torch", q, k, v)
    assert found.dtype == dtype
    assert found.is_contiguous() or not in_place
    expected = run("linear", "reference", *(x.double() for x in (q, k, v)))
    assert relative_error(found, expected) < (1e-12 if dtype == torch.float64 else 1e-2)


@pytest.mark.parametrize("rotated", [False, True])
@pytest.mark.parametrize("buffer_bytes", [1, 2**11, 2**20])
@pytest.mark.parametrize("space", SPACES)
@torch.no_grad()
def test_mala_without_a_gradient(space, buffer_bytes, rotated, monkeypatch):
    monkeypatch.setattr(_magnitude_aware, "_BUFFER_BYTES", buffer_bytes)
    q, k, v = draw(space, batch=5, value_width=3)
    rotation = draw_rotation(space) if rotated else None
    found, truth = (run("mala", backend, q, k, v, rotation=rotation) for backend in ("torch", "reference"))
    assert relative_error(found, truth) < 1e-12
    for dtype in (torch.float16, torch.bfloat16):
        q, k, v = (x.to(dtype) for x in (q, k, v))
        found, truth = (run("mala", backend, q, k, v, rotation=rotation) for backend in ("torch", "reference"))
        assert found.dtype == dtype
        assert relative_error(found, truth) < 2 * torch.finfo(dtype).eps


@pytest.mark.parametrize("op", OPS)
@pytest.mark.parametrize("backend", BACKENDS)
def test_gradcheck(op, backend):
    q, k, v = (x.requires_grad_() for x in draw((3, 2), value_width=3))
    rotation = {"rotation": draw_rotation((3, 2))} if op == "mala" else {}
    assert torch.autograd.gradcheck(lambda q, k, v: run(op, backend, *features(op, q, k), v, **rotation), (q, k, v))


def test_gradient_of_the_features_at_zero_is_that_of_elu():
    _, k, v = draw((3,))
    gradients = []
    for backend in BACKENDS:
        q = torch.zeros_like(k, requires_grad=True)
        run("mala", backend, q, k, v).square().sum().backward()
        gradients.append(q.grad)
    torch.testing.assert_close(*gradients, rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("op", OPS)
@pytest.mark.parametrize(("dtype", "bound"), [(torch.float16, 1e-3), (torch.bfloat16, 8e-3)])
def test_half_precision_with_many_tokens(op, dtype, bound):
    q, k, v = (4 * x for x in draw((256, 256), batch=1, heads=1, width=16, dtype=torch.float32))
    q, k = features(op, q, k)
    settings = {"rotation": draw_rotation((256, 256), 16, torch.float32)} if op == "mala" else {}
    q, k, v = (x.to(dtype) for x in (q, k, v + 4))
    truth = run(op, "torch", q.double(), k.double(), v.double(), **settings)
    found = run(op, "torch", q, k, v, **settings)
    assert found.dtype == dtype
    assert relative_error(found, truth) < bound


@pytest.mark.parametrize("op", OPS)
@pytest.mark.parametrize("backend", BACKENDS)
def test_autocast_does_not_lower_the_precision(op, backend):
    q, k, v = draw((9, 8), dtype=torch.float32)
    q, k = features(op, q, k)
    with torch.autocast("cpu", torch.bfloat16):
        found = run(op, backend, q, k, v)
    assert torch.equal(found, run(op, backend, q, k, v))


@pytest.mark.parametrize("op", OPS)
@pytest.mark.parametrize("backend", BACKENDS)
def test_views_and_expanded_gradients(op, backend):
    packed = torch.rand(2, 5, 3, 3, 2, 4, dtype=torch.float64, requires_grad=True)
    out = run(op, backend, *packed.unbind(3))
    out.sum().backward()
    gradient, packed.grad = packed.grad, None
    copies = [x.contiguous() for x in packed.unbind(3)]
    again = run(op, backend, *copies)
    again.backward(torch.ones_like(again))
    torch.testing.assert_close(out, again, rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(gradient, packed.grad, rtol=1e-12, atol=1e-12)


def test_buffers_take_no_more_than_the_result(monkeypatch):
    monkeypatch.setattr(torch, "get_num_threads", lambda: 8)
    large, small = torch.empty(2**21), torch.empty(8)
    assert buffer_bytes(2**20, large, 4) == 2**21
    assert buffer_bytes(2**10, large, 4) == 2**13
    assert buffer_bytes(2**20, small, 4) == 2**19


@pytest.mark.parametrize("op", OPS)
def test_batches_in_chunks_are_the_images_one_by_one(op, monkeypatch):
    q, k, v = draw((6, 5), batch=5)
    whole = run(op, "torch", q, k, v)
    monkeypatch.setattr("attnzoo.kernels._chunks.CHUNK_BYTES", 2 * v[:1].numel() * 8 * 8)
    assert relative_error(run(op, "torch", q, k, v), whole) < 1e-14


@pytest.mark.parametrize("op", OPS)
@pytest.mark.parametrize("backend", BACKENDS)
def test_batch_of_none(op, backend):
    q, k, v = draw((4, 3), batch=0, value_width=5)
    assert run(op, backend, q, k, v).shape == (0, 4, 3, 2, 5)


@pytest.mark.parametrize("op", OPS)
def test_compiles_and_exports_with_any_batch(op):
    class Model(torch.nn.Module):
        def forward(self, q, k, v):
            return OPS[op](q, k, v)

    inputs = tuple(x.abs() for x in draw((6, 5), dtype=torch.float32))
    torch._dynamo.reset()
    compiled = torch.compile(Model(), fullgraph=True, backend="aot_eager")
    torch.testing.assert_close(compiled(*inputs), Model()(*inputs))
    with torch.autocast("cpu", torch.bfloat16):
        torch.testing.assert_close(compiled(*inputs), Model()(*inputs))
    batch = torch.export.Dim("batch", min=1, max=64)
    program = torch.export.export(Model(), inputs, dynamic_shapes=[{0: batch}] * 3).module()
    more = tuple(torch.cat([x, x]) for x in inputs)
    torch.testing.assert_close(program(*more), Model()(*more))


@pytest.mark.parametrize(
    ("error", "message", "change"),
    [
        (ValueError, "k must have q's shape", {"k": torch.randn(2, 3, 2, 4)}),
        (ValueError, "v must have q's shape", {"v": torch.randn(2, 6, 1, 4)}),
        (ValueError, "q must be .*space", {"q": torch.randn(6, 2, 4)}),
        (TypeError, "floating point, got torch.int64", {"q": torch.ones(2, 6, 2, 4, dtype=torch.int64)}),
        (TypeError, "k has dtype torch.float16", {"k": torch.randn(2, 6, 2, 4).half()}),
        (TypeError, "eps must be a number, got '1'", {"eps": "1"}),
        (ValueError, "eps must be finite and at least 0, got -1", {"eps": -1.0}),
    ],
)
@pytest.mark.parametrize("op", OPS)
def test_bad_arguments(op, error, message, change):
    arguments = dict(zip("qkv", draw((6,), dtype=torch.float32), strict=True)) | change
    with pytest.raises(error, match=message):
        OPS[op](arguments.pop("q"), arguments.pop("k"), arguments.pop("v"), **arguments)


@pytest.mark.parametrize("op", OPS)
def test_no_token_is_an_error(op):
    with pytest.raises(ValueError, match="at least one token"):
        OPS[op](*draw((4, 0)))


@pytest.mark.parametrize(
    ("error", "message", "rotation"),
    [
        (ValueError, r"shape \(6, 2\) .* got \(6, 4\)", (torch.randn(6, 4), torch.randn(6, 4))),
        (TypeError, "pair", torch.randn(6, 2)),
        (TypeError, "must be floating point, got torch.int32", (torch.ones(6, 2, dtype=torch.int32),) * 2),
    ],
)
def test_bad_rotations(error, message, rotation):
    with pytest.raises(error, match=message):
        magnitude_aware_linear_attention(*draw((6,), dtype=torch.float32), rotation=rotation)
    with pytest.raises(ValueError, match="even number of channels"):
        magnitude_aware_linear_attention(*draw((6,), width=3), rotation=draw_rotation((6,), 3))
