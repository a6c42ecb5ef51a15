"""Flow-attention against the published modules' results, its definition written as loops, and its two forms."""

import math

import pytest
import torch
import torch.nn.functional as F
from parity import load_arrays, reference_input, reference_state, relative_error, requires_fixture
from torch.utils._python_dispatch import TorchDispatchMode

from attnzoo.kernels import _causal_flow, _flow_in_place, flow_attention, use_backend

BACKENDS = ["reference", "torch"]
SEQUENCE = ["op_flow_attention", "op_flow_attention_self_length", "op_flow_attention_causal"]
# The fixtures' numbers: float32 arrays, and ten decimal digits.
STORED = 1e-7
PRINTED = 1e-9


def draw(queries, keys=None, batch=2, heads=2, width=4, value_width=None, dtype=torch.float64):
    q = torch.randn(batch, queries, heads, width, dtype=dtype)
    k = torch.randn(batch, keys or queries, heads, width, dtype=dtype)
    return q, k, torch.randn(batch, keys or queries, heads, value_width or width, dtype=dtype)


def run(backend, *args, **kwargs):
    with use_backend(backend):
        return flow_attention(*args, **kwargs)


def check(found, name, spec):
    assert relative_error(found, load_arrays(name)["output"]) < STORED
    expected = spec["outputs"]["output"]
    assert abs(found.mean().item() - expected["mean"]) < PRINTED * expected["std"]
    assert abs(found.std().item() / expected["std"] - 1) < PRINTED


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("name", SEQUENCE)
def test_published_sequence_modules(name, backend):
    spec = requires_fixture(name)
    state, heads = reference_state(spec["state"]), spec["arguments"]["n_heads"]
    q, k, v = (
        F.linear(
            reference_input(spec["inputs"][source]),
            state[f"{target}_projection.weight"],
            state[f"{target}_projection.bias"],
        ).unflatten(-1, (heads, -1))
        for source, target in (("queries", "query"), ("keys", "key"), ("values", "value"))
    )
    out = run(backend, q, k, v, causal="causal" in name, eps=spec["arguments"]["eps"]).flatten(-2)
    check(F.linear(out, state["out_projection.weight"], state["out_projection.bias"]), name, spec)


@pytest.mark.parametrize("backend", BACKENDS)
def test_published_vision_module(backend):
    name = "op_flow_attention_cv"
    spec = requires_fixture(name)
    state, eps = reference_state(spec["state"]), spec["arguments"]["eps"]
    qkv = F.linear(reference_input(spec["inputs"]["x"]), state["qkv.weight"], state["qkv.bias"])
    q, k, v = qkv.unflatten(-1, (3, spec["arguments"]["num_heads"], -1)).unbind(2)
    out = run(backend, q, k, v, eps=eps, outer_eps=eps).flatten(-2)
    check(F.linear(out, state["proj.weight"], state["proj.bias"]), name, spec)


def causal_by_loops(q, k, v, eps, outer_eps):
    """One head, sums of earlier tokens written out: q, k lists of lists of features before the sigmoid."""
    a, b = ([[1 / (1 + math.exp(-c)) for c in x] for x in y] for y in (q, k))

    def flow(x, others, weights):
        total = [sum(w * y[d] for y, w in zip(others, weights, strict=True)) for d in range(len(x))]
        return sum((c + eps) * (t + eps) for c, t in zip(x, total, strict=True)) + outer_eps

    tokens = range(len(a))
    incoming = [flow(a[i], b[: i + 1], [1] * (i + 1)) for i in tokens]
    outgoing = [flow(b[i], a[: i + 1], [1] * (i + 1)) for i in tokens]
    sink = [flow(a[i], b[: i + 1], [(j + 1) / outgoing[j] for j in range(i + 1)]) / (i + 1) for i in tokens]
    source = [flow(b[i], a[: i + 1], [(j + 1) / incoming[j] for j in range(i + 1)]) / (i + 1) for i in tokens]
    strength = [math.exp(min(max(s, -1), 1)) for s in source]
    competition = [strength[j] / sum(strength[: j + 1]) * (j + 1) for j in tokens]
    out = []
    for i in tokens:
        row = [0.0] * len(v[0])
        for j in range(i + 1):
            weight = sum(x * y for x, y in zip(a[i], b[j], strict=True)) * competition[j]
            row = [r + weight * c for r, c in zip(row, v[j], strict=True)]
        out.append([r / incoming[i] / (1 + math.exp(-sink[i])) for r in row])
    return torch.tensor(out, dtype=torch.float64)


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("length", [1, 7, 70])
def test_causal_is_the_definition(length, backend):
    q, k, v = draw(length, batch=1, heads=1, value_width=3)
    expected = causal_by_loops(q[0, :, 0].tolist(), k[0, :, 0].tolist(), v[0, :, 0].tolist(), 1e-3, 1e-2)
    found = run(backend, q, k, v, causal=True, eps=1e-3, outer_eps=1e-2)
    assert relative_error(found[0, :, 0], expected) < 1e-12


@pytest.mark.parametrize("grad", [True, False])
@pytest.mark.parametrize("causal", [False, True])
@pytest.mark.parametrize(("dtype", "bound"), [(torch.float64, 1e-12), (torch.float32, 1e-6)])
def test_torch_is_the_reference(causal, dtype, bound, grad):
    for queries, keys in ((1, 1), (63, 63), (64, 64), (65, 65), (515, 515), (31, 200), (200, 31)):
        if causal and queries != keys:
            continue
        for eps in (0.0, 1e-6):
            q, k, v = draw(queries, keys, width=16, value_width=8, dtype=dtype)
            settings = dict(causal=causal, eps=eps, outer_eps=eps)
            truth = run("reference", q.double(), k.double(), v.double(), **settings)
            with torch.set_grad_enabled(grad):
                assert relative_error(run("torch", q, k, v, **settings), truth) < bound


@pytest.mark.parametrize("buffer_bytes", [1, 2**20])
@torch.no_grad()
def test_views_without_a_gradient(buffer_bytes, monkeypatch):
    monkeypatch.setattr(_flow_in_place, "_BUFFER_BYTES", buffer_bytes)
    q, k, v = torch.randn(5, 33, 3, 2, 6, dtype=torch.float64).unbind(2)
    for keys, values in ((k, v), (k[:, :20], v[:, :20, :, :3])):
        found, truth = (run(name, q, keys, values, eps=1e-3, outer_eps=1e-2) for name in BACKENDS[::-1])
        assert relative_error(found, truth) < 1e-12


# Segments of one chunk, of three with one image at a time, and as they are.
@pytest.mark.parametrize(("segment", "buffer_bytes"), [(32, 2**21), (96, 1), (512, 2**21)])
@pytest.mark.parametrize("length", [1, 31, 32, 33, 97, 515])
@torch.no_grad()
def test_causal_without_a_gradient(length, segment, buffer_bytes, monkeypatch):
    monkeypatch.setattr(_causal_flow, "_SEGMENT", segment)
    monkeypatch.setattr(_causal_flow, "_BUFFER_BYTES", buffer_bytes)
    torch.manual_seed(3)
    q, k, v = torch.randn(5, length, 3, 2, 6, dtype=torch.float64).unbind(2)
    for values in (v, v[..., :3]):
        for eps in (0.0, 1e-3):
            truth, found = (run(name, q, k, values, causal=True, eps=eps, outer_eps=eps) for name in BACKENDS)
            assert relative_error(found, truth) < 1e-12


@pytest.mark.parametrize("causal", [False, True])
@pytest.mark.parametrize(("dtype", "bound"), [(torch.float32, 1e-6), (torch.float16, 1e-3), (torch.bfloat16, 8e-3)])
@torch.no_grad()
def test_lower_precision_without_a_gradient(dtype, bound, causal):
    torch.manual_seed(4)
    q, k, v = (x.to(dtype) for x in draw(1100, width=16, value_width=8))
    truth = run("reference", q.double(), k.double(), v.double(), causal=causal)
    found = run("torch", q, k, v, causal=causal)
    assert found.dtype == dtype
    assert relative_error(found, truth) < bound


@torch.no_grad()
def test_what_is_no_number_stays_in_its_image():
    q, k, v = draw(70, batch=3)
    v[1, 10, 0, 2] = float("nan")
    found = run("torch", q, k, v, causal=True)
    assert torch.equal(found.isnan(), run("reference", q, k, v, causal=True).isnan())


@pytest.mark.parametrize("grad", [True, False])
@pytest.mark.parametrize("backend", BACKENDS)
def test_causal_result_knows_nothing_of_later_tokens(backend, grad):
    q, k, v = draw(150)
    with torch.set_grad_enabled(grad):
        whole = run(backend, q, k, v, causal=True)
        for length in (1, 64, 100):
            part = run(backend, *(x[:, :length] for x in (q, k, v)), causal=True)
            torch.testing.assert_close(whole[:, :length], part, rtol=1e-12, atol=1e-12)


class _Largest(TorchDispatchMode):
    """Remembers the number of elements of the largest tensor that any operator makes."""

    elements = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        out = func(*args, **(kwargs or {}))
        if isinstance(out, torch.Tensor) and not func.is_view:
            self.elements = max(self.elements, out.numel())
        return out


@torch.no_grad()
def test_causal_memory_but_for_the_result_knows_no_length():
    largest = []
    for length in (2048, 8192):
        q, k, v = draw(length, batch=1, heads=2, value_width=1, dtype=torch.float32)
        with _Largest() as seen:
            out = run("torch", q, k, v, causal=True)
        largest.append(seen.elements)
    assert largest[0] == largest[1] > out.numel()


@pytest.mark.parametrize("causal", [False, True])
def test_memory_is_linear_in_the_length(causal):
    largest = []
    for length in (2048, 8192):
        q, k, v = (x.requires_grad_() for x in draw(length, batch=1, heads=1, dtype=torch.float32))
        with _Largest() as seen:
            run("torch", q, k, v, causal=causal).sum().backward()
        largest.append(seen.elements)
    assert largest[1] == 4 * largest[0]


@pytest.mark.parametrize("causal", [False, True])
@pytest.mark.parametrize("backend", BACKENDS)
def test_gradcheck(causal, backend):
    q, k, v = (x.requires_grad_() for x in draw(5, value_width=3, batch=1))
    assert torch.autograd.gradcheck(lambda q, k, v: run(backend, q, k, v, causal=causal), (q, k, v))


@pytest.mark.parametrize("causal", [False, True])
def test_gradients_across_chunks(causal):
    q, k, v = (x.requires_grad_() for x in draw(150))
    gradients = []
    for backend in BACKENDS:
        out = run(backend, q, k, v, causal=causal)
        gradients.append(torch.autograd.grad(out.square().sum(), (q, k, v)))
    for expected, found in zip(*gradients, strict=True):
        assert relative_error(found, expected) < 1e-11


@pytest.mark.parametrize("causal", [False, True])
@pytest.mark.parametrize(("dtype", "bound"), [(torch.float16, 1e-3), (torch.bfloat16, 8e-3)])
def test_half_precision_with_many_tokens(causal, dtype, bound):
    q, k, v = (x.to(dtype) for x in draw(65536, batch=1, heads=1, width=8, dtype=torch.float32))
    found = run("torch", q, k, v + 1, causal=causal)
    assert found.dtype == dtype
    assert relative_error(found, run("torch", q.double(), k.double(), (v + 1).double(), causal=causal)) < bound


@pytest.mark.parametrize("causal", [False, True])
@pytest.mark.parametrize("backend", BACKENDS)
def test_autocast_does_not_lower_the_precision(causal, backend):
    q, k, v = draw(70, dtype=torch.float32)
    with torch.autocast("cpu", torch.bfloat16):
        found = run(backend, q, k, v, causal=causal)
    assert torch.equal(found, run(backend, q, k, v, causal=causal))


@pytest.mark.parametrize("causal", [False, True])
@pytest.mark.parametrize("backend", BACKENDS)
def test_views_and_expanded_gradients(causal, backend):
    packed = torch.randn(2, 70, 3, 2, 4, dtype=torch.float64, requires_grad=True)
    run(backend, *packed.unbind(2), causal=causal).sum().backward()
    gradient, packed.grad = packed.grad, None
    out = run(backend, *(x.contiguous() for x in packed.unbind(2)), causal=causal)
    out.backward(torch.ones_like(out))
    torch.testing.assert_close(gradient, packed.grad, rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize("causal", [False, True])
@pytest.mark.parametrize("backend", BACKENDS)
def test_batch_of_none(causal, backend):
    for grad in (True, False):
        with torch.set_grad_enabled(grad):
            assert run(backend, *draw(5, batch=0, value_width=3), causal=causal).shape == (0, 5, 2, 3)


@pytest.mark.parametrize("causal", [False, True])
def test_compiles_and_exports_with_any_batch(causal):
    class Model(torch.nn.Module):
        def forward(self, q, k, v):
            return flow_attention(q, k, v, causal=causal)

    inputs = draw(70, dtype=torch.float32)
    torch._dynamo.reset()
    compiled = torch.compile(Model(), fullgraph=True, backend="aot_eager")
    torch.testing.assert_close(compiled(*inputs), Model()(*inputs))
    batch = torch.export.Dim("batch", min=1, max=64)
    program = torch.export.export(Model(), inputs, dynamic_shapes=[{0: batch}] * 3).module()
    more = tuple(torch.cat([x, x]) for x in inputs)
    torch.testing.assert_close(program(*more), Model()(*more))


@pytest.mark.parametrize(
    ("error", "message", "change"),
    [
        (ValueError, "as many queries as keys, got 6 and 9", {"causal": True}),
        (ValueError, "k must have q's batch and channels", {"k": torch.randn(2, 9, 2, 5)}),
        (ValueError, "v must have k's shape", {"v": torch.randn(2, 8, 2, 4)}),
        (ValueError, "q must be .*tokens", {"q": torch.randn(2, 3, 3, 2, 4)}),
        (TypeError, "q must be floating point", {"q": torch.ones(2, 6, 2, 4, dtype=torch.int64)}),
        (TypeError, "eps must be a number, got None", {"eps": None}),
        (ValueError, "outer_eps must be finite and at least 0, got -1", {"outer_eps": -1.0}),
        (ValueError, "at least one token", {"q": torch.randn(2, 0, 2, 4)}),
    ],
)
def test_bad_arguments(error, message, change):
    arguments = dict(zip("qkv", draw(6, 9, dtype=torch.float32), strict=True)) | change
    with pytest.raises(error, match=message):
        flow_attention(arguments.pop("q"), arguments.pop("k"), arguments.pop("v"), **arguments)
