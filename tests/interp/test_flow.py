"""Fused flow-attention between any queries and keys, forward and backward."""

import functools

import pytest
import torch
from interp import cases

from attnzoo.kernels import explain, flow_attention, use_backend
from attnzoo.kernels.fused import _launch
from attnzoo.kernels.fused import flow as fused


def bind(**kwargs):
    return functools.partial(flow_attention, **kwargs)


def draw(queries, keys, batch=1, heads=1, width=16, v_width=16, dtype=torch.float32):
    q, k = (cases.draw(batch, n, heads, width, dtype=dtype) for n in (queries, keys))
    return [q, k, cases.draw(batch, keys, heads, v_width, dtype=dtype)]


@pytest.mark.parametrize("dtype", cases.DTYPES, ids=str)
@pytest.mark.parametrize(("queries", "keys"), [(99, 99), (7, 130), (130, 3)])
def test_sizes(queries, keys, dtype):
    torch.manual_seed(0)
    cases.check(bind(), draw(queries, keys, dtype=dtype))


@pytest.mark.parametrize(
    ("width", "v_width", "dtype"),
    [
        (1, 16, torch.float32),
        (20, 7, torch.float32),
        (33, 64, torch.float32),
        (40, 70, torch.float16),  # several blocks of values
        (72, 33, torch.bfloat16),
    ],
    ids=str,
)
def test_odd_head_widths(width, v_width, dtype):
    torch.manual_seed(1)
    cases.check(bind(), draw(19, 23, width=width, v_width=v_width, dtype=dtype))


@pytest.mark.parametrize("constants", [{"eps": 0.3}, {"eps": 0.0, "outer_eps": 0.2}], ids=str)
def test_constants(constants):
    torch.manual_seed(2)
    cases.check(bind(**constants), draw(19, 70, width=7))


def test_sources_beyond_their_bounds():
    torch.manual_seed(3)
    q, k, v = draw(40, 5, heads=2)
    k[:, :2] -= 8
    cases.check(bind(), [q, k, v])


@pytest.mark.parametrize("warps", [1, 264])
def test_any_number_of_parts(warps, monkeypatch):
    torch.manual_seed(4)
    monkeypatch.setattr(_launch, "WARPS", warps)
    cases.check(bind(), draw(200, 150))


@pytest.mark.parametrize("gradient", cases.GRADIENTS)
def test_layouts_of_the_gradient(gradient):
    torch.manual_seed(5)
    cases.check(bind(), cases.draw_packed(2, (13,), 2, 16, torch.float32), gradient)


@pytest.mark.parametrize("layout", ["heads_first", "channels_first", "expanded"])
def test_layouts_of_the_inputs(layout):
    torch.manual_seed(6)
    shape = {"heads_first": (2, 2, 9, 16), "channels_first": (2, 2, 16, 9), "expanded": (1, 9, 1, 16)}[layout]
    order = {"heads_first": (0, 2, 1, 3), "channels_first": (0, 3, 1, 2), "expanded": (0, 1, 2, 3)}[layout]
    cases.check(bind(), [cases.draw(*shape).permute(*order).expand(2, 9, 2, 16) for _ in range(3)])


def test_batch_of_none():
    tensors = draw(5, 7, batch=0, heads=2, v_width=3)
    found = cases.outcome(bind(), "triton", tensors, tensors[0][..., :3])
    assert [x.shape for x in found] == [(0, 5, 2, 3), *(x.shape for x in tensors)]


def test_custom_ops():
    torch.manual_seed(7)
    inputs = [x.requires_grad_() for x in draw(6, 9)]
    torch.library.opcheck(fused._forward, (*inputs, 1e-6, 0.1))
    inputs = [x.detach() for x in inputs]
    out, *saved = fused._forward(*inputs, 1e-6, 0.1)
    torch.library.opcheck(fused._backward, (out, *inputs, *saved, 1e-6, 0.1))


def test_compiled_and_exported():
    torch.manual_seed(8)
    tensors = draw(6, 9, batch=2)
    d_out = cases.draw(2, 6, 1, 16)
    expected = cases.outcome(bind(), "triton", tensors, d_out)
    compiled = torch.compile(bind(), backend="aot_eager", fullgraph=True)
    for a, b in zip(cases.outcome(compiled, "triton", tensors, d_out), expected, strict=True):
        torch.testing.assert_close(a, b, rtol=0, atol=0)

    class Module(torch.nn.Module):
        def forward(self, q, k, v):
            return flow_attention(q, k, v)

    with use_backend("triton"):
        program = torch.export.export(Module(), tuple(tensors))
    assert "flow_forward" in str(program.graph)
    torch.testing.assert_close(program.module()(*tensors), expected[0], rtol=0, atol=0)


@pytest.mark.parametrize("causal", [True, False])
def test_reasons(causal):
    x = cases.draw(1, 4, 1, 16)

    def reason(x):
        with use_backend("triton"):
            return explain(flow_attention, x, x, x, causal=causal).reasons.get("triton")

    assert reason(x) is None
    assert reason(x.double()) == "no kernel for torch.float64, only for float16, bfloat16 and float32"
    of_what = "causal kernel for heads of 65 channels" if causal else "kernel for heads of 65 channels in torch.float32"
    assert reason(cases.draw(1, 4, 1, 65)) == f"no {of_what}, only up to 64"
    found = explain(flow_attention, *[torch.rand(1, 4, 1, 16)] * 3, causal=causal)
    assert found.chosen == "torch"
    assert found.reasons["triton"] == "needs a CUDA device, not cpu"
