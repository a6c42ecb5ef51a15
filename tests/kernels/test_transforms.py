"""The ops under vmap and forward-mode differentiation, with gradients and without."""

import pytest
import torch
from parity import relative_error

from attnzoo import kernels
from attnzoo.kernels import use_backend


def draw(*shape, count=3):
    return [torch.randn(*shape, dtype=torch.float64) for _ in range(count)]


# Op, its tensors, its other arguments.
CASES = {
    "neighborhood": (kernels.neighborhood_attention, lambda: draw(2, 14, 14, 2, 4), {"kernel_size": 7}),
    "routing": (kernels.bi_level_routing_attention, lambda: draw(2, 8, 8, 2, 4), {"num_regions": 4, "topk": 2}),
    "linear": (kernels.linear_attention, lambda: [x.abs() for x in draw(2, 30, 2, 4)], {}),
    "mala": (kernels.magnitude_aware_linear_attention, lambda: draw(2, 30, 2, 4), {}),
    "flow": (kernels.flow_attention, lambda: draw(2, 30, 2, 4), {}),
    "causal flow": (kernels.flow_attention, lambda: draw(2, 30, 2, 4), {"causal": True}),
    "agent": (kernels.agent_attention, lambda: [*draw(2, 30, 2, 4), *draw(2, 5, 2, 4, count=1)], {}),
    "large kernel": (
        kernels.large_kernel_attention,
        lambda: [
            x for shape in ((2, 4, 14, 14), (4, 1, 5, 5), (4, 1, 7, 7), (4, 4, 1, 1)) for x in draw(*shape, count=1)
        ],
        {},
    ),
    "dynamic conv": (
        kernels.dynamic_depthwise_conv,
        lambda: [*draw(2, 14, 14, 2, 4, count=1), *draw(2, 14, 14, 2, 25, count=1)],
        {},
    ),
    "grouped": (
        kernels.grouped_query_attention,
        lambda: [*draw(2, 30, 4, 4, count=1), *draw(2, 30, 2, 4, count=2)],
        {},
    ),
    "strip": (kernels.strip_attention, lambda: draw(2, 30, 2, 4), {}),
    "sparse": (kernels.sparse_attention, lambda: draw(2, 9, 2, 4), {"mask": torch.rand(2, 2, 9, 9) > 0.3}),
}
# PyTorch's scaled_dot_product_attention has no forward-mode derivative on a CPU.
WITHOUT_FUSED = ["linear", "mala", "flow", "causal flow", "large kernel", "dynamic conv", "strip"]
# There is no rule for some products; PyTorch says that it goes on one by one.
pytestmark = pytest.mark.filterwarnings("ignore:There is a performance drop")
MODES = pytest.mark.parametrize("mode", [torch.enable_grad, torch.no_grad])


@MODES
@pytest.mark.parametrize("name", CASES)
def test_vmap(name, mode):
    torch.manual_seed(0)
    op, tensors, rest = CASES[name]
    first, *others = tensors()
    many = torch.stack([first, first * 0.5, -first.abs() if name != "linear" else first * 2])
    with mode():
        found = torch.func.vmap(lambda x: op(x, *others, **rest))(many)
        expected = torch.stack([op(x, *others, **rest) for x in many])
    assert relative_error(found, expected) < 1e-12


@pytest.mark.parametrize("name", CASES)
def test_a_result_without_a_gradient_may_be_overwritten_with_one(name):
    op, tensors, rest = CASES[name]
    out, learned = op(*tensors(), **rest), torch.ones(1, dtype=torch.float64, requires_grad=True)
    out += learned
    out.sum().backward()
    assert learned.grad == out.numel()


@MODES
@pytest.mark.parametrize("name", WITHOUT_FUSED)
def test_forward_mode(name, mode):
    torch.manual_seed(1)
    op, tensors, rest = CASES[name]
    inputs = tensors()
    tangents = [torch.randn_like(x) for x in inputs]

    def derivative():
        return torch.func.jvp(lambda *inputs: op(*inputs, **rest), tuple(inputs), tuple(tangents))

    with mode():
        found = derivative()
        with use_backend("reference"):
            expected = derivative()
    for each, truth in zip(found, expected, strict=True):
        assert relative_error(each, truth) < 1e-11
