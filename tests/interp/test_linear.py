"""Fused linear and magnitude-aware attention, forward and backward."""

import functools

import pytest
import torch
from interp import cases

from attnzoo.kernels import explain, linear_attention, magnitude_aware_linear_attention, use_backend
from attnzoo.kernels.fused import _launch
from attnzoo.kernels.fused import linear as fused

OPS = {"linear": linear_attention, "mala": magnitude_aware_linear_attention}
BOTH = pytest.mark.parametrize("op", OPS)


def draw_rotation(space, width, dtype=torch.float32):
    angle = 6 * cases.draw(*space, width // 2).sigmoid()
    return angle.cos().to(dtype), angle.sin().to(dtype)


def bind(op, **kwargs):
    """The op on features: those of linear attention are not negative."""
    if op == "mala":
        return functools.partial(magnitude_aware_linear_attention, **kwargs)
    return lambda q, k, v: linear_attention(q.abs(), k.abs(), v, **kwargs)


@BOTH
@pytest.mark.parametrize("dtype", cases.DTYPES, ids=str)
@pytest.mark.parametrize("space", [(1,), (9, 11), (3, 1, 4)], ids=str)
def test_sizes(op, space, dtype):
    torch.manual_seed(0)
    settings = {"rotation": draw_rotation(space, 16)} if op == "mala" else {}
    # One token takes its own value: there is no gradient but that of the value to compare.
    gradient = None if space == (1,) else "contiguous"
    cases.check(bind(op, **settings), cases.draw_packed(1, space, 1, 16, dtype), gradient)


@BOTH
@pytest.mark.parametrize(
    ("width", "v_width", "dtype"),
    [
        (3, 16, torch.float32),
        (7, 20, torch.float32),
        (40, 70, torch.float16),  # several blocks of the state each way
        (72, 33, torch.bfloat16),
    ],
    ids=str,
)
def test_odd_head_widths(op, width, v_width, dtype):
    torch.manual_seed(1)
    q, k = (cases.draw(1, 70, 1, width, dtype=dtype) for _ in range(2))
    cases.check(bind(op), [q, k, cases.draw(1, 70, 1, v_width, dtype=dtype)])


@BOTH
@pytest.mark.parametrize("gradient", cases.GRADIENTS)
def test_layouts_of_the_gradient(op, gradient):
    torch.manual_seed(2)
    cases.check(bind(op), cases.draw_packed(2, (5, 3), 2, 16, torch.float32), gradient)


@BOTH
@pytest.mark.parametrize("layout", ["heads_first", "channels_first", "expanded"])
def test_layouts_of_the_inputs(op, layout):
    torch.manual_seed(3)
    shape = {"heads_first": (2, 2, 4, 5, 16), "channels_first": (2, 2, 16, 4, 5), "expanded": (1, 4, 5, 1, 16)}[layout]
    order = {"heads_first": (0, 2, 3, 1, 4), "channels_first": (0, 3, 4, 1, 2), "expanded": (0, 1, 2, 3, 4)}[layout]
    cases.check(bind(op), [cases.draw(*shape).permute(*order).expand(2, 4, 5, 2, 16) for _ in range(3)])


@BOTH
@pytest.mark.parametrize("warps", [1, 264])
def test_any_number_of_parts(op, warps, monkeypatch):
    torch.manual_seed(4)
    monkeypatch.setattr(_launch, "WARPS", warps)
    cases.check(bind(op), cases.draw_packed(1, (300,), 1, 8, torch.float32))


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16], ids=str)
def test_terms_that_nearly_cancel(dtype):
    torch.manual_seed(10)
    q, k = (10 * cases.draw(1, 150, 1, 64, dtype=dtype) for _ in range(2))
    cases.check(bind("mala"), [q, k, cases.draw(1, 150, 1, 64, dtype=dtype) + 4], None)


def test_normaliser_below_its_bound():
    torch.manual_seed(5)
    cases.check(bind("linear", eps=180.0), cases.draw_packed(1, (19,), 2, 16, torch.float32))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float64], ids=str)
def test_tables_of_another_dtype_and_other_constants(dtype):
    torch.manual_seed(6)
    rotation = tuple(x.transpose(0, 1) for x in draw_rotation((3, 5), 16, dtype))
    cases.check(
        bind("mala", rotation=rotation, scale=0.3, eps=1e-2), cases.draw_packed(1, (5, 3), 2, 16, torch.float32)
    )


def test_gradient_of_the_features_at_zero_is_that_of_elu():
    torch.manual_seed(7)
    q, k, v = cases.draw_packed(1, (6,), 1, 16, torch.float32)
    cases.check(bind("mala"), [torch.zeros_like(q), k, v])


@BOTH
def test_batch_of_none(op):
    q, k, v = cases.draw_packed(0, (5,), 2, 16, torch.float32)
    assert [x.shape for x in cases.outcome(bind(op), "triton", [q, k, v], v)] == [q.shape] * 4


@pytest.mark.parametrize("magnitude", [True, False])
def test_custom_ops(magnitude):
    torch.manual_seed(8)
    inputs = [x.abs().detach().requires_grad_() for x in cases.draw_packed(1, (6,), 2, 16, torch.float32)]
    tables = draw_rotation((6,), 16) if magnitude else (None, None)
    rest = (*tables, 0.25, 1e-6, magnitude)
    torch.library.opcheck(fused._forward, (*inputs, *rest))
    inputs = [x.detach() for x in inputs]
    out, state = fused._forward(*inputs, *rest)
    torch.library.opcheck(fused._backward, (out, *inputs, *rest, state))


@BOTH
def test_compiled_and_exported(op):
    torch.manual_seed(9)
    tensors, function = cases.draw_packed(2, (4, 5), 1, 16, torch.float32), bind(op)
    d_out = cases.draw(2, 4, 5, 1, 16)
    expected = cases.outcome(function, "triton", tensors, d_out)
    compiled = torch.compile(function, backend="aot_eager", fullgraph=True)
    for a, b in zip(cases.outcome(compiled, "triton", tensors, d_out), expected, strict=True):
        torch.testing.assert_close(a, b, rtol=0, atol=0)

    class Module(torch.nn.Module):
        def forward(self, q, k, v):
            return function(q, k, v)

    with use_backend("triton"):
        batch = torch.export.Dim("batch", min=1, max=64)
        program = torch.export.export(Module(), tuple(tensors), dynamic_shapes=[{0: batch}] * 3)
    assert "linear_forward" in str(program.graph)
    found = program.module()(*(torch.cat([x, x]) for x in tensors))
    torch.testing.assert_close(found, torch.cat([expected[0]] * 2), rtol=1e-6, atol=1e-6)


@BOTH
def test_reasons(op):
    x = cases.draw(1, 4, 1, 16)

    def reason(x, **kwargs):
        with use_backend("triton"):
            return explain(OPS[op], x, x, x, **kwargs).reasons.get("triton")

    assert reason(x) is None
    assert reason(x.double()) == "no kernel for torch.float64, only for float16, bfloat16 and float32"
    assert reason(cases.draw(1, 4, 1, 65)) == "no kernel for heads of 65 channels in torch.float32, only up to 64"
    if op == "mala":
        rotation = tuple(x.requires_grad_() for x in draw_rotation((4,), 16))
        assert reason(x, rotation=rotation) == "no kernel for the gradient of the rotation"
        with torch.no_grad():
            assert reason(x, rotation=rotation) is None


@BOTH
def test_nothing_but_a_gpu_chooses_it(op):
    x = torch.rand(1, 4, 1, 16)
    found = explain(OPS[op], x, x, x)
    assert found.chosen == "torch"
    assert found.reasons["triton"] == "needs a CUDA device, not cpu"
