"""Agent attention against the definition written as loops, the published module, and its implementations compared."""

import numpy as np
import pytest
import torch
from parity import load_arrays, reference_input, reference_state, relative_error, requires_fixture

from attnzoo.kernels import agent_attention, explain, use_backend

BACKENDS = ["reference", "torch"]
# tokens, agents, and which axes of (batch, heads, rows, columns) the biases have; None is no bias.
CASES = [
    (12, 4, None),
    (12, 4, "bhrc"),
    (35, 9, "hrc"),
    (7, 7, "rc"),
    (5, 11, "1hrc"),
    (13, 1, "bh1c"),
    (1, 3, "c"),
]


def run(backend, *args, **kwargs):
    with use_backend(backend):
        return agent_attention(*args, **kwargs)


def draw(tokens, agents, axes, batch=2, heads=3, width=4, value_width=None, dtype=torch.float64, grad=False):
    q, k = (torch.randn(batch, tokens, heads, width, dtype=dtype) for _ in range(2))
    v = torch.randn(batch, tokens, heads, value_width or width, dtype=dtype)
    agent = torch.randn(batch, agents, heads, width, dtype=dtype)
    inputs = [q, k, v, agent]
    if axes is not None:
        for rows, columns in ((agents, tokens), (tokens, agents)):
            size = {"b": batch, "h": heads, "r": rows, "c": columns, "1": 1}
            inputs.append(torch.randn(*(size[axis] for axis in axes), dtype=dtype))
    return [x.requires_grad_(grad) for x in inputs]


def call(backend, inputs, **kwargs):
    biases = dict(zip(("agent_bias", "query_bias"), inputs[4:], strict=False))
    return run(backend, *inputs[:4], **biases, **kwargs)


def by_loops(inputs, scale):
    """The definition, one score at a time, in NumPy."""
    q, k, v, agent = (x.numpy() for x in inputs[:4])
    batch, tokens, heads = q.shape[:3]
    agents = agent.shape[1]
    shapes = ((batch, heads, agents, tokens), (batch, heads, tokens, agents))
    biases = [np.broadcast_to(x.numpy(), shape) for x, shape in zip(inputs[4:], shapes, strict=False)]
    agent_bias, query_bias = biases or [np.zeros(shape) for shape in shapes]
    out = np.zeros((batch, tokens, heads, v.shape[-1]))
    for b in range(batch):
        for h in range(heads):
            gathered = []
            for a in range(agents):
                weights = [np.exp(scale * agent[b, a, h] @ k[b, t, h] + agent_bias[b, h, a, t]) for t in range(tokens)]
                gathered.append(sum(w * v[b, t, h] for t, w in enumerate(weights)) / sum(weights))
            for t in range(tokens):
                weights = [np.exp(scale * q[b, t, h] @ agent[b, a, h] + query_bias[b, h, t, a]) for a in range(agents)]
                out[b, t, h] = sum(w * g for w, g in zip(weights, gathered, strict=True)) / sum(weights)
    return torch.from_numpy(out)


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize(("tokens", "agents", "axes"), CASES, ids=str)
def test_is_the_definition(tokens, agents, axes, backend):
    torch.manual_seed(0)
    inputs = draw(tokens, agents, axes, value_width=5)
    assert relative_error(call(backend, inputs), by_loops(inputs, 0.5)) < 1e-12
    assert relative_error(call(backend, inputs, scale=0.9), by_loops(inputs, 0.9)) < 1e-12


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("case", ["even", "odd", "constants"])
def test_is_the_published_attention_of_stable_diffusion(case, backend):
    spec = requires_fixture(f"op_agentsd_attention_{case}")
    weights = reference_state(spec["state"])
    heads, power, shortcut = (spec["args"][name] for name in ("heads", "k_scale2", "k_shortcut"))
    x, agent = (reference_input(spec["inputs"][name]) for name in ("x", "agent"))
    q, k, v = ((x @ weights[f"to_{name}.weight"].T).unflatten(-1, (heads, -1)) for name in "qkv")
    agent = (agent @ weights["to_q.weight"].T).unflatten(-1, (heads, -1))
    scale = q.shape[-1] ** -0.5
    # The second softmax has a scale of its own there: it goes into the queries.
    out = run(backend, q * scale ** (power - 1), k, v, agent) + shortcut * v
    out = out.flatten(2) @ weights["to_out.0.weight"].T + weights["to_out.0.bias"]
    assert relative_error(out, load_arrays(f"op_agentsd_attention_{case}")["out"]) < 1e-7


@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float64, 1e-12), (torch.float32, 1e-6)], ids=str)
@pytest.mark.parametrize(("tokens", "agents", "axes"), [*CASES, (197, 49, "hrc"), (784, 16, "hrc")], ids=str)
def test_torch_is_the_reference(tokens, agents, axes, dtype, tolerance):
    torch.manual_seed(1)
    inputs = draw(tokens, agents, axes, width=8, dtype=dtype, grad=True)
    expected, found = (call(backend, inputs) for backend in BACKENDS)
    assert relative_error(found, expected) < tolerance
    weights = torch.randn_like(expected)
    gradients = [torch.autograd.grad(out, inputs, weights) for out in (found, expected)]
    whole = torch.cat([g.flatten() for g in gradients[1]]).norm()
    for a, b in zip(*gradients, strict=True):
        assert (a - b).norm() < 4 * tolerance * whole
    with torch.no_grad():
        assert relative_error(call("torch", inputs), expected) < tolerance


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("axes", [None, "hrc", "bhrc"])
def test_gradients(axes, backend):
    torch.manual_seed(2)
    inputs = draw(5, 3, axes, width=2, value_width=3, grad=True)
    assert torch.autograd.gradcheck(lambda *inputs: call(backend, inputs), inputs)


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.bfloat16, 1.6e-2), (torch.float16, 2e-3)], ids=str)
def test_half_precision_scores_do_not_overflow(dtype, tolerance, backend):
    torch.manual_seed(3)
    exact = [x * 30 for x in draw(64, 4, "hrc", width=32)]
    half = [x.to(dtype) for x in exact]
    # Scores reach thousands: rounded inputs, not rounded scores, are what the result may differ by.
    expected = call("reference", [x.double() for x in half])
    found = call(backend, half)
    assert found.dtype == dtype
    assert relative_error(found.double(), expected) < tolerance


@pytest.mark.parametrize("backend", BACKENDS)
def test_biases_of_another_dtype(backend):
    torch.manual_seed(4)
    inputs = draw(10, 4, "hrc", dtype=torch.float32)
    expected = call(backend, inputs)
    mixed = [*inputs[:4], *(x.double() for x in inputs[4:])]
    assert call(backend, mixed).dtype == torch.float32
    assert relative_error(call(backend, mixed), expected) < 1e-6


@pytest.mark.parametrize("backend", BACKENDS)
def test_empty_batch_and_strided_inputs(backend):
    torch.manual_seed(5)
    assert call(backend, draw(6, 4, "hrc", batch=0)).shape == (0, 6, 3, 4)
    qkv = torch.randn(2, 10, 3, 3, 4, dtype=torch.float64)
    q, k, v = qkv.unbind(2)
    agent = torch.randn(2, 3, 5, 4, dtype=torch.float64).transpose(1, 2)
    bias = torch.randn(3, 10, 5, dtype=torch.float64).transpose(1, 2)
    strided = call(backend, [q, k, v, agent, bias, bias.transpose(1, 2)])
    plain = [x.contiguous() for x in (q, k, v, agent, bias, bias.transpose(1, 2))]
    assert relative_error(strided, call(backend, plain)) < 1e-14


def test_there_is_no_triton_form():
    explanation = explain(agent_attention, *draw(6, 2, None))
    assert explanation.chosen == "torch"
    assert "no triton implementation" in explanation.reasons["triton"]


Q = torch.zeros(2, 6, 3, 4)
AGENT = torch.zeros(2, 5, 3, 4)


@pytest.mark.parametrize(
    ("agent", "options", "error", "message"),
    [
        ([[1.0]], {}, TypeError, "agent must be a tensor"),
        (AGENT.int(), {}, TypeError, "agent must be floating point, got torch.int32"),
        (AGENT.double(), {}, TypeError, "agent has dtype torch.float64 but q has torch.float32"),
        (AGENT[0], {}, ValueError, r"agent must be \(2, 'n', 3, 4\), got shape \(5, 3, 4\)"),
        (AGENT[..., :3], {}, ValueError, "agent must be"),
        (AGENT[:1], {}, ValueError, "agent must be"),
        (AGENT[:, :0], {}, ValueError, r"at least one token, got shape \(2, 0, 3, 4\)"),
        (AGENT.to("meta"), {}, ValueError, "agent is on meta but q is on cpu"),
        (AGENT, {"agent_bias": 0.5}, TypeError, "agent_bias must be a tensor"),
        (AGENT, {"query_bias": torch.ones(6, 5, dtype=torch.bool)}, TypeError, "query_bias must be floating point"),
        (AGENT, {"agent_bias": torch.zeros(6, 5)}, ValueError, r"agent_bias must broadcast to \(2, 3, 5, 6\)"),
        (AGENT, {"query_bias": torch.zeros(5, 6)}, ValueError, r"query_bias must broadcast to \(2, 3, 6, 5\)"),
        (AGENT, {"query_bias": torch.zeros(1, 1, 1, 6, 5)}, ValueError, "query_bias must broadcast"),
        (AGENT, {"scale": "small"}, TypeError, "scale must be a number"),
    ],
)
def test_arguments(agent, options, error, message):
    with pytest.raises(error, match=message):
        agent_attention(Q, Q, Q, agent, **options)
