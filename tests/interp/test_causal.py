"""Fused causal flow-attention, forward and backward."""

import functools

import pytest
import torch
from interp import cases

from attnzoo.kernels import flow_attention, use_backend
from attnzoo.kernels.fused.causal import _backward, _forward


def bind(**kwargs):
    return functools.partial(flow_attention, causal=True, **kwargs)


@pytest.mark.parametrize("dtype", cases.DTYPES, ids=str)
@pytest.mark.parametrize("tokens", [2, 32, 67])
def test_sizes(tokens, dtype):
    torch.manual_seed(0)
    cases.check(bind(), cases.draw_packed(1, (tokens,), 1, 16, dtype))


def test_one_token():
    torch.manual_seed(0)
    cases.check(bind(), cases.draw_packed(2, (1,), 2, 16, torch.float32), None)


@pytest.mark.parametrize(("width", "v_width"), [(1, 16), (20, 7), (33, 64), (40, 7)])
def test_odd_head_widths(width, v_width):
    torch.manual_seed(1)
    q, k = (cases.draw(1, 41, 1, width) for _ in range(2))
    cases.check(bind(), [q, k, cases.draw(1, 41, 1, v_width)])


@pytest.mark.parametrize("constants", [{"eps": 0.3}, {"eps": 0.0, "outer_eps": 0.2}], ids=str)
def test_constants(constants):
    torch.manual_seed(2)
    cases.check(bind(**constants), cases.draw_packed(1, (40,), 1, 7, torch.float32))


def test_sources_beyond_their_bounds():
    torch.manual_seed(3)
    q, k, v = cases.draw_packed(1, (40,), 2, 16, torch.float32)
    cases.check(bind(), [4 * q - 2, 6 * k - 4, v])


@pytest.mark.parametrize("dtype", cases.DTYPES, ids=str)
def test_features_of_the_size_of_the_constants(dtype):
    torch.manual_seed(9)
    q, k, v = cases.draw_packed(1, (70,), 2, 16, dtype)
    cases.check(bind(eps=1e-3), [3 * q - 6, 3 * k - 6, v])


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_wide_values_in_parts(dtype):
    torch.manual_seed(10)
    q, k = (cases.draw(1, 37, 1, 40, dtype=dtype) for _ in range(2))
    cases.check(bind(), [q, k, cases.draw(1, 37, 1, 64, dtype=dtype)])


def test_a_gradient_that_nothing_was_saved_for():
    torch.manual_seed(11)
    q, k, v = cases.draw_packed(1, (40,), 1, 16, torch.float32)
    outcomes = []
    for saves in (True, False):
        leaves = [x.detach().requires_grad_() for x in (q, k, v)]
        out, _, sums, states = _forward(*leaves, 1e-6, 0.0, saves)
        assert bool(sums.numel()) is bool(states.numel()) is saves
        outcomes.append([out, *torch.autograd.grad(out.square().sum(), leaves)])
    for a, b in zip(*outcomes, strict=True):
        torch.testing.assert_close(a, b, rtol=0, atol=0)


def test_no_token_sees_a_later_one():
    torch.manual_seed(4)
    tensors = cases.draw_packed(1, (70,), 1, 16, torch.float32)
    changed = [x.clone() for x in tensors]
    for x in changed:
        x[:, 37:] = 5
    before, after = (cases.outcome(bind(), "triton", each, None)[0] for each in (tensors, changed))
    torch.testing.assert_close(before[:, :37], after[:, :37], rtol=0, atol=0)
    assert not torch.equal(before[:, 37:], after[:, 37:])


@pytest.mark.parametrize("gradient", cases.GRADIENTS)
def test_layouts_of_the_gradient(gradient):
    torch.manual_seed(5)
    cases.check(bind(), cases.draw_packed(1, (35,), 2, 16, torch.float32), gradient)


@pytest.mark.parametrize("layout", ["heads_first", "channels_first", "expanded"])
def test_layouts_of_the_inputs(layout):
    torch.manual_seed(6)
    shape = {"heads_first": (2, 2, 9, 16), "channels_first": (2, 2, 16, 9), "expanded": (1, 9, 1, 16)}[layout]
    order = {"heads_first": (0, 2, 1, 3), "channels_first": (0, 3, 1, 2), "expanded": (0, 1, 2, 3)}[layout]
    cases.check(bind(), [cases.draw(*shape).permute(*order).expand(2, 9, 2, 16) for _ in range(3)])


def test_batch_of_none():
    q, k, v = cases.draw_packed(0, (5,), 2, 16, torch.float32)
    assert [x.shape for x in cases.outcome(bind(), "triton", [q, k, v], v)] == [q.shape] * 4


def test_custom_ops():
    torch.manual_seed(7)
    inputs = [x.detach().requires_grad_() for x in cases.draw_packed(1, (6,), 1, 16, torch.float32)]
    for saves in (True, False):
        torch.library.opcheck(_forward, (*inputs, 1e-6, 0.1, saves))
    inputs = [x.detach() for x in inputs]
    out, *saved = _forward(*inputs, 1e-6, 0.1, True)
    torch.library.opcheck(_backward, (out, *inputs, *saved, 1e-6))


def test_compiled_and_exported():
    torch.manual_seed(8)
    tensors, d_out = cases.draw_packed(2, (9,), 1, 16, torch.float32), cases.draw(2, 9, 1, 16)
    expected = cases.outcome(bind(), "triton", tensors, d_out)
    compiled = torch.compile(bind(), backend="aot_eager", fullgraph=True)
    for a, b in zip(cases.outcome(compiled, "triton", tensors, d_out), expected, strict=True):
        torch.testing.assert_close(a, b, rtol=0, atol=0)

    class Module(torch.nn.Module):
        def forward(self, q, k, v):
            return flow_attention(q, k, v, causal=True)

    with use_backend("triton"):
        program = torch.export.export(Module(), tuple(tensors))
    assert "causal_flow_forward" in str(program.graph)
    torch.testing.assert_close(program.module()(*tensors), expected[0], rtol=0, atol=0)
