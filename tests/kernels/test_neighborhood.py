"""Neighborhood attention against the definition written as loops, and its implementations against each other."""

import itertools
import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from parity import relative_error

from attnzoo.kernels import _neighborhood_slabs, _neighborhood_tiles, neighborhood_attention, use_backend
from attnzoo.kernels._neighborhood_bands import band_plan

BACKENDS = ["reference", "torch"]


def draw(space, batch=2, heads=2, width=4, value_width=None, dtype=torch.float64, grad=False):
    q, k = (torch.randn(batch, *space, heads, width, dtype=dtype) for _ in range(2))
    v = torch.randn(batch, *space, heads, value_width or width, dtype=dtype)
    return [x.requires_grad_(grad) for x in (q, k, v)]


def draw_bias(heads, kernel, dtype=torch.float64, grad=False):
    return torch.randn(heads, *(2 * n - 1 for n in kernel), dtype=dtype).requires_grad_(grad)


def run(backend, *args, **kwargs):
    with use_backend(backend):
        return neighborhood_attention(*args, **kwargs)


def by_loops(q, k, v, kernel, dilation, bias, scale):
    """The definition, one query at a time, in NumPy."""
    q, k, v = (x.numpy() for x in (q, k, v))
    out = np.zeros((*q.shape[:-1], v.shape[-1]))
    for position in itertools.product(*(range(n) for n in q.shape[1:-2])):
        windows = []
        for i, length, size, step in zip(position, q.shape[1:-2], kernel, dilation, strict=True):
            group = list(range(i % step, length, step))
            place = group.index(i)
            start = min(max(place - size // 2, 0), len(group) - size)
            windows.append([(group[j], j - place + size - 1) for j in range(start, start + size)])
        for batch, head in itertools.product(range(q.shape[0]), range(q.shape[-2])):
            neighbors = list(itertools.product(*windows))
            scores = np.array([q[(batch, *position, head)] @ k[(batch, *(j for j, _ in n), head)] for n in neighbors])
            scores = scores * scale
            if bias is not None:
                scores += np.array([bias.numpy()[(head, *(offset for _, offset in n))] for n in neighbors])
            weights = np.exp(scores - scores.max())
            values = np.stack([v[(batch, *(j for j, _ in n), head)] for n in neighbors])
            out[(batch, *position, head)] = weights @ values / weights.sum()
    return torch.from_numpy(out)


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize(
    ("space", "kernel", "dilation", "biased"),
    [
        ((7,), (7,), (1,), True),
        ((41,), (5,), (3,), True),
        ((9, 16), (3, 5), (3, 2), True),
        ((15, 11), (7, 3), (2, 3), False),
        ((5, 4, 7), (3, 1, 3), (1, 2, 2), True),
    ],
    ids=str,
)
def test_is_the_definition(space, kernel, dilation, biased, backend):
    torch.manual_seed(0)
    q, k, v = draw(space, value_width=3)
    bias = draw_bias(2, kernel) if biased else None
    expected = by_loops(q, k, v, kernel, dilation, bias, 0.37)
    assert relative_error(run(backend, q, k, v, kernel, dilation, rel_pos_bias=bias, scale=0.37), expected) < 1e-12


def check_alike(q, k, v, kernel, dilation, bias, tolerance):
    inputs = [x for x in (q, k, v, bias) if x is not None]
    outputs = [run(backend, q, k, v, kernel, dilation, rel_pos_bias=bias) for backend in BACKENDS]
    assert relative_error(outputs[1], outputs[0]) < tolerance
    weights = torch.randn_like(outputs[0])
    expected, found = (torch.autograd.grad(out, inputs, weights) for out in outputs)
    # A window of one key has no gradient to its score; its rounding is measured against the values'.
    floor = 1e-3 * expected[2].norm()
    for a, b in zip(found, expected, strict=True):
        assert (a - b).norm() < tolerance * torch.maximum(b.norm(), floor)
    with torch.no_grad():
        assert relative_error(run("torch", q, k, v, kernel, dilation, rel_pos_bias=bias), outputs[0]) < tolerance


@st.composite
def problems(draw_value):
    axes = draw_value(st.sampled_from([1, 2, 2, 2, 3]))
    kernel = tuple(draw_value(st.sampled_from([3, 5, 7, 9, 11, 13] if axes < 3 else [1, 3])) for _ in range(axes))
    largest = {1: 5, 2: 3, 3: 2}[axes]
    dilation = tuple(draw_value(st.integers(1, largest)) for _ in range(axes))
    extra = {1: 40, 2: 11, 3: 3}[axes]
    space = tuple(n * step + draw_value(st.integers(0, extra)) for n, step in zip(kernel, dilation, strict=True))
    return space, kernel, dilation, draw_value(st.booleans()), draw_value(st.integers(0, 2**31))


@settings(max_examples=60, deadline=None, derandomize=True, database=None)
@given(problems())
def test_torch_is_the_reference_in_float64(problem):
    space, kernel, dilation, biased, seed = problem
    torch.manual_seed(seed)
    q, k, v = draw(space, batch=1, heads=2, width=3, grad=True)
    bias = draw_bias(2, kernel, grad=True) if biased else None
    check_alike(q, k, v, kernel, dilation, bias, 1e-12)
    with torch.no_grad(), pytest.MonkeyPatch.context() as patch:
        patch.setattr(_neighborhood_slabs, "_PRODUCT_SCORES", 1)
        found, truth = (run(backend, q, k, v, kernel, dilation, rel_pos_bias=bias) for backend in BACKENDS[::-1])
    assert relative_error(found, truth) < 1e-12


@pytest.mark.parametrize("biased", [False, True], ids=["plain", "bias"])
@pytest.mark.parametrize(
    ("space", "kernel", "dilation"),
    [
        ((57,), 7, 1),
        ((56, 30), 7, 1),
        ((29, 23), (7, 5), (3, 2)),
        ((14, 14), 7, 2),
        ((16, 16), 7, 1),
        ((22, 11), (5, 9), 1),
        ((27, 31), 13, 2),
        ((20, 24), 3, 5),
    ],
    ids=str,
)
def test_torch_is_the_reference_in_float32(space, kernel, dilation, biased):
    torch.manual_seed(1)
    q, k, v = draw(space, batch=3, heads=3, width=8, value_width=5, dtype=torch.float32, grad=True)
    sizes = [kernel] * len(space) if isinstance(kernel, int) else kernel
    bias = draw_bias(3, sizes, torch.float32, grad=True) if biased else None
    check_alike(q, k, v, kernel, dilation, bias, 1e-6)


# Tiles on both axes, on one, on neither, of one size and of several; rows in one product and in several; dilation
# groups; kernels that are not square.
SLABS = [
    ((24, 28), 7, 1),
    ((56, 10), 7, 1),
    ((14, 14), 7, 1),
    ((29, 31), 7, 1),
    ((26, 34), 5, 2),
    ((16, 16), 7, 2),
    ((31, 17), (3, 13), 1),
    ((32, 42), (7, 5), 2),
    ((21, 14), 7, (3, 2)),
    ((15, 30), 3, (3, 1)),
    ((48, 52), 13, 2),
    ((48, 33), (11, 1), 1),
]


@pytest.mark.parametrize("biased", [False, True], ids=["plain", "bias"])
@pytest.mark.parametrize("buffer_bytes", [1, 2**15, 2**22])
@pytest.mark.parametrize(("space", "kernel", "dilation"), SLABS, ids=str)
@pytest.mark.parametrize("near", [False, True])
@torch.no_grad()
def test_without_a_gradient(near, space, kernel, dilation, buffer_bytes, biased, monkeypatch):
    monkeypatch.setattr(_neighborhood_slabs, "_SCORE_BYTES", buffer_bytes)
    monkeypatch.setattr(_neighborhood_slabs, "_COPY_BYTES", 32 * buffer_bytes)
    monkeypatch.setattr(_neighborhood_slabs, "_NEAR_COPY_BYTES", 32 * buffer_bytes)
    monkeypatch.setattr(_neighborhood_slabs, "_FEW_BYTES", buffer_bytes)
    monkeypatch.setattr(_neighborhood_slabs, "_FEW_SCORES", 1)
    monkeypatch.setattr(_neighborhood_slabs, "_PRODUCT_SCORES", 1)
    monkeypatch.setattr(_neighborhood_tiles, "band_plan", lambda *args: None)
    torch.manual_seed(6)
    q, k, v = draw(space, batch=3, width=3, value_width=5)
    kernels, dilations = ((n, n) if isinstance(n, int) else n for n in (kernel, dilation))
    monkeypatch.setattr(_neighborhood_slabs, "_IMAGE_BYTES", q[0].nbytes if near else 0)
    plan = _neighborhood_slabs.slab_plan(q, v, kernels, dilations)
    assert _neighborhood_slabs._from_near(q, plan) == (near and dilation != 1)
    bias = draw_bias(2, kernels) if biased else None
    for values in (v, v[..., :3]):
        found, truth = (run(backend, q, k, values, kernel, dilation, rel_pos_bias=bias) for backend in BACKENDS[::-1])
        assert relative_error(found, truth) < 1e-12


# Space, kernel and the rows of each band: several, one, of one size and of several.
BANDS = [
    ((14, 14), 7, [5, 4, 5]),
    ((16, 16), 7, [4, 4, 4, 4]),
    ((13, 15), (7, 9), [4, 5, 4]),
    ((31, 11), (3, 11), [4, 5, 4, 5, 4, 5, 4]),
    ((14, 13), 13, [14]),
    ((4, 39), (3, 39), [4]),
]


@pytest.mark.parametrize("biased", [False, True], ids=["plain", "bias"])
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize(("space", "kernel", "rows"), BANDS, ids=str)
@torch.no_grad()
def test_small_maps_by_bands_of_rows(space, kernel, rows, dtype, biased):
    torch.manual_seed(9)
    q, k, v = draw(space, batch=3, width=8, value_width=5)
    q, k = torch.stack([q, k], 3).unbind(3)
    kernels = (kernel, kernel) if isinstance(kernel, int) else kernel
    bands = band_plan(q, v, kernels, (1, 1))
    assert [band.stop - band.first for band in bands] == rows
    bias = 3 * draw_bias(2, kernels) if biased else None
    truth = run("reference", q, k, v, kernel, rel_pos_bias=bias)
    maps = [x.to(dtype) for x in (q, k, v)]
    found, expected = (run(backend, *maps, kernel, rel_pos_bias=bias) for backend in BACKENDS[::-1])
    bounds = {torch.float64: 1e-12, torch.float32: 1e-6}
    assert found.dtype == dtype and found.shape == truth.shape
    assert relative_error(found, truth) <= bounds.get(dtype, 2 * relative_error(expected, truth))
    assert run("torch", q[:0], k[:0], v[:0], kernel, rel_pos_bias=bias).shape == (0, *truth.shape[1:])


@pytest.mark.parametrize(("space", "dilation"), [((28, 28), 1), ((14, 14), 2), ((12, 12), 1), ((12, 40), 1)], ids=str)
def test_bands_where_they_cost_less(space, dilation):
    """Not where they compute many more scores than tiles do, for a map that is as good as one, or a dilation."""
    q, _, v = draw(space)
    assert band_plan(q, v, (7, 7), (dilation, dilation)) is None


@pytest.mark.parametrize("factor", [1e-3, 30.0, 1e4])
@pytest.mark.parametrize("shift", [0.0, 300.0, -300.0])
@torch.no_grad()
def test_scores_beyond_the_range_of_exponentials(shift, factor):
    torch.manual_seed(7)
    q, k, v = draw((24, 28), batch=1, width=8, dtype=torch.float32)
    bias = draw_bias(2, (7, 7), torch.float32) + shift
    truth = run("reference", factor * q.double(), k.double(), v.double(), 7, rel_pos_bias=bias.double())
    found, expected = (run(backend, factor * q, k, v, 7, rel_pos_bias=bias) for backend in BACKENDS[::-1])
    assert relative_error(found, truth) <= 2 * relative_error(expected, truth) + 1e-6


@pytest.mark.parametrize(
    ("own", "side", "centre", "around"), [(85, -40, -120, 0), (85, 85, -95, -95), (-80, -80, 95, 95), (15, -10, -20, 0)]
)
@torch.no_grad()
def test_a_bias_against_the_scores(own, side, centre, around):
    """Columns score ``own`` with themselves and ``side`` with the next, and the bias takes it back: in range are the
    sums of exponentials, not those of scores and bias one by one."""
    torch.manual_seed(8)
    angle = math.acos(side / own) * torch.arange(28).expand(1, 28, 28)[..., None]
    k = torch.stack([angle.cos(), angle.sin()], -1)
    bias = torch.full((1, 5, 5), float(around)) + 0.1 * torch.randn(1, 5, 5)
    bias[:, :, 2] += centre - around
    problem = (own * k, k, torch.randn(1, 28, 28, 1, 3))
    truth = run("reference", *(x.double() for x in problem), 3, rel_pos_bias=bias.double(), scale=1.0)
    found, expected = (run(backend, *problem, 3, rel_pos_bias=bias, scale=1.0) for backend in BACKENDS[::-1])
    assert relative_error(found, truth) <= 2 * relative_error(expected, truth) + 1e-6


@pytest.mark.parametrize("which", [1, 2], ids=["keys", "values"])
@pytest.mark.parametrize("space", [(24, 28), (14, 14), (29, 31)], ids=str)
@torch.no_grad()
def test_what_is_no_number_is_not_hidden_and_stays_in_its_image(space, which):
    maps = draw(space, batch=3)
    maps[which][1, 12, 12, 0] = float("nan")
    out = run("torch", *maps, 7)
    assert out[1, 9:14, 9:14, 0].isnan().all()
    assert out[::2].isfinite().all() and out[1, :, :, 1].isfinite().all()
    assert min(space) < 20 or out[1, :4].isfinite().all()


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize(
    ("space", "kernel", "dilation"), [((9,), (3,), (2,)), ((4, 5), (3, 3), (1, 1)), ((7, 3), (3, 1), (2, 2))], ids=str
)
def test_gradcheck(space, kernel, dilation, backend):
    torch.manual_seed(2)
    q, k, v = draw(space, batch=2, heads=1, width=2, grad=True)
    bias = draw_bias(1, kernel, grad=True)
    with use_backend(backend):
        assert torch.autograd.gradcheck(
            lambda q, k, v, b: neighborhood_attention(q, k, v, kernel, dilation, rel_pos_bias=b), (q, k, v, bias)
        )
        assert torch.autograd.gradcheck(lambda q, k, v: neighborhood_attention(q, k, v, kernel, dilation), (q, k, v))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize("trained", [False, True], ids=["frozen", "trained"])
def test_half_precision_is_as_near_the_truth_as_the_reference(dtype, trained):
    torch.manual_seed(3)
    q, k, v = (x.to(dtype) for x in draw((15, 18), heads=3, width=16))
    bias = draw_bias(3, (7, 7), torch.float32, grad=trained)
    truth = run("reference", q.double(), k.double(), v.double(), 7, 2, rel_pos_bias=bias.double())
    found = {backend: run(backend, q, k, v, 7, 2, rel_pos_bias=bias) for backend in BACKENDS}
    assert found["torch"].dtype == found["reference"].dtype == dtype
    assert relative_error(found["torch"], truth) <= 2 * relative_error(found["reference"], truth)
    assert relative_error(found["reference"], truth) < torch.finfo(dtype).eps / 2


@pytest.mark.parametrize("backend", BACKENDS)
def test_views_and_expanded_gradients(backend):
    torch.manual_seed(4)
    packed = torch.randn(2, 9, 3, 2, 4, 13, dtype=torch.float64).permute(0, 1, 5, 2, 3, 4).requires_grad_()
    bias = draw_bias(2, (5, 5), grad=True)
    out = run(backend, *packed.unbind(3), 5, rel_pos_bias=bias)
    copies = [x.detach().contiguous().requires_grad_() for x in packed.unbind(3)]
    expected = run(backend, *copies, 5, rel_pos_bias=bias)
    assert relative_error(out, expected) < 1e-14
    gradient = torch.autograd.grad(out, packed, torch.ones((), dtype=torch.float64).expand_as(out))[0]
    expected = torch.autograd.grad(expected, copies, torch.ones_like(expected))
    assert relative_error(gradient, torch.stack(expected, 3)) < 1e-14


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("biased", [False, True], ids=["plain", "bias"])
def test_batch_of_none(biased, backend):
    q, k, v = draw((8, 9), batch=0, value_width=3, grad=True)
    bias = draw_bias(2, (3, 3), grad=True) if biased else None
    out = run(backend, q, k, v, 3, 2, rel_pos_bias=bias)
    assert out.shape == (0, 8, 9, 2, 3)
    out.sum().backward()
    assert q.grad.shape == q.shape
    assert bias is None or not bias.grad.any()


@pytest.mark.parametrize("dilation", [1, 2])
@pytest.mark.parametrize("side", [14, 24, 28])
@torch.no_grad()
def test_values_without_channels(side, dilation):
    q, k, _ = draw((side, side))
    assert run("torch", q, k, q[..., :0], 7, dilation).shape == (2, side, side, 2, 0)


def test_batches_in_chunks_are_the_images_one_by_one():
    torch.manual_seed(5)
    q, k, v = draw((40, 40), batch=5, heads=4, width=32, dtype=torch.float32)
    whole = run("torch", q, k, v, 7)
    for i in range(5):
        assert relative_error(run("torch", q[i : i + 1], k[i : i + 1], v[i : i + 1], 7), whole[i : i + 1]) < 1e-6


X = torch.zeros(1, 8, 8, 2, 4)
BAD = [
    (ValueError, r"q must be \[B, \*space, heads, D\].*\(8, 2, 4\)", dict(q=X[0, 0], k=X[0, 0], v=X[0, 0])),
    (TypeError, "k must be a tensor, got int", dict(k=3)),
    (TypeError, "q must be floating point, got torch.int64", dict(q=X.long())),
    (TypeError, "v has dtype torch.float64 but q has torch.float32", dict(v=X.double())),
    (ValueError, "v is on meta but q is on cpu", dict(v=X.to("meta"))),
    (ValueError, r"k must have q's shape \(1, 8, 8, 2, 4\), got \(1, 8, 8, 1, 4\)", dict(k=X[..., :1, :])),
    (ValueError, r"v must have q's shape .* got \(1, 8, 8, 1, 4\)", dict(v=X[..., :1, :])),
    (ValueError, "at least one head and one channel", dict(q=X[..., :0], k=X[..., :0])),
    (ValueError, "kernel_size must be odd and positive, got 4", dict(kernel_size=4)),
    (ValueError, r"kernel_size must be odd and positive, got \(3, -1\)", dict(kernel_size=(3, -1))),
    (ValueError, r"kernel_size must be one int or 2 of them, got \(3,\)", dict(kernel_size=(3,))),
    (TypeError, "kernel_size must be an int .* got 3.0", dict(kernel_size=3.0)),
    (TypeError, "dilation must be an int .* got True", dict(dilation=True)),
    (ValueError, "dilation must be at least 1, got 0", dict(dilation=0)),
    (ValueError, r"space \(8, 8\), kernel_size \(3, 3\), dilation \(2, 3\)", dict(dilation=(2, 3))),
    (TypeError, "rel_pos_bias must be a tensor, got float", dict(rel_pos_bias=0.0)),
    (TypeError, "rel_pos_bias must be floating point", dict(rel_pos_bias=torch.zeros(2, 5, 5).int())),
    (ValueError, r"rel_pos_bias must have shape \(2, 5, 5\).*got \(2, 5, 6\)", dict(rel_pos_bias=torch.zeros(2, 5, 6))),
    (ValueError, "rel_pos_bias is on meta", dict(rel_pos_bias=torch.zeros(2, 5, 5, device="meta"))),
    (TypeError, "scale must be a number or None, got '1'", dict(scale="1")),
]


@pytest.mark.parametrize(("error", "message", "change"), BAD, ids=[row[1][:30] for row in BAD])
def test_bad_arguments(error, message, change):
    with pytest.raises(error, match=message):
        neighborhood_attention(**(dict(q=X, k=X, v=X, kernel_size=3) | change))
