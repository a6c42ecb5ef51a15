"""Fused neighborhood attention, forward and backward."""

import functools

import pytest
import torch
from interp import cases

from attnzoo.kernels import explain, neighborhood_attention, use_backend
from attnzoo.kernels.fused.neighborhood import _backward, _forward


def bind(kernel, dilation=1, **kwargs):
    def op(q, k, v, bias=None):
        return neighborhood_attention(q, k, v, kernel, dilation, rel_pos_bias=bias, **kwargs)

    return op


def draw_bias(heads, *kernel, dtype=torch.float32):
    return cases.draw(heads, *(2 * n - 1 for n in kernel), dtype=dtype)


@pytest.mark.parametrize("dtype", cases.DTYPES, ids=str)
@pytest.mark.parametrize(
    ("space", "kernel", "dilation"),
    [
        ((9, 7), (3, 3), (1, 2)),  # two tiles by one, a group of four and one of three
        ((7, 10), (7, 3), (1, 1)),  # every window is the whole axis
        ((70,), (5,), (1,)),
        ((23,), (5,), (3,)),  # groups of 8, 8 and 7
    ],
    ids=str,
)
def test_sizes(space, kernel, dilation, dtype):
    torch.manual_seed(0)
    tensors = [*cases.draw_packed(1, space, 1, 16, dtype), draw_bias(1, *kernel, dtype=dtype)]
    cases.check(bind(kernel, dilation), tensors)


@pytest.mark.parametrize("gradient", cases.GRADIENTS)
def test_layouts_of_the_gradient(gradient):
    torch.manual_seed(1)
    tensors = [*cases.draw_packed(2, (4, 5), 1, 16, torch.float32), draw_bias(1, 3, 5)]
    cases.check(bind((3, 5)), tensors, gradient)
    cases.check(bind((3, 5), scale=0.3), tensors[:3], gradient)


@pytest.mark.parametrize(("width", "v_width"), [(1, 16), (20, 7), (33, 64)])
def test_odd_head_widths(width, v_width):
    torch.manual_seed(2)
    q, k = (cases.draw(1, 4, 9, 1, width) for _ in range(2))
    cases.check(bind(3), [q, k, cases.draw(1, 4, 9, 1, v_width), draw_bias(1, 3, 3)])


def test_windows_wider_than_a_block():
    torch.manual_seed(3)
    cases.check(bind((3, 21)), [*cases.draw_packed(1, (3, 26), 1, 16, torch.float32), draw_bias(1, 3, 21)])


def test_more_images_than_slots_of_the_bias_gradient():
    torch.manual_seed(4)
    cases.check(bind(3), [*cases.draw_packed(11, (3, 3), 1, 16, torch.float32), draw_bias(1, 3, 3)])


@pytest.mark.parametrize("layout", ["heads_first", "channels_first", "expanded"])
def test_layouts_of_the_inputs(layout):
    torch.manual_seed(5)
    shape = {"heads_first": (2, 2, 4, 5, 16), "channels_first": (2, 2, 16, 4, 5), "expanded": (1, 4, 5, 1, 16)}[layout]
    order = {"heads_first": (0, 2, 3, 1, 4), "channels_first": (0, 3, 4, 1, 2), "expanded": (0, 1, 2, 3, 4)}[layout]
    cases.check(bind(3), [cases.draw(*shape).permute(*order).expand(2, 4, 5, 2, 16) for _ in range(3)])


def test_bias_of_another_layout():
    torch.manual_seed(6)
    cases.check(bind(3), [*cases.draw_packed(1, (4, 5), 2, 16, torch.float32), cases.draw(5, 5, 2).permute(2, 0, 1)])


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16], ids=str)
def test_bias_of_float32_keeps_its_precision(dtype):
    torch.manual_seed(6)
    cases.check(bind(3), [*cases.draw_packed(1, (4, 5), 1, 16, dtype), draw_bias(1, 3, 3)])


def test_scores_of_a_hundred():
    torch.manual_seed(7)
    # Only rows with two scores alike have errors: it takes many for the two forms' to be comparable.
    q, k, v = cases.draw_packed(1, (8, 9), 4, 16, torch.float32)
    cases.check(bind(3), [40 * q, k, v])


@pytest.mark.parametrize("with_bias", [False, True])
@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_key_that_is_no_number_is_seen_by_its_windows_alone(value, with_bias):
    torch.manual_seed(10)
    q, k, v = (x.abs() for x in cases.draw_packed(1, (9, 10), 1, 16, torch.float32))
    k[0, 4, 5] = value
    tensors = [q, k, v, *([draw_bias(1, 3, 3)] if with_bias else [])]
    seen = torch.zeros(9, 10, dtype=torch.bool, device=q.device)
    seen[3:6, 4:7] = True
    found = cases.outcome(bind(3), "triton", tensors, None)[0]
    torch.testing.assert_close(found.isnan().all(-1)[0, :, :, 0], seen)
    assert not found[0][~seen].isnan().any()


@pytest.mark.parametrize("space", [(5,), (4, 5)], ids=str)
def test_batch_of_none(space):
    q, k, v = cases.draw_packed(0, space, 2, 16, torch.float32)
    bias = draw_bias(2, *[3] * len(space))
    found = cases.outcome(bind(3), "triton", [q, k, v, bias], q)
    assert [x.shape for x in found] == [q.shape, *(x.shape for x in (q, k, v, bias))]
    assert not found[-1].any()


def test_custom_ops():
    torch.manual_seed(8)
    q, k, v = (x.detach().requires_grad_() for x in cases.draw_packed(1, (3, 5), 2, 16, torch.float32))
    bias, problem = draw_bias(2, 3, 5).requires_grad_(), ([3, 5], [1, 1])
    torch.library.opcheck(_forward, (q, k, v, *problem, bias, 0.25))
    torch.library.opcheck(_forward, (q, k, v, *problem, None, 0.25), test_utils=["test_faketensor", "test_schema"])
    q, k, v, bias = (x.detach() for x in (q, k, v, bias))
    out, lse = _forward(q, k, v, *problem, bias, 0.25)
    torch.library.opcheck(_backward, (torch.ones_like(out), q, k, v, *problem, bias, 0.25, out, lse, True))


def test_compiled_and_exported():
    torch.manual_seed(9)
    tensors = [*cases.draw_packed(2, (4, 5), 2, 16, torch.float32), draw_bias(2, 3, 3)]
    op, d_out = bind(3), cases.draw(2, 4, 5, 2, 16)
    expected = cases.outcome(op, "triton", tensors, d_out)
    compiled = torch.compile(op, backend="aot_eager", fullgraph=True)
    for a, b in zip(cases.outcome(compiled, "triton", tensors, d_out), expected, strict=True):
        torch.testing.assert_close(a, b, rtol=0, atol=0)

    class Module(torch.nn.Module):
        forward = staticmethod(op)

    with use_backend("triton"):
        program = torch.export.export(Module(), tuple(tensors))
    assert "neighborhood_forward" in str(program.graph)
    torch.testing.assert_close(program.module()(*tensors), expected[0], rtol=0, atol=0)


def test_reasons():
    x = cases.draw(1, 4, 5, 1, 16)

    def reason(x, **kwargs):
        with use_backend("triton"):
            return explain(neighborhood_attention, x, x, x, 3, **kwargs).reasons.get("triton")

    assert reason(x) is None
    assert reason(cases.draw(1, 3, 4, 5, 1, 16)) == "no kernel for three axes of space"
    assert reason(x.double()) == "no kernel for torch.float64, only for float16, bfloat16 and float32"
    assert reason(cases.draw(1, 4, 5, 1, 65)) == "no kernel for heads of 65 channels in torch.float32, only up to 64"
    assert reason(x.to("meta")) == "needs a CUDA device, not meta"
    with use_backend("triton"), pytest.raises(RuntimeError, match="cannot run: no kernel for torch.float64"):
        neighborhood_attention(x.double(), x.double(), x.double(), 3)


def test_nothing_but_a_gpu_chooses_it():
    x = torch.randn(1, 4, 5, 1, 16)
    found = functools.partial(explain, neighborhood_attention, x, x, x, 3)()
    assert found.chosen == "torch"
    assert found.reasons["triton"] == "needs a CUDA device, not cpu"
