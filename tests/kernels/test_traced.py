"""The ops under torch.compile, torch.export and fake tensors."""

import pytest
import torch
from op_cases import CASES
from parity import relative_error
from torch import nn
from torch._subclasses import FakeTensorMode

from attnzoo.kernels import (
    bi_level_routing_attention,
    dynamic_depthwise_conv,
    explain,
    grouped_query_attention,
    neighborhood_attention,
    sparse_attention,
    use_backend,
)

pytestmark = pytest.mark.compiles


@pytest.fixture(autouse=True)
def fresh_dynamo() -> None:
    """Guards of one test's graphs are no business of the next."""
    torch.compiler.reset()


class Neighborhood(nn.Module):
    size = (14, 17)

    def __init__(self):
        super().__init__()
        self.bias = nn.Parameter(torch.randn(2, 13, 9))

    def forward(self, q, k, v):
        return neighborhood_attention(q, k, v, (7, 5), (1, 2), rel_pos_bias=self.bias)


class Routing(nn.Module):
    size = (8, 12)

    def forward(self, q, k, v):
        return bi_level_routing_attention(q, k, v, 4, 2) + bi_level_routing_attention(q, k, v, (4, 6), 8)


OPS = pytest.mark.parametrize("module", [Neighborhood, Routing])


def draw(size, batch=2, dtype=torch.float32):
    return [torch.randn(batch, *size, 2, 8, dtype=dtype) for _ in range(3)]


def _convolution(x, key, value, size):
    return dynamic_depthwise_conv(x, torch.cat([key, value] * 4, -1)[..., : size**2], size, softmax=True)


@pytest.mark.parametrize("op", [neighborhood_attention, _convolution])
def test_another_window_for_the_same_program(op):
    """Dynamo makes symbols of numbers that change from call to call."""
    torch.manual_seed(0)
    inputs = [x.requires_grad_() for x in draw((12, 12), dtype=torch.float64)]
    compiled = torch.compile(op, backend="aot_eager", fullgraph=True)
    for size in (3, 5):
        found, expected = compiled(*inputs, size), op(*inputs, size)
        for a, b in zip(*(torch.autograd.grad(x.square().sum(), inputs[:1]) for x in (found, expected)), strict=True):
            assert relative_error(a, b) < 1e-12
        assert relative_error(found, expected) < 1e-12


def test_heads_of_open_number():
    q, k, v = (torch.randn(2, 9, heads, 8, dtype=torch.float64) for heads in (6, 2, 2))
    compiled = torch.compile(grouped_query_attention, backend="aot_eager", fullgraph=True, dynamic=True)
    for keys, values in ((k, v), (q, q)):
        found = compiled(q, keys, values)
        assert relative_error(found, grouped_query_attention(q, keys, values)) < 1e-12


@OPS
@pytest.mark.parametrize("backend", ["reference", "torch"])
def test_compiles_to_one_graph(module, backend):
    torch.manual_seed(0)
    module = module().double()
    inputs = [x.requires_grad_() for x in draw(module.size, dtype=torch.float64)]
    with use_backend(backend):
        compiled = torch.compile(module, backend="aot_eager", fullgraph=True)
        found, expected = compiled(*inputs), module(*inputs)
        wanted = [*inputs, *module.parameters()]
        for a, b in zip(*(torch.autograd.grad(x.square().sum(), wanted) for x in (found, expected)), strict=True):
            assert relative_error(a, b) < 1e-12
    assert relative_error(found, expected) < 1e-12


@OPS
def test_compiled_with_any_batch(module):
    torch.manual_seed(1)
    module = module().eval()
    compiled = torch.compile(module, backend="aot_eager", fullgraph=True)
    with torch.no_grad(), torch._dynamo.config.patch(error_on_recompile=True):
        for batch in (2, 5):
            inputs = draw(module.size, batch)
            for x in inputs:
                torch._dynamo.mark_dynamic(x, 0)
            assert relative_error(compiled(*inputs), module(*inputs)) < 1e-6


def test_a_compiled_op_follows_the_backend():
    torch._dynamo.reset()
    seen = []

    def record(graph, inputs):
        seen.append({str(node.target) for node in graph.graph.nodes})
        return graph

    x = torch.randn(1, 8, 8, 2, 4)
    compiled = torch.compile(lambda x: neighborhood_attention(x, x, x, 3), backend=record, fullgraph=True)
    expected = compiled(x)
    with use_backend("reference"):
        assert relative_error(compiled(x), expected) < 1e-6
    compiled(x)
    assert len(seen) == 2
    assert not any("tiled_attention" in target for target in seen[1])


@OPS
@pytest.mark.parametrize("strict", [False, True], ids=["nonstrict", "strict"])
def test_exported_with_any_batch(module, strict):
    torch.manual_seed(2)
    module = module().eval()
    batch = {0: torch.export.Dim("batch", min=1)}
    with torch.no_grad():
        program = torch.export.export(module, tuple(draw(module.size)), dynamic_shapes=[batch] * 3, strict=strict)
        for n in (1, 2, 6):
            inputs = draw(module.size, n)
            assert relative_error(program.module()(*inputs), module(*inputs)) < 1e-6
    targets = {str(node.target) for node in program.graph.nodes if node.op == "call_function"}
    assert all(target.startswith(("aten.", "<built-in", "_operator", "sym_")) for target in targets), targets


@OPS
def test_fake_and_meta_tensors_leave_nothing_behind(module):
    module = module().eval()
    module.size = (module.size[0] + 4, module.size[1] + 12)
    with FakeTensorMode(allow_non_fake_inputs=True), torch.no_grad():
        inputs = draw(module.size)
        assert module(*inputs).shape == inputs[0].shape
    inputs = draw(module.size)
    with use_backend("reference"):
        expected = module(*inputs)
    assert relative_error(module(*inputs), expected) < 1e-6
    meta = module.to("meta")(*(x.to("meta") for x in inputs))
    assert meta.device.type == "meta" and meta.shape == expected.shape


@pytest.mark.filterwarnings("ignore::torch.jit.TracerWarning", "ignore:.*torch.jit.trace:FutureWarning")
@pytest.mark.parametrize("grad", [True, False])
@pytest.mark.parametrize("name", CASES)
def test_jit_trace(name, grad):
    """Its own check traces without a gradient and compares the programs."""
    op, tensors, rest = CASES[name]
    inputs = tensors()
    with torch.set_grad_enabled(grad):
        program = torch.jit.trace(lambda *inputs: op(*inputs, **rest), tuple(inputs))
        others = tensors()
        # A size that a trace computes with is a tensor, and a scale made of it has 32 bits.
        assert relative_error(program(*others), op(*others, **rest)) < 1e-6


def test_a_bool_mask_exports_without_views_of_bits():
    class Sparse(nn.Module):
        def forward(self, q, mask):
            return sparse_attention(q, q, q, mask)

    inputs = torch.randn(2, 9, 2, 4), torch.rand(2, 2, 9, 9) > 0.3
    with torch.no_grad():
        program = torch.export.export(Sparse(), inputs)
        assert "view.dtype" not in str(program.graph)
        assert relative_error(program.module()(*inputs), Sparse()(*inputs)) < 1e-6


def test_explain_is_told_about_meta_tensors():
    x = torch.empty(1, 8, 8, 2, 4, device="meta")
    assert explain(neighborhood_attention, x, x, x, 3).chosen == "torch"


@pytest.mark.slow
def test_inductor():
    torch.manual_seed(3)
    module = Neighborhood()
    inputs = draw(module.size)
    with torch.no_grad():
        assert relative_error(torch.compile(module, fullgraph=True)(*inputs), module(*inputs)) < 1e-6
