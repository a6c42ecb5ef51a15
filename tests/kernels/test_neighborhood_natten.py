"""Neighborhood attention against the results of NATTEN 0.14.6."""

import pytest
import torch
import torch.nn.functional as F
from parity import load_arrays, reference_input, reference_state, relative_error, requires_fixture

from attnzoo.kernels import neighborhood_attention, use_backend

BACKENDS = ["reference", "torch"]
FIXTURES = [f"op_na{name}" for name in ("1d_k3_d4", "1d_k7_d2_bias", "2d_k3_d1_bias", "2d_k5_d3", "2d_k7_d2_bias")]
# The fixtures' numbers: float32 arrays, and ten decimal digits.
STORED = 1e-7
PRINTED = 1e-9


def run(backend, *args, **kwargs):
    with use_backend(backend):
        return neighborhood_attention(*args, **kwargs)


def fixture_inputs(spec):
    q, k, v = (reference_input(spec["inputs"][name]).movedim(1, -2).requires_grad_() for name in "qkv")
    bias = reference_state(spec["state"])["rpb"].requires_grad_() if spec["arguments"]["rel_pos_bias"] else None
    return q, k, v, bias, spec["arguments"]["kernel_size"], spec["arguments"]["dilation"]


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("name", FIXTURES)
def test_outputs_and_gradients_of_natten(name, backend):
    spec = requires_fixture(name)
    q, k, v, bias, kernel, dilation = fixture_inputs(spec)
    out = run(backend, q, k, v, kernel, dilation, rel_pos_bias=bias).movedim(-2, 1)
    assert relative_error(out, load_arrays(name)["output"]) < STORED
    expected = spec["outputs"]["output"]
    assert abs(out.mean().item() - expected["mean"]) < PRINTED * expected["std"]
    assert abs(out.std().item() / expected["std"] - 1) < PRINTED
    assert spec["grads_of"] == "(output * output).mean()"
    (out * out).mean().backward()
    for tensor, gradient in zip((q, k, v, bias), ("q", "k", "v", "rpb"), strict=True):
        if tensor is None:
            continue
        expected = spec["grads"][gradient]
        found = (tensor.grad.movedim(-2, 1) if gradient != "rpb" else tensor.grad).flatten()
        assert abs(found.norm().item() / expected["norm"] - 1) < PRINTED
        values = torch.tensor(expected["value"], dtype=torch.float64)
        assert relative_error(found[expected["index"]], values) < PRINTED


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("name", FIXTURES)
def test_weights_of_natten(name, backend):
    """Values that are one where they stand give the attention weights: those of the recorded scores."""
    spec = requires_fixture(name)
    q, k, _, bias, kernel, dilation = fixture_inputs(spec)
    space, positions = q.shape[1:-2], q.shape[1:-2].numel()
    v = torch.eye(positions, dtype=torch.float64).view(1, *space, 1, positions)
    v = v.expand(q.shape[0], *space, q.shape[-2], positions)
    found = run(backend, q, k, v, kernel, dilation, rel_pos_bias=bias).movedim(-2, 1)
    weights = load_arrays(name)["scores"].softmax(-1)
    assert torch.equal((found > 0).sum(-1), torch.full(found.shape[:-1], kernel ** len(space)))
    # Windows are row-major, so a query's positive weights are in the order of its scores.
    assert relative_error(found[found > 0].view(weights.shape), weights) < STORED


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("name", ["op_na2d_module_k7_d1", "op_na2d_module_k7_d2_small"])
def test_module_of_natten(name, backend):
    spec = requires_fixture(name)
    state, x = reference_state(spec["state"]), reference_input(spec["inputs"]["x"])
    settings = spec["arguments"]
    heads, kernel, dilation = settings["num_heads"], settings["kernel_size"], settings["dilation"]
    height, width = x.shape[1:3]
    x = F.pad(x, (0, 0, 0, max(0, kernel * dilation - width), 0, max(0, kernel * dilation - height)))
    qkv = F.linear(x, state["qkv.weight"], state["qkv.bias"]).unflatten(-1, (3, heads, -1))
    out = run(backend, *qkv.unbind(3), kernel, dilation, rel_pos_bias=state["rpb"]).flatten(3)[:, :height, :width]
    out = F.linear(out, state["proj.weight"], state["proj.bias"])
    assert relative_error(out, load_arrays(name)["output"]) < STORED
    expected = spec["outputs"]["output"]
    assert abs(out.mean().item() - expected["mean"]) < PRINTED * expected["std"]
    assert abs(out.std().item() / expected["std"] - 1) < PRINTED
