"""Fused dynamic depth-wise convolution, forward and backward."""

import pytest
import torch
from interp import cases

from attnzoo.kernels import dynamic_depthwise_conv, explain, use_backend
from attnzoo.kernels.fused.dynamic_conv import _backward, _forward


def bind(kernel, softmax=True):
    def op(x, weight, bias=None):
        return dynamic_depthwise_conv(x, weight, kernel, rel_pos_bias=bias, softmax=softmax)

    return op


def draw(size, kernel, batch=1, heads=1, width=16, dtype=torch.float32, bias=True):
    tensors = [cases.draw(batch, *size, heads, width, dtype=dtype)]
    tensors.append(cases.draw(batch, *size, heads, kernel[0] * kernel[1], dtype=dtype))
    return [*tensors, cases.draw(heads, *(2 * n - 1 for n in kernel), dtype=dtype)] if bias else tensors


@pytest.mark.parametrize("dtype", cases.DTYPES, ids=str)
@pytest.mark.parametrize(
    ("size", "kernel", "softmax"),
    [
        ((9, 4), (3, 3), True),  # a whole tile of rows and a ragged one
        ((7, 5), (7, 5), False),  # every window is the whole map
        ((3, 17), (1, 9), True),  # windows longer than a tile, reached from both borders
    ],
    ids=str,
)
def test_sizes(size, kernel, softmax, dtype):
    torch.manual_seed(0)
    cases.check(bind(kernel, softmax), draw(size, kernel, dtype=dtype))


def test_a_window_of_one():
    torch.manual_seed(1)
    cases.check(bind((1, 1), False), draw((3, 4), (1, 1), heads=2, bias=False))


@pytest.mark.parametrize("gradient", cases.GRADIENTS)
@pytest.mark.parametrize("softmax", [True, False])
def test_layouts_of_the_gradient(gradient, softmax):
    torch.manual_seed(2)
    cases.check(bind((3, 5), softmax), draw((4, 5), (3, 5), heads=2, bias=softmax), gradient)


@pytest.mark.parametrize("width", [1, 7, 72])
def test_odd_head_widths(width):
    torch.manual_seed(3)
    # The kernels take wider heads in 16 bits only.
    dtype = torch.bfloat16 if width > 64 else torch.float32
    cases.check(bind((3, 3)), draw((4, 9), (3, 3), width=width, dtype=dtype))


@pytest.mark.parametrize("layout", ["heads_first", "channels_first", "expanded"])
def test_layouts_of_the_inputs(layout):
    torch.manual_seed(4)
    order = {"heads_first": (0, 3, 1, 2, 4), "channels_first": (0, 3, 4, 1, 2), "expanded": (0, 1, 2, 3, 4)}[layout]
    back = [order.index(n) for n in range(5)]
    tensors = []
    for channels in (16, 9):
        shape = (2, 4, 5, 2, channels)
        if layout == "expanded":
            tensors.append(cases.draw(1, 4, 5, 1, channels).expand(shape))
        else:
            tensors.append(cases.draw(*(shape[n] for n in order)).permute(*back))
    tensors.append(cases.draw(5, 5, 2).permute(2, 0, 1))
    cases.check(bind((3, 3)), tensors)


@pytest.mark.parametrize(("of_x", "of_weight"), [(torch.bfloat16, torch.float32), (torch.float32, torch.float16)])
def test_dtypes_that_differ(of_x, of_weight):
    torch.manual_seed(5)
    x, weight, bias = draw((4, 6), (3, 3), heads=2)
    cases.check(bind((3, 3)), [x.to(of_x), weight.to(of_weight), bias])


def test_large_scores():
    torch.manual_seed(6)
    x, weight = draw((4, 6), (3, 3), bias=False)
    cases.check(bind((3, 3)), [x, 8 * weight])


@pytest.mark.parametrize("softmax", [True, False])
def test_batch_of_none(softmax):
    tensors = draw((4, 5), (3, 3), batch=0, heads=2)
    found = cases.outcome(bind((3, 3), softmax), "triton", tensors, tensors[0])
    assert [x.shape for x in found] == [tensors[0].shape, *(x.shape for x in tensors)]
    assert not found[-1].any()


def test_custom_ops():
    torch.manual_seed(7)
    x, weight, bias = (each.requires_grad_() for each in draw((4, 6), (3, 5)))
    for given, softmax in ((bias, True), (None, False)):
        torch.library.opcheck(_forward, (x, weight, [3, 5], given, softmax))
        rest = ([3, 5], None if given is None else given.detach(), softmax)
        out, lse = _forward(x.detach(), weight.detach(), *rest)
        torch.library.opcheck(_backward, (out, x.detach(), weight.detach(), *rest, out, lse))


def test_compiled_and_exported():
    torch.manual_seed(8)
    tensors, op = draw((4, 5), (3, 3), batch=2, heads=2), bind((3, 3))
    expected = cases.outcome(op, "triton", tensors, tensors[0])
    compiled = torch.compile(op, backend="aot_eager", fullgraph=True)
    for a, b in zip(cases.outcome(compiled, "triton", tensors, tensors[0]), expected, strict=True):
        torch.testing.assert_close(a, b, rtol=0, atol=0)

    class Module(torch.nn.Module):
        forward = staticmethod(op)

    with use_backend("triton"):
        program = torch.export.export(Module(), tuple(tensors))
    assert "dynamic_conv_forward" in str(program.graph)
    torch.testing.assert_close(program.module()(*tensors), expected[0], rtol=0, atol=0)


def test_reasons():
    x, weight = draw((4, 5), (3, 3), bias=False)

    def reason(x, weight):
        with use_backend("triton"):
            return explain(dynamic_depthwise_conv, x, weight).reasons.get("triton")

    assert reason(x, weight) is None
    assert reason(x.double(), weight) == "no kernel for torch.float64, only for float16, bfloat16 and float32"
    assert reason(x, weight.double()) == "no kernel for torch.float64, only for float16, bfloat16 and float32"
    assert (
        reason(cases.draw(1, 4, 5, 1, 65), weight)
        == "no kernel for heads of 65 channels in torch.float32, only up to 64"
    )


def test_nothing_but_a_gpu_chooses_it():
    found = explain(dynamic_depthwise_conv, torch.rand(1, 4, 5, 1, 16), torch.rand(1, 4, 5, 1, 9))
    assert found.chosen == "torch"
    assert found.reasons["triton"] == "needs a CUDA device, not cpu"
