"""Every family, tiny, at any size, batch and dtype: the contract holds, or the argument at fault is named."""

import copy
import inspect
import warnings
from collections.abc import Callable
from functools import cache
from typing import Any

import pytest
import timm
import torch
from fuzz_families import NAMES, TINY, argument, arguments
from fuzzing import accepted, fuzzed
from hypothesis import strategies as st
from torch import Tensor, nn

DTYPES = (torch.float32, torch.float64, torch.bfloat16, torch.float16)
SIDE = st.one_of(st.integers(1, 40), st.integers(1, 300))


def build(name: str, **kwargs: Any) -> nn.Module:
    torch.manual_seed(0)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return timm.create_model(name, **kwargs).eval()


@cache
def _kept(name: str, family: str, dtype: torch.dtype) -> nn.Module:
    return build(name, **TINY[family], num_classes=5).to(dtype)


def check_logits(model: nn.Module, image: Tensor, by_image: bool = False) -> None:
    """Shape, dtype and finiteness of what a model makes of an image, and that batches do not mix."""
    with torch.no_grad():
        logits = model(image)
        assert logits.dtype == image.dtype
        assert logits.shape[0] == len(image)
        assert logits.isfinite().all()
        if model.num_classes and logits.ndim == 2:
            assert logits.shape[1] == model.num_classes
        elif model.num_classes:  # not pooled
            assert logits.shape[1 if model.output_fmt == "NCHW" else -1] == model.num_classes
        if by_image and len(image) > 1:
            torch.testing.assert_close(model(image[:1]), logits[:1], rtol=1e-6, atol=1e-8)


def draw_image(draw: Callable, in_chans: int, dtype: torch.dtype) -> Tensor:
    batch, height, width = draw(st.sampled_from((0, 1, 1, 2, 3))), draw(SIDE), draw(SIDE)
    torch.manual_seed(draw(st.integers(0, 99)))
    return torch.randn(batch, in_chans, height, width).to(dtype)


@pytest.mark.parametrize("family", sorted(NAMES))
@fuzzed(4)
def test_any_image(family: str, draw: Callable) -> None:
    dtype = draw(st.sampled_from(DTYPES))
    model = _kept(draw(st.sampled_from(NAMES[family])), family, dtype)
    image = draw_image(draw, 3, dtype)
    accepted(lambda: check_logits(model, image, by_image=dtype == torch.float64), ["image"])


@pytest.mark.parametrize("family", sorted(NAMES))
@fuzzed(8)
def test_any_arguments(family: str, draw: Callable) -> None:
    name = draw(st.sampled_from(NAMES[family]))
    defining = inspect.getmodule(timm.model_entrypoint(name))
    cls = type(_kept(NAMES[family][0], family, torch.float32))
    assert cls.__module__ == defining.__name__
    known = list(inspect.signature(cls).parameters)
    changed = draw(st.lists(st.sampled_from(arguments(known)), min_size=1, max_size=2, unique=True))
    kwargs = {**TINY[family], **{key: draw(argument(key, TINY[family]), label=key) for key in changed}}
    model = accepted(lambda: build(name, **kwargs), known)
    if model is not None:
        image = torch.randn(draw(st.integers(0, 2)), kwargs.get("in_chans", 3), draw(st.integers(1, 80)), 33)
        accepted(lambda: check_logits(model, image), ["image", *known])


@pytest.mark.parametrize("family", sorted(NAMES))
@fuzzed(4)
def test_any_indices(family: str, draw: Callable) -> None:
    name = draw(st.sampled_from(NAMES[family]))
    index = st.integers(-6, 6)
    indices = draw(st.one_of(index, st.lists(index, max_size=5).map(tuple), st.none()))
    image = draw_image(draw, 3, torch.float32)
    way = draw(st.sampled_from(("features_only", "forward_intermediates", "prune")))
    if way == "features_only":
        kwargs = {} if indices is None else {"out_indices": indices}
        model = accepted(lambda: build(name, features_only=True, **TINY[family], **kwargs), ["out_indices"])
        maps = None if model is None else accepted(lambda: _maps(model, image), ["image"])
        channels = maps and model.feature_info.channels()
    else:
        model = _kept(name, family, torch.float32)
        if way == "prune":
            model = copy.deepcopy(model)
            accepted(lambda: model.prune_intermediate_layers(1 if indices is None else indices), ["indices"])
            indices = None
        options = dict(intermediates_only=True, stop_early=draw(st.booleans()), norm=draw(st.booleans()))
        maps = accepted(
            lambda: _maps(lambda x: model.forward_intermediates(x, indices, **options), image), ["image", "indices"]
        )
        channels = None
    for i, found in enumerate(maps or ()):
        assert found.ndim == 4 and found.shape[0] == len(image) and found.isfinite().all()
        assert channels is None or found.shape[1] == channels[i]


def _maps(model: Callable, image: Tensor) -> list[Tensor]:
    with torch.no_grad():
        return model(image)


@pytest.mark.parametrize("family", sorted(NAMES))
@fuzzed(3)
def test_any_input(family: str, draw: Callable) -> None:
    model = _kept(NAMES[family][0], family, torch.float32)
    shape = draw(st.lists(st.integers(0, 5), max_size=6))
    dtype = draw(st.sampled_from((torch.uint8, torch.int64, torch.bool, torch.float32)))
    image = torch.zeros(shape, dtype=dtype)
    if not (dtype == torch.float32 and len(shape) == 4 and shape[1] == 3):
        assert accepted(lambda: model(image), ["image"]) is None
    else:
        accepted(lambda: check_logits(model, image), ["image"])
