"""Operators that compiled programs call on a CPU without a gradient."""

import pytest
import torch
from parity import relative_error

import attnzoo.kernels
from attnzoo.kernels import _opaque, use_backend
from attnzoo.kernels.sparse import largest_entries, top_mask

pytestmark = pytest.mark.compiles


@pytest.fixture(autouse=True)
def fresh_dynamo() -> None:
    torch.compiler.reset()


def draw(*shape):
    """Views of a packed projection, as layers hand them over."""
    return torch.randn(*shape[:-1], 3, shape[-1]).unbind(-2)


def neighborhood(space=(14, 16)):
    return *draw(2, *space, 2, 8), (7, 5), (1, 2), torch.randn(2, 13, 9), 0.3


def sparse():
    q, k, v = draw(2, 9, 2, 8)
    return q, k, v, top_mask(torch.randn(2, 2, 9, 9), 3), torch.randn(2, 2, 9, 9), 0.3


def dynamic_conv():
    x, _, _ = draw(2, 12, 14, 2, 4)
    return x, torch.randn(2, 12, 14, 2, 15), (3, 5), torch.randn(2, 5, 9), True


def agent():
    q, k, v = draw(2, 20, 2, 8)
    return q, k, v, torch.randn(2, 9, 2, 8), torch.randn(2, 9, 20), torch.randn(2, 20, 9), 0.3


# Operator: the public op behind it, and arguments as its implementations take them.
CASES = {
    "neighborhood_on_cpu": ("neighborhood_attention", neighborhood),
    "routing_on_cpu": ("bi_level_routing_attention", lambda: (*draw(2, 8, 12, 2, 8), (4, 3), 4, 0.3)),
    "sparse_on_cpu": ("sparse_attention", sparse),
    "agent_on_cpu": ("agent_attention", agent),
    "dynamic_conv_on_cpu": ("dynamic_depthwise_conv", dynamic_conv),
    "flow_on_cpu": ("flow_attention", lambda: (*draw(2, 40, 2, 8), True, 1e-6, 1e-6)),
}
OPERATORS = pytest.mark.parametrize("name", CASES)


def compiled(name, graphs):
    """The implementation named ``torch`` of an op, compiled; its programs' targets go to ``graphs``."""

    def record(graph, inputs):
        graphs.append({str(node.target) for node in graph.graph.nodes})
        return graph

    run = attnzoo.kernels.dispatch._ops[CASES[name][0]].implementations["torch"].run
    return run, torch.compile(run, backend=record, fullgraph=True)


def test_every_operator_is_here():
    assert {*CASES, "top_mask_on_cpu"} == set(_opaque.operators)


@OPERATORS
def test_operator(name):
    torch.manual_seed(0)
    torch.library.opcheck(_opaque.operators[name], CASES[name][1]())


def test_operator_of_masks():
    torch.library.opcheck(_opaque.operators["top_mask_on_cpu"], (torch.randn(2, 3, 5), 2))
    # Entries of one size at the cut: NumPy's way does not know which to take.
    mask = _opaque.operators["top_mask_on_cpu"](torch.zeros(2, 5), 2)
    assert mask.sum(-1).tolist() == [2, 2]


@OPERATORS
@pytest.mark.parametrize("mode", [torch.no_grad, torch.inference_mode, torch.enable_grad])
def test_compiled_without_a_gradient(name, mode):
    torch.manual_seed(1)
    arguments, graphs = CASES[name][1](), []
    run, program = compiled(name, graphs)
    with mode():
        assert relative_error(program(*arguments), run(*arguments)) < 1e-6
    assert any(name in target for target in graphs[0])


@OPERATORS
@pytest.mark.parametrize("context", [torch.enable_grad, lambda: torch.autocast("cpu", torch.bfloat16)])
def test_compiled_as_it_was_elsewhere(name, context):
    torch.manual_seed(2)
    arguments, graphs = CASES[name][1](), []
    arguments[0].requires_grad_(context is torch.enable_grad)
    run, program = compiled(name, graphs)
    with torch.no_grad(), context():
        assert relative_error(program(*arguments).float(), run(*arguments).float()) < 0.02
    assert not any(name in target for target in graphs[0])


@OPERATORS
def test_inductor_with_any_batch(name):
    torch.manual_seed(3)
    two = CASES[name][1]()
    one = [x[:1] if torch.is_tensor(x) and x.ndim > 3 else x for x in two]
    run, _ = compiled(name, [])
    program = torch.compile(lambda *args: run(*args) * 2, fullgraph=True, dynamic=True)
    with torch.no_grad():
        for arguments in (two, one):
            assert relative_error(program(*arguments), run(*arguments) * 2) < 1e-6


def test_the_reference_stays_the_reference():
    q, k, v, *_ = CASES["flow_on_cpu"][1]()
    graphs = []

    def record(graph, inputs):
        graphs.append({str(node.target) for node in graph.graph.nodes})
        return graph

    with use_backend("reference"), torch.no_grad():
        torch.compile(attnzoo.kernels.flow_attention, backend=record, fullgraph=True)(q, k, v)
    assert not any("on_cpu" in target for target in graphs[0])


def test_selection_in_a_compiled_program():
    scores = torch.randn(2, 3, 20, 20)
    with torch.no_grad():
        mask = torch.compile(lambda x: largest_entries(x, 5), backend="aot_eager", fullgraph=True)(scores)
    assert mask.dtype == torch.bool and torch.equal(mask, largest_entries(scores, 5))
