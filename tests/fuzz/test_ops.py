"""Every op with arguments that fit and arguments that do not: torch computes what reference does, or one is named."""

import inspect
from collections.abc import Callable
from typing import Any

import pytest
import torch
from fuzzing import accepted, fuzzed
from hypothesis import strategies as st
from torch import Tensor

from attnzoo import kernels

DTYPES = (torch.float64, torch.float32, torch.bfloat16, torch.float16)
TOLERANCES = {torch.float64: 1e-9, torch.float32: 1e-4, torch.bfloat16: 6e-2, torch.float16: 1e-2}
SMALL = st.integers(1, 4)
SIDE = st.integers(1, 12)
BATCH = st.sampled_from((1, 2, 0, 3))
NUMBER = st.sampled_from((1, 3, 5, 2, 0, -1, 4, 7, 9, True, 2.0, None, "3"))
SIZE = st.one_of(st.sampled_from((3, 1, 5)), NUMBER, st.lists(NUMBER, max_size=3).map(tuple))
FLOAT = st.sampled_from((0.5, 1.0, 0.0, 1e-6, 2, -1.0, float("nan"), "1", True))


def attention(draw: Callable, queries: bool = False) -> dict[str, Any]:
    """q, k, v [B, N, heads, D], with other lengths of keys where ``queries``."""
    batch, tokens, heads, dim = draw(BATCH), draw(SIDE), draw(SMALL), draw(SMALL)
    keys = draw(SIDE) if queries else tokens
    return {
        "q": torch.randn(batch, tokens, heads, dim),
        "k": torch.randn(batch, keys, heads, dim),
        "v": torch.randn(batch, keys, heads, draw(SMALL)),
    }


def on_a_map(draw: Callable, axes: int = 2) -> dict[str, Any]:
    shape = [draw(BATCH), *(draw(SIDE) for _ in range(axes)), draw(SMALL), draw(SMALL)]
    return {"q": torch.randn(shape), "k": torch.randn(shape), "v": torch.randn(*shape[:-1], draw(SMALL))}


def agent(draw: Callable) -> dict[str, Any]:
    args = attention(draw)
    batch, tokens, heads, dim = args["q"].shape
    agents = draw(st.integers(0, 5))
    args["agent"] = torch.randn(batch, agents, heads, dim)
    if draw(st.booleans()):
        args["agent_bias"] = torch.randn(draw(st.sampled_from((1, batch))), heads, agents, tokens)
        args["query_bias"] = torch.randn(heads, tokens, agents)
    return args


def neighborhood(draw: Callable) -> dict[str, Any]:
    args = on_a_map(draw, draw(st.integers(1, 2)))
    args |= {"kernel_size": draw(SIZE), "dilation": draw(st.one_of(st.just(1), SIZE))}
    if draw(st.booleans()) and type(args["kernel_size"]) is int and args["kernel_size"] > 0:
        sides = [2 * args["kernel_size"] - 1] * (args["q"].ndim - 3)
        args["rel_pos_bias"] = torch.randn(args["q"].shape[-2], *sides)
    return args


def routing(draw: Callable) -> dict[str, Any]:
    return {**on_a_map(draw), "num_regions": draw(SIZE), "topk": draw(NUMBER)}


def linear(draw: Callable) -> dict[str, Any]:
    args = on_a_map(draw, draw(st.integers(1, 3)))
    return {**args, "q": args["q"].abs(), "k": args["k"].abs()}


def magnitude_aware(draw: Callable) -> dict[str, Any]:
    args = on_a_map(draw)
    if draw(st.booleans()):
        shape = (*args["q"].shape[1:3], args["q"].shape[-1] // 2)
        args["rotation"] = (torch.randn(shape), torch.randn(shape))
    return args


def flow(draw: Callable) -> dict[str, Any]:
    return {**attention(draw, queries=True), "causal": draw(st.booleans())}


def grouped(draw: Callable) -> dict[str, Any]:
    args = attention(draw, queries=True)
    kv_heads = draw(SMALL)
    args["k"] = torch.randn(*args["k"].shape[:2], kv_heads, args["k"].shape[-1])
    args["v"] = torch.randn(*args["v"].shape[:2], kv_heads, args["v"].shape[-1])
    if draw(st.booleans()):
        args["groups"] = torch.randint(0, kv_heads, (args["q"].shape[2],))
    return args


def sparse(draw: Callable) -> dict[str, Any]:
    args = attention(draw, queries=True)
    batch, tokens, heads, _ = args["q"].shape
    keys = args["k"].shape[1]
    if draw(st.booleans()):
        return {**args, "mask": torch.rand(batch, heads, tokens, keys) > 0.5}
    budget = draw(st.integers(0, keys))
    return {**args, "mask": torch.rand(batch, heads, tokens, keys).argsort(-1)[..., :budget]}


def strip(draw: Callable) -> dict[str, Any]:
    return attention(draw, queries=True)


def large_kernel(draw: Callable) -> dict[str, Any]:
    channels, local, dilated = draw(SMALL), draw(st.integers(1, 5)), draw(st.integers(1, 7))
    args: dict[str, Any] = {
        "x": torch.randn(draw(BATCH), channels, draw(SIDE), draw(SIDE)),
        "local_weight": torch.randn(channels, 1, local, local),
        "dilated_weight": torch.randn(channels, 1, dilated, dilated),
        "point_weight": torch.randn(channels, channels, 1, 1),
        "dilation": draw(NUMBER),
    }
    if draw(st.booleans()):
        args |= {name: torch.randn(channels) for name in ("local_bias", "dilated_bias", "point_bias")}
    return args


def dynamic_conv(draw: Callable) -> dict[str, Any]:
    shape = [draw(BATCH), draw(SIDE), draw(SIDE), draw(SMALL)]
    kernel = draw(st.sampled_from((3, 1, 5, 2)))
    args = {
        "x": torch.randn(*shape, draw(SMALL)),
        "weight": torch.randn(*shape, kernel * kernel),
        "kernel_size": draw(st.one_of(st.just(kernel), SIZE)),
        "softmax": draw(st.booleans()),
    }
    if draw(st.booleans()):
        args["rel_pos_bias"] = torch.randn(shape[3], 2 * kernel - 1, 2 * kernel - 1)
    return args


OPS: dict[str, Callable[[Callable], dict[str, Any]]] = {
    "agent_attention": agent,
    "bi_level_routing_attention": routing,
    "dynamic_depthwise_conv": dynamic_conv,
    "flow_attention": flow,
    "grouped_query_attention": grouped,
    "large_kernel_attention": large_kernel,
    "linear_attention": linear,
    "magnitude_aware_linear_attention": magnitude_aware,
    "neighborhood_attention": neighborhood,
    "sparse_attention": sparse,
    "strip_attention": strip,
}


def spoil(draw: Callable, name: str, value: Any) -> Any:
    """Another value of an argument: a tensor of another shape, rank or dtype, a scalar, None."""
    if not isinstance(value, Tensor):
        return draw(st.one_of(NUMBER, FLOAT))
    way = draw(st.sampled_from(("dtype", "shape", "rank", "flat", "int", "none", "list")))
    if way == "dtype":
        return value.to(draw(st.sampled_from(DTYPES)))
    if way == "shape":
        shape = list(value.shape)
        axis = draw(st.integers(0, len(shape) - 1))
        shape[axis] = draw(st.integers(0, 13))
        return torch.zeros(shape, dtype=value.dtype)
    if way == "rank":
        return value[None] if draw(st.booleans()) else value.sum(0).to(value.dtype)
    if way == "flat":
        return value.flatten()
    return {"int": value.to(torch.int32), "none": None, "list": value.tolist()}[way]


def test_every_op_is_fuzzed() -> None:
    ops = {name for name in kernels.__all__ if name.endswith(("attention", "_conv"))}
    assert ops == set(OPS)


@pytest.mark.parametrize("name", sorted(OPS))
@fuzzed(60)
def test_op(name: str, draw: Callable) -> None:
    op = getattr(kernels, name)
    torch.manual_seed(draw(st.integers(0, 9)))
    dtype = draw(st.sampled_from(DTYPES))
    args = {key: _cast(value, dtype) for key, value in OPS[name](draw).items()}
    names = list(inspect.signature(op).parameters)
    for key in draw(st.lists(st.sampled_from(names), max_size=1)):
        args[key] = spoil(draw, key, args.get(key))
    found = accepted(lambda: _run(op, "torch", args), names)
    wanted = accepted(lambda: _run(op, "reference", args), names)
    assert (found is None) == (wanted is None)
    if wanted is None:
        return
    assert found.shape == wanted.shape and found.dtype == wanted.dtype
    finite = all(value.isfinite().all() for value in args.values() if isinstance(value, Tensor))
    scalars = [value for value in args.values() if isinstance(value, float)]
    # Normalisers of zero are the caller's wish; where the definition has a finite value, so has every implementation.
    if finite and all(value > 0 for value in scalars) and wanted.isfinite().all():
        bound = TOLERANCES[wanted.dtype]
        torch.testing.assert_close(
            found, wanted, rtol=bound, atol=bound * max(1.0, float(wanted.abs().amax()) if wanted.numel() else 1.0)
        )


def _cast(value: Any, dtype: torch.dtype) -> Any:
    if isinstance(value, tuple):
        return tuple(_cast(one, dtype) for one in value)
    return value.to(dtype) if isinstance(value, Tensor) and value.is_floating_point() else value


def _run(op: Callable, backend: str, args: dict[str, Any]) -> Tensor:
    with kernels.use_backend(backend):
        return op(**args)
