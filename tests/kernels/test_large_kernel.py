"""Large-kernel attention: its definition written as loops, and its two forms."""

import pytest
import torch
from parity import fast_float64_depthwise, relative_error

from attnzoo.kernels import large_kernel_attention, use_backend
from attnzoo.tools.benchmarks.timing import peak_bytes

BACKENDS = ["reference", "torch"]


def draw(channels, size, batch=2, local=5, dilated=7, dtype=torch.float64):
    shapes = [(batch, channels, *size), (channels, 1, local, local), (channels, 1, dilated, dilated)]
    shapes += [(channels, channels, 1, 1), (channels,), (channels,), (channels,)]
    return [torch.randn(*shape, dtype=dtype) / max(1, len(shape) - 2) for shape in shapes]


def run(backend, *args, **kwargs):
    with use_backend(backend):
        return large_kernel_attention(*args, **kwargs)


def depthwise_by_loops(x, weight, bias, dilation):
    """One image [C, H, W]."""
    channels, height, width = x.shape
    reach = weight.shape[-1] // 2
    out = bias[:, None, None].expand_as(x).clone()
    for i in range(height):
        for j in range(width):
            for a in range(-reach, reach + 1):
                for b in range(-reach, reach + 1):
                    row, col = i + a * dilation, j + b * dilation
                    if 0 <= row < height and 0 <= col < width:
                        out[:, i, j] += weight[:, 0, a + reach, b + reach] * x[:, row, col]
    return out


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize(("size", "dilation"), [((7, 5), 3), ((6, 8), 2), ((4, 4), 1)])
def test_definition(size, dilation, backend):
    arguments = draw(3, size, batch=1, local=3, dilated=3)
    x, local, dilated, point, *biases = arguments
    attention = depthwise_by_loops(x[0], local, biases[0], 1)
    attention = depthwise_by_loops(attention, dilated, biases[1], dilation)
    attention = torch.einsum("oc,chw->ohw", point[:, :, 0, 0], attention) + biases[2][:, None, None]
    with torch.no_grad():
        found = run(backend, *arguments, dilation=dilation)
    assert relative_error(found[0], x[0] * attention) < 1e-12


@pytest.mark.parametrize(("dtype", "bound"), [(torch.float64, 1e-12), (torch.float32, 1e-6)])
@pytest.mark.parametrize("size", [(14, 14), (16, 23), (7, 7), (1, 2)])
@pytest.mark.parametrize("few", [0, 10**4], ids=["phases", "as it is"])
def test_torch_is_the_reference(few, size, dtype, bound, monkeypatch):
    monkeypatch.setattr("attnzoo.kernels.large_kernel._FEW_POSITIONS", few)
    inputs = [each.requires_grad_() for each in draw(4, size, dtype=dtype)]
    double = [each.detach().double().requires_grad_() for each in inputs]
    with fast_float64_depthwise():
        truth = run("reference", *double)
        expected = torch.autograd.grad(truth.square().sum(), double)
        found = run("torch", *inputs)
        gradients = torch.autograd.grad(found.square().sum(), inputs)
        with torch.no_grad():
            assert relative_error(run("torch", *inputs), truth) < bound
    assert relative_error(found, truth) < bound
    for gradient, each in zip(gradients, expected, strict=True):
        assert relative_error(gradient, each) < 10 * bound


# One image at a time, three and a rest of two, all of them; maps that the dilation divides, or leaves one or two of.
@pytest.mark.parametrize("images", [1, 3, 5])
@pytest.mark.parametrize("size", [(9, 9), (7, 8), (11, 12), (2, 1)])
@torch.no_grad()
def test_parts_of_a_batch_without_a_gradient(size, images, monkeypatch):
    args = draw(4, size, batch=5)
    image_bytes = args[0][0].numel() * args[0].element_size()
    monkeypatch.setattr("attnzoo.kernels.large_kernel._BUFFER_BYTES", images * image_bytes)
    given = [x.clone() for x in args]
    assert relative_error(run("torch", *args), run("reference", *args)) < 1e-12
    assert all(torch.equal(x, before) for x, before in zip(args, given, strict=True))


@torch.no_grad()
def test_memory_without_a_gradient():
    """Beside the result no more than its size: beyond twice the largest block glibc gives memory back at every call."""
    args = draw(64, (56, 56), batch=8, dtype=torch.float32)
    assert peak_bytes(lambda: run("torch", *args), torch.device("cpu")) < 2 * args[0].nbytes


# Short rows, those of many channels, rows that the taps at the kernel's end meet or do not.
@pytest.mark.parametrize(
    ("channels", "size"), [(64, (5, 3)), (512, (7, 7)), (24, (14, 9)), (64, (56, 56)), (96, (2, 40))]
)
@torch.no_grad()
def test_convolutions_have_kernels_in_onednn(channels, size, capfd):
    """oneDNN names what it runs: products of unfolded maps take about ten times as long as its depth-wise kernels."""
    arguments = draw(channels, size, batch=1, dtype=torch.float32)
    slow = {}
    for backend in BACKENDS:
        with torch.backends.mkldnn.verbose(torch.backends.mkldnn.VERBOSE_ON):
            run(backend, *arguments)
        calls = [line.split(",") for line in capfd.readouterr().out.splitlines() if ",exec," in line]
        grouped = [call for call in calls if "convolution" in call and f",g{channels}mb" in ",".join(call)]
        slow[backend] = [call for call in grouped if "_dw:" not in ",".join(call)]
    assert not slow["torch"]
    # The definition's do not: what this test looks for is there to be seen.
    assert bool(slow["reference"]) == torch.backends.mkldnn.is_available()


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("size", [(3, 2), (14, 14)])
def test_gradcheck(size, backend, monkeypatch):
    monkeypatch.setattr("attnzoo.kernels.large_kernel._FEW_POSITIONS", 0)
    inputs = [each.requires_grad_() for each in draw(2, size, batch=1, local=3, dilated=3)]
    assert torch.autograd.gradcheck(lambda *each: run(backend, *each), inputs, fast_mode=size[0] > 3)


@pytest.mark.parametrize("backend", BACKENDS)
def test_without_biases_and_of_views(backend):
    x, *weights = draw(4, (15, 17))[:4]
    nhwc = x.permute(0, 2, 3, 1).contiguous().permute(0, 3, 1, 2)
    for view in (x, nhwc, x.transpose(2, 3)):
        expected = run("reference", view.contiguous(), *weights)
        torch.testing.assert_close(run(backend, view, *weights), expected, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("backend", BACKENDS)
def test_weights_are_used_in_the_maps_dtype(backend):
    x, *parameters = draw(4, (15, 17), dtype=torch.float32)
    found = run(backend, x.bfloat16(), *parameters)
    assert found.dtype == torch.bfloat16
    assert relative_error(found, run("reference", x.double(), *(each.double() for each in parameters))) < 3e-2


@pytest.mark.parametrize(("size", "dilation"), [((9, 9), 9), ((9, 9), 4000), ((2, 30), 15)])
@torch.no_grad()
def test_dilation_beyond_the_map(size, dilation):
    given = draw(4, size)
    assert relative_error(*(run(backend, *given, dilation=dilation) for backend in BACKENDS[::-1])) < 1e-12
    assert (
        peak_bytes(lambda: large_kernel_attention(*given, dilation=dilation), torch.device("cpu"))
        < 40 * given[0].nbytes
    )


@pytest.mark.parametrize("backend", BACKENDS)
def test_batch_of_none(backend):
    assert run(backend, *draw(4, (15, 17), batch=0)).shape == (0, 4, 15, 17)


def test_compiles_and_exports_with_any_batch():
    class Model(torch.nn.Module):
        def forward(self, x, *parameters):
            return large_kernel_attention(x, *parameters)

    inputs = tuple(draw(4, (15, 17), dtype=torch.float32))
    torch._dynamo.reset()
    compiled = torch.compile(Model(), fullgraph=True, backend="aot_eager")
    with torch.no_grad():
        torch.testing.assert_close(compiled(*inputs), Model()(*inputs))
        batch = torch.export.Dim("batch", min=1, max=64)
        shapes = {"x": {0: batch}, "parameters": (None,) * 6}
        program = torch.export.export(Model(), inputs, dynamic_shapes=shapes).module()
        more = (torch.cat([inputs[0], inputs[0]]), *inputs[1:])
        torch.testing.assert_close(program(*more), Model()(*more))


@pytest.mark.parametrize("learns", [False, True])
def test_exports_with_any_size(learns):
    class Model(torch.nn.Module):
        def forward(self, x, *parameters):
            return large_kernel_attention(x, *parameters)

    first, *parameters = (x.requires_grad_(learns) for x in draw(4, (15, 17), dtype=torch.float32))
    open_size = {2: torch.export.Dim("height", min=2), 3: torch.export.Dim("width", min=2)}
    with torch.set_grad_enabled(learns):
        shapes = {"x": open_size, "parameters": (None,) * 6}
        program = torch.export.export(Model(), (first, *parameters), dynamic_shapes=shapes).module()
        for size in ((15, 17), (18, 18), (5, 40)):
            x = torch.randn(2, 4, *size)
            torch.testing.assert_close(program(x, *parameters), run("reference", x, *parameters))


@pytest.mark.parametrize(
    ("error", "message", "position", "value"),
    [
        (ValueError, "x must be .B, C, H, W.", 0, torch.randn(4, 8, 8)),
        (ValueError, "x must be .B, C, H, W. with a channel and a position", 0, torch.randn(2, 4, 0, 8)),
        (TypeError, "x must be floating point, got torch.int64", 0, torch.ones(2, 4, 8, 8, dtype=torch.int64)),
        (ValueError, "local_weight must have shape .4, 1, k, k. with k odd, got", 1, torch.randn(4, 1, 4, 4)),
        (ValueError, "dilated_weight must have shape", 2, torch.randn(4, 4, 7, 7)),
        (ValueError, "point_weight must have shape .4, 4, 1, 1.", 3, torch.randn(3, 4, 1, 1)),
        (ValueError, "dilated_bias must have shape .4,., got .3,.", 5, torch.randn(3)),
        (TypeError, "point_bias must be a tensor, got float", 6, 1.0),
        (ValueError, "local_bias is on meta but x is on cpu", 4, torch.empty(4, device="meta")),
    ],
)
def test_bad_tensors(error, message, position, value):
    arguments = draw(4, (8, 8), dtype=torch.float32)
    arguments[position] = value
    with pytest.raises(error, match=message):
        large_kernel_attention(*arguments)


@pytest.mark.parametrize(("error", "dilation"), [(ValueError, 0), (TypeError, 1.5), (TypeError, True)])
def test_bad_dilation(error, dilation):
    with pytest.raises(error, match=f"dilation must be .*got {dilation}"):
        large_kernel_attention(*draw(4, (8, 8), dtype=torch.float32), dilation=dilation)
