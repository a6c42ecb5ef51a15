"""Dynamic depth-wise convolution against NATTEN's result, its definition written as loops, and its two forms."""

import pytest
import torch
from parity import load_arrays, reference_input, relative_error, requires_fixture

from attnzoo.kernels import _dynamic_conv_rows, dynamic_depthwise_conv, use_backend

BACKENDS = ["reference", "torch"]
# (H, W), kernel: shared windows, one tile, several, ragged ones, kernels that are not square.
CASES = [
    ((7, 7), (7, 7)),
    ((9, 7), (5, 5)),
    ((14, 14), (13, 13)),
    ((15, 13), (13, 13)),
    ((13, 30), (13, 13)),
    ((22, 37), (5, 5)),
    ((17, 31), (3, 7)),
    ((33, 20), (17, 1)),
]


def draw(size, kernel, batch=2, heads=2, width=3, dtype=torch.float64):
    x = torch.randn(batch, *size, heads, width, dtype=dtype)
    weight = torch.randn(batch, *size, heads, kernel[0] * kernel[1], dtype=dtype)
    return x, weight, torch.randn(heads, 2 * kernel[0] - 1, 2 * kernel[1] - 1, dtype=dtype)


def run(backend, x, weight, kernel=None, bias=None, softmax=False):
    with use_backend(backend):
        return dynamic_depthwise_conv(x, weight, kernel, rel_pos_bias=bias, softmax=softmax)


@pytest.mark.parametrize("backend", BACKENDS)
def test_natten(backend):
    name = "op_na2d_av_k5"
    spec = requires_fixture(name)
    value, weight = (reference_input(spec["inputs"][key]).permute(0, 2, 3, 1, 4) for key in ("value", "attn"))
    found = run(backend, value, weight, spec["arguments"]["kernel_size"]).permute(0, 3, 1, 2, 4)
    assert relative_error(found, load_arrays(name)["output"]) < 1e-7
    expected = spec["outputs"]["output"]
    assert abs(found.mean().item() - expected["mean"]) < 1e-9 * expected["std"]


def by_loops(x, weight, bias, kernel):
    """One image and head, softmax included."""
    height, width = x.shape[:2]
    out = torch.zeros_like(x)
    for i in range(height):
        for j in range(width):
            row = min(max(i - kernel[0] // 2, 0), height - kernel[0])
            col = min(max(j - kernel[1] // 2, 0), width - kernel[1])
            scores = weight[i, j].reshape(kernel).clone()
            for a in range(kernel[0]):
                for b in range(kernel[1]):
                    scores[a, b] += bias[row + a - i + kernel[0] - 1, col + b - j + kernel[1] - 1]
            weights = scores.exp() / scores.exp().sum()
            out[i, j] = (weights[:, :, None] * x[row : row + kernel[0], col : col + kernel[1]]).sum((0, 1))
    return out


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize(("size", "kernel"), [((9, 7), (5, 3)), ((8, 16), (3, 5))])
def test_definition(size, kernel, backend):
    x, weight, bias = draw(size, kernel, batch=1, heads=1)
    expected = by_loops(x[0, :, :, 0], weight[0, :, :, 0], bias[0], kernel)
    assert relative_error(run(backend, x, weight, kernel, bias, softmax=True)[0, :, :, 0], expected) < 1e-12


@pytest.mark.parametrize(("dtype", "bound"), [(torch.float64, 1e-12), (torch.float32, 1e-6)])
@pytest.mark.parametrize("softmax", [False, True])
@pytest.mark.parametrize(("size", "kernel"), CASES)
def test_torch_is_the_reference(size, kernel, softmax, dtype, bound):
    inputs = [each.requires_grad_() for each in draw(size, kernel, dtype=dtype)]
    double = [each.detach().double().requires_grad_() for each in inputs]
    found = run("torch", inputs[0], inputs[1], kernel, inputs[2], softmax)
    truth = run("reference", double[0], double[1], kernel, double[2], softmax)
    assert relative_error(found, truth) < bound
    gradients = (torch.autograd.grad(out.square().sum(), each) for out, each in ((found, inputs), (truth, double)))
    for gradient, expected in zip(*gradients, strict=True):
        assert relative_error(gradient, expected) < 10 * bound


@pytest.mark.parametrize("heads_first", [False, True])
@pytest.mark.parametrize("buffer_bytes", [1, 2**12, 2**21])
@pytest.mark.parametrize(("size", "kernel"), CASES)
def test_without_a_gradient(size, kernel, buffer_bytes, heads_first, monkeypatch):
    monkeypatch.setattr(_dynamic_conv_rows, "_BUFFER_BYTES", buffer_bytes)
    x, weight, bias = draw(size, kernel, batch=3)
    if heads_first:
        weight = weight.permute(0, 3, 1, 2, 4).contiguous().permute(0, 2, 3, 1, 4)
    with torch.no_grad():
        for arguments in ((weight,), (weight, kernel, bias, True)):
            if arguments[1:] or kernel[0] == kernel[1]:
                found, truth = (run(backend, x, *arguments) for backend in ("torch", "reference"))
                assert relative_error(found, truth) < 1e-12


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("size", [(3, 4), (4, 9)])
def test_gradcheck(size, backend):
    inputs = [each.requires_grad_() for each in draw(size, (3, 3), batch=1)]
    assert torch.autograd.gradcheck(lambda x, weight, bias: run(backend, x, weight, None, bias, True), inputs)


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize(("dtype", "bound"), [(torch.float16, 2e-3), (torch.bfloat16, 1.6e-2)])
def test_half_precision(dtype, bound, backend):
    x, weight, bias = (each.to(dtype) for each in draw((14, 20), (13, 13), dtype=torch.float32))
    truth = run("reference", x.double(), weight.double(), 13, bias.double(), True)
    for logits in (weight, weight.float()):
        for without_gradient in (False, True):
            with torch.set_grad_enabled(not without_gradient):
                found = run(backend, x, logits, 13, bias, softmax=True)
            assert found.dtype == dtype
            assert relative_error(found, truth) < bound


@pytest.mark.parametrize("backend", BACKENDS)
def test_autocast_does_not_lower_the_precision(backend):
    x, weight, bias = draw((14, 20), (5, 5), dtype=torch.float32)
    with torch.autocast("cpu", torch.bfloat16):
        found = run(backend, x, weight, 5, bias, softmax=True)
    assert torch.equal(found, run(backend, x, weight, 5, bias, softmax=True))


@pytest.mark.parametrize("backend", BACKENDS)
def test_views_and_expanded_gradients(backend):
    packed = torch.randn(2, 3, 2, 9, 16, 4, dtype=torch.float64).permute(0, 3, 4, 2, 5, 1).requires_grad_()
    weight = torch.randn(2, 2, 9, 16, 25, dtype=torch.float64).permute(0, 2, 3, 1, 4)
    run(backend, packed[..., 1], weight).sum().backward()
    gradient, packed.grad = packed.grad, None
    out = run(backend, packed[..., 1].contiguous(), weight.contiguous())
    out.backward(torch.ones_like(out))
    torch.testing.assert_close(gradient, packed.grad, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("backend", BACKENDS)
def test_batch_of_none(backend):
    x, weight, bias = draw((14, 9), (5, 5), batch=0)
    assert run(backend, x, weight, 5, bias, softmax=True).shape == x.shape
    with torch.no_grad():
        assert run(backend, x, weight, 5, bias, softmax=True).shape == x.shape


def test_compiles_and_exports_with_any_batch():
    class Model(torch.nn.Module):
        def forward(self, x, weight, bias):
            return dynamic_depthwise_conv(x, weight, 5, rel_pos_bias=bias, softmax=True)

    inputs = draw((9, 16), (5, 5), dtype=torch.float32)
    torch._dynamo.reset()
    compiled = torch.compile(Model(), fullgraph=True, backend="aot_eager")
    torch.testing.assert_close(compiled(*inputs), Model()(*inputs))
    batch = torch.export.Dim("batch", min=1, max=64)
    program = torch.export.export(Model(), inputs, dynamic_shapes=[{0: batch}, {0: batch}, None]).module()
    more = (*(torch.cat([each, each]) for each in inputs[:2]), inputs[2])
    torch.testing.assert_close(program(*more), Model()(*more))


@pytest.mark.parametrize(
    ("error", "message", "change"),
    [
        (TypeError, "x must be floating point, got torch.int64", {"x": torch.ones(2, 8, 9, 2, 3, dtype=torch.int64)}),
        (TypeError, "weight must be a tensor, got NoneType", {"weight": None}),
        (ValueError, "x must be .B, H, W, heads", {"x": torch.randn(2, 8, 9, 3)}),
        (ValueError, "x needs at least one head", {"x": torch.randn(2, 8, 9, 0, 3)}),
        (ValueError, "weight must have x's shape", {"weight": torch.randn(2, 8, 9, 3, 25)}),
        (ValueError, "weight has 25 values a position, but kernel_size is .3, 3.", {"kernel_size": 3}),
        (ValueError, "kernel_size must be odd and positive, got 4", {"kernel_size": 4}),
        (TypeError, "kernel_size must be an int", {"kernel_size": 5.0}),
        (ValueError, "rel_pos_bias must have shape .2, 9, 9.", {"rel_pos_bias": torch.randn(2, 5, 5)}),
        (
            ValueError,
            "x of .4, 9. positions is smaller than kernel_size .5, 5.",
            {"x": torch.randn(2, 4, 9, 2, 3), "weight": torch.randn(2, 4, 9, 2, 25)},
        ),
        (ValueError, "weight is on meta but x is on cpu", {"weight": torch.empty(2, 8, 9, 2, 25, device="meta")}),
    ],
)
def test_bad_arguments(error, message, change):
    x, weight, bias = draw((8, 9), (5, 5), dtype=torch.float32)
    arguments = {"x": x, "weight": weight, "kernel_size": 5, "rel_pos_bias": bias} | change
    with pytest.raises(error, match=message):
        dynamic_depthwise_conv(**arguments)
