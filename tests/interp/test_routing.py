"""Fused bi-level routing attention, forward and backward."""

import pytest
import torch
from interp import cases

from attnzoo.kernels import bi_level_routing_attention, explain, use_backend
from attnzoo.kernels.fused.routing import _backward, _forward, _invert


def bind(num_regions, topk, **kwargs):
    def op(q, k, v):
        return bi_level_routing_attention(q, k, v, num_regions, topk, **kwargs)

    return op


@pytest.mark.parametrize("dtype", cases.DTYPES, ids=str)
@pytest.mark.parametrize(
    ("size", "regions", "topk"),
    [
        ((6, 6), 2, 1),  # nine tokens a region
        ((6, 8), (3, 2), 4),
        ((18, 7), (2, 1), 2),  # 63 tokens; every region is chosen
        ((3, 3), 3, 5),  # one token a region
        ((10, 11), 1, 1),  # more tokens than a tile
    ],
    ids=str,
)
def test_sizes(size, regions, topk, dtype):
    torch.manual_seed(0)
    cases.check(bind(regions, topk), cases.draw_packed(1, size, 1, 16, dtype))


@pytest.mark.parametrize("gradient", cases.GRADIENTS)
def test_layouts_of_the_gradient(gradient):
    torch.manual_seed(1)
    cases.check(bind(2, 2, scale=0.3), cases.draw_packed(2, (4, 6), 2, 16, torch.float32), gradient)


@pytest.mark.parametrize(("width", "v_width"), [(1, 16), (20, 7), (33, 64)])
def test_odd_head_widths(width, v_width):
    torch.manual_seed(2)
    q, k = (cases.draw(1, 4, 4, 1, width) for _ in range(2))
    cases.check(bind(2, 2), [q, k, cases.draw(1, 4, 4, 1, v_width)])


@pytest.mark.parametrize("layout", ["heads_first", "channels_first", "expanded"])
def test_layouts_of_the_inputs(layout):
    torch.manual_seed(5)
    shape = {"heads_first": (2, 2, 4, 4, 16), "channels_first": (2, 2, 16, 4, 4), "expanded": (1, 4, 4, 1, 16)}[layout]
    order = {"heads_first": (0, 2, 3, 1, 4), "channels_first": (0, 3, 4, 1, 2), "expanded": (0, 1, 2, 3, 4)}[layout]
    cases.check(bind(2, 1), [cases.draw(*shape).permute(*order).expand(2, 4, 4, 2, 16) for _ in range(3)])


def test_scores_of_a_hundred():
    torch.manual_seed(7)
    # Only rows with two scores alike have errors: it takes many for the two forms' to be comparable.
    q, k, v = cases.draw_packed(1, (6, 6), 4, 16, torch.float32)
    cases.check(bind(2, 2), [40 * q, k, v])
    # All scores far below zero, and blocks that are not full.
    cases.check(bind(2, 2, scale=0.02), [20 + q, -20 + k, v])


def test_regions_that_no_region_chose_get_no_gradient():
    torch.manual_seed(8)
    q, k, v = cases.draw_packed(1, (4, 4), 1, 16, torch.float32)
    k[:, :2, :2] = 3 * q.mean((1, 2), keepdim=True)
    q = q + 2 * q.mean((1, 2), keepdim=True)
    cases.check(bind(2, 1), [q, k, v])
    _, _, d_k, d_v = cases.outcome(bind(2, 1), "triton", [q, k, v], torch.ones_like(q))
    assert not d_k[:, 2:].any() and not d_v[:, 2:].any() and d_v[:, :2, :2].all()


def test_inverse_list():
    chosen = torch.tensor([[[2, 0], [0, 1], [0, 2]], [[1, 2], [2, 1], [1, 2]]], dtype=torch.int32, device=cases.DEVICE)
    owners, ends = _invert(chosen)
    assert ends.tolist() == [[0, 3, 4, 6], [0, 0, 3, 6]]
    assert owners.tolist() == [[0, 1, 2, 1, 0, 2], [0, 1, 2, 0, 1, 2]]


def test_batch_of_none():
    q, k, v = cases.draw_packed(0, (4, 6), 2, 16, torch.float32)
    assert [x.shape for x in cases.outcome(bind(2, 2), "triton", [q, k, v], q)] == [q.shape] * 4


def test_custom_ops():
    torch.manual_seed(9)
    q, k, v = (x.detach().requires_grad_() for x in cases.draw_packed(2, (4, 4), 2, 16, torch.float32))
    chosen = torch.stack([torch.randperm(4)[:2] for _ in range(8)]).view(2, 4, 2).to(cases.DEVICE, torch.int32)
    torch.library.opcheck(_forward, (q, k, v, chosen, [2, 2], 0.25))
    q, k, v = (x.detach() for x in (q, k, v))
    out, lse = _forward(q, k, v, chosen, [2, 2], 0.25)
    torch.library.opcheck(_backward, (torch.ones_like(out), q, k, v, chosen, [2, 2], 0.25, out, lse))


def test_compiled_and_exported():
    torch.manual_seed(10)
    tensors, op = cases.draw_packed(2, (4, 6), 2, 16, torch.float32), bind(2, 2)
    d_out = cases.draw(2, 4, 6, 2, 16)
    expected = cases.outcome(op, "triton", tensors, d_out)
    compiled = torch.compile(op, backend="aot_eager", fullgraph=True)
    for a, b in zip(cases.outcome(compiled, "triton", tensors, d_out), expected, strict=True):
        torch.testing.assert_close(a, b, rtol=0, atol=0)

    class Module(torch.nn.Module):
        forward = staticmethod(op)

    with use_backend("triton"):
        program = torch.export.export(Module(), tuple(tensors))
    assert "routing_forward" in str(program.graph)
    torch.testing.assert_close(program.module()(*tensors), expected[0], rtol=0, atol=0)


def test_reasons():
    x = cases.draw(1, 4, 4, 1, 16)
    with use_backend("triton"):
        assert explain(bi_level_routing_attention, x, x, x, 2, 1).chosen == "triton"
        with pytest.raises(RuntimeError, match="cannot run: no kernel for torch.float64"):
            bi_level_routing_attention(x.double(), x.double(), x.double(), 2, 1)
        with pytest.raises(RuntimeError, match="no kernel for heads of 129 channels in torch.bfloat16, only up to 128"):
            bi_level_routing_attention(*cases.draw(3, 1, 4, 4, 1, 129, dtype=torch.bfloat16), 2, 1)
