"""Inputs that a model or an op was not made for: every family's smallest model, and every op."""

import pytest
import timm
import torch

import attnzoo
from attnzoo.kernels import use_backend

# Each op on a map of 6 x 6 with 2 heads of 4 channels; ``t`` makes a tensor of a shape in the dtype asked for.
OPS = {
    "agent_attention": lambda t: [t(1, 36, 2, 4)] * 3 + [t(1, 5, 2, 4)],
    "bi_level_routing_attention": lambda t: [t(1, 6, 6, 2, 4)] * 3 + [3, 2],
    "dynamic_depthwise_conv": lambda t: [t(1, 6, 6, 2, 4), t(1, 6, 6, 2, 9)],
    "flow_attention": lambda t: [t(1, 36, 2, 4)] * 3,
    "grouped_query_attention": lambda t: [t(1, 36, 2, 4)] * 3,
    "large_kernel_attention": lambda t: [t(1, 4, 6, 6), t(4, 1, 5, 5), t(4, 1, 7, 7), t(4, 4, 1, 1)],
    "linear_attention": lambda t: [t(1, 36, 2, 4)] * 3,
    "magnitude_aware_linear_attention": lambda t: [t(1, 36, 2, 4)] * 3,
    "neighborhood_attention": lambda t: [t(1, 6, 6, 2, 4)] * 3 + [3],
    "sparse_attention": lambda t: [t(1, 36, 2, 4)] * 3 + [torch.ones(1, 2, 36, 36, dtype=torch.bool)],
    "strip_attention": lambda t: [t(1, 36, 2, 1), t(1, 9, 2, 1), t(1, 9, 2, 4)],
}


def smallest() -> list[str]:
    """One name a family file: the one whose name says that it is small."""
    sizes = ("_nano", "_mini", "_xt", "_b0", "_tiny", "_small")
    best: dict[str, tuple[int, str]] = {}
    for name in attnzoo.zoo.list_models():
        size = next((rank for rank, word in enumerate(sizes) if word in name), len(sizes))
        family = timm.model_entrypoint(name).__module__
        best[family] = min(best.get(family, (size, name)), (size, name))
    return sorted(name for _, name in best.values())


@pytest.fixture(scope="module", params=smallest())
def model(request):
    torch.manual_seed(0)
    return timm.create_model(request.param, num_classes=7).eval()


@pytest.mark.fault(26)
@pytest.mark.parametrize("size", [(50, 75), (63, 33)])
def test_any_size(model, size):
    with torch.inference_mode():
        logits = model(torch.randn(2, 3, *size))
    assert logits.shape == (2, 7)
    assert logits.isfinite().all()


@pytest.mark.fault(27)
@pytest.mark.parametrize("size", [(8, 8), (1, 1), (2, 40)])
def test_tiny(model, size):
    """It computes, or names a size that does."""
    with torch.inference_mode():
        try:
            assert model(torch.randn(1, 3, *size)).isfinite().all()
        except ValueError as error:
            text = str(error)
            assert "\n" not in text
            side = int(text.split("images of ")[1].split("x")[0])
            assert text.endswith(f"; images of {side}x{side} and more work")
            assert model(torch.randn(1, 3, side, side)).isfinite().all()


@pytest.mark.fault(28)
def test_batch_of_none(model):
    with torch.inference_mode():
        assert model(torch.zeros(0, 3, 64, 64)).shape == (0, 7)


@pytest.mark.fault(30)
@pytest.mark.parametrize("dtype", [torch.uint8, torch.int64, torch.bool])
def test_integer_images(model, dtype):
    with pytest.raises(TypeError, match=f"an image must be floating point, got {dtype}: divide by 255"):
        model(torch.zeros(1, 3, 64, 64, dtype=dtype))


@pytest.mark.fault(30)
def test_other_shapes(model):
    for shape in ((3, 64, 64), (1, 1, 64, 64), (1, 64, 64, 3)):
        with pytest.raises(ValueError, match=r"an image must be \[B, 3, H, W\], got shape"):
            model(torch.zeros(shape))


@pytest.mark.fault(30)
def test_every_op_is_asked():
    assert set(OPS) == {name for name in attnzoo.kernels.__all__ if name.endswith(("_attention", "_conv"))}


@pytest.mark.fault(30)
@pytest.mark.parametrize("name", OPS)
def test_dtypes_of_ops(name):
    op = getattr(attnzoo.kernels, name)
    with use_backend("reference"):
        found = op(*OPS[name](lambda *shape: torch.rand(shape, dtype=torch.float64)))
    assert found.dtype == torch.float64
    assert found.isfinite().all()
    for dtype in (torch.int64, torch.uint8):
        with pytest.raises(TypeError, match=f"must be floating point, got {dtype}"):
            op(*OPS[name](lambda *shape, dtype=dtype: torch.ones(shape, dtype=dtype)))
