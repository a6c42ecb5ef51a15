"""The ops under vmap and forward-mode differentiation, with gradients and without."""

import pytest
import torch
from op_cases import CASES
from parity import relative_error

from attnzoo.kernels import sparse_attention, use_backend

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


@MODES
def test_vmap_over_bias_and_columns(mode):
    _, tensors, rest = CASES["sparse by columns"]
    q, k, v = tensors()
    biases = torch.randn(3, 2, 2, 9, 60, dtype=torch.float64)
    columns = torch.rand(3, 2, 2, 9, 60).topk(9).indices
    with mode():
        for run, many in (
            (lambda bias: sparse_attention(q, k, v, rest["mask"], bias=bias), biases),
            (lambda mask: sparse_attention(q, k, v, mask, bias=biases[0]), columns),
        ):
            expected = torch.stack([run(x) for x in many])
            assert relative_error(torch.func.vmap(run)(many), expected) < 1e-12


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


def _derivative(op, inputs, tangents, rest):
    return torch.func.jvp(lambda *inputs: op(*inputs, **rest), inputs, tangents)[1]


@pytest.mark.compiles
@MODES
@pytest.mark.parametrize("name", CASES)
def test_forward_mode_in_a_compiled_program(name, mode):
    """Never a wrong tangent: the true one, or PyTorch's word that it has none."""
    torch.manual_seed(1)
    op, tensors, rest = CASES[name]
    inputs = tuple(tensors())
    tangents = tuple(torch.randn_like(x) for x in inputs)
    torch.compiler.reset()
    compiled = torch.compile(_derivative, backend="eager", fullgraph=True)
    with mode():
        try:
            found = compiled(op, inputs, tangents, rest)
        except torch._dynamo.exc.TorchDynamoException as error:
            assert name not in WITHOUT_FUSED and "forward AD" in str(error)
            return
        with use_backend("reference"):
            expected = _derivative(op, inputs, tangents, rest)
    assert relative_error(found, expected) < 1e-11


@pytest.mark.compiles
@MODES
@pytest.mark.parametrize("name", CASES)
def test_vmap_in_a_compiled_program(name, mode):
    torch.manual_seed(0)
    op, tensors, rest = CASES[name]
    first, *others = tensors()
    many = torch.stack([first, first * 0.5])
    run = torch.func.vmap(lambda x: op(x, *others, **rest))
    # PyTorch 2.10 cannot have open sizes under vmap, which come after a few programs of one function.
    torch.compiler.reset()
    with mode():
        found = torch.compile(run, backend="eager", dynamic=False)(many)
        assert relative_error(found, run(many)) < 1e-12
