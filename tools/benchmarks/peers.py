"""What the ops are timed against: the published forms, PyTorch's own attention, and NATTEN where it is installed."""

import importlib.metadata
import importlib.util
from collections.abc import Callable
from dataclasses import dataclass

import torch
import torch.nn.functional as F

from . import published
from .cases import Inputs
from .published import Form

Tensor = torch.Tensor


@dataclass(frozen=True)
class Peer:
    """A way of computing an op that is not ours.

    Attributes:
        build: its form for given arguments.
        package: must be installed for it.
        without: arguments that it cannot take; it is checked against the op without them.
        compiled: only means anything under torch.compile.
        cpu_backward: has a backward on CPUs.
    """

    build: Callable[[Inputs], Form]
    package: str = "torch"
    without: tuple[str, ...] = ()
    compiled: bool = False
    cpu_backward: bool = True

    @property
    def installed(self) -> bool:
        return importlib.util.find_spec(self.package) is not None


def natten_peer() -> dict[str, Peer]:
    """The installed natten, if any: up to 0.14 two compiled steps with the bias, today one function without."""
    try:
        version = importlib.metadata.version("natten")
    except importlib.metadata.PackageNotFoundError:
        return {}
    if version.startswith("0.14."):
        return {f"natten {version} (C++)": Peer(_natten_steps, package="natten")}
    return {"natten": Peer(_natten, package="natten", without=("rel_pos_bias",), cpu_backward=False)}


def _natten(inputs: Inputs) -> Form:
    from natten import na2d

    kernel_size, dilation = inputs["kernel_size"], inputs["dilation"]
    return Form(
        lambda q, k, v: na2d(q, k, v, kernel_size=kernel_size, dilation=dilation), tuple(inputs[name] for name in "qkv")
    )


def _natten_steps(inputs: Inputs) -> Form:
    """Neighborhood attention as the modules of natten 0.14 compute it, given what they copy: heads before space."""
    from natten.functional import natten2dav, natten2dqkrpb

    window, scale = (inputs["kernel_size"], inputs["dilation"]), inputs["q"].shape[-1] ** -0.5

    def run(q: Tensor, k: Tensor, v: Tensor, bias: Tensor) -> Tensor:
        return natten2dav(natten2dqkrpb(q * scale, k, bias, *window).softmax(-1), v, *window)

    maps = (inputs[name].permute(0, 3, 1, 2, 4).contiguous() for name in "qkv")
    return Form(run, (*maps, inputs["rel_pos_bias"]), lambda out: out.permute(0, 2, 3, 1, 4))


def _dense_mask(inputs: Inputs) -> Form:
    """Neighborhood attention as full attention under a mask made once: the bias in windows, -inf outside."""
    q, bias = inputs["q"], inputs["rel_pos_bias"]
    index, offsets = published.square_windows(q.shape[1], inputs["kernel_size"], inputs["dilation"], q.device)
    tokens = len(index)
    mask = torch.full((bias.shape[0], tokens, tokens), float("-inf"), dtype=q.dtype, device=q.device)
    mask = mask.scatter(2, index.expand(bias.shape[0], -1, -1), bias.flatten(1)[:, offsets])

    def run(q: Tensor, k: Tensor, v: Tensor, mask: Tensor) -> Tensor:
        return F.scaled_dot_product_attention(q, k, v, attn_mask=mask)

    maps = (inputs[name].flatten(1, 2).transpose(1, 2).contiguous() for name in "qkv")
    return Form(run, (*maps, mask[None]), lambda out: out.transpose(1, 2).reshape(q.shape))


def _flex(inputs: Inputs) -> Form:
    """Neighborhood attention in flex_attention: a block mask made once, the bias looked up for every score."""
    from torch.nn.attention.flex_attention import create_block_mask, flex_attention

    q, kernel = inputs["q"], inputs["kernel_size"]
    side, device = q.shape[1], q.device
    position, _ = published.window_indices(side, kernel, inputs["dilation"])
    allowed = torch.zeros(side, side, dtype=torch.bool).scatter(1, position, True).to(device)
    steps = inputs["dilation"]

    def inside(batch: Tensor, head: Tensor, i: Tensor, j: Tensor) -> Tensor:
        return allowed[i // side, j // side] & allowed[i % side, j % side]

    blocks = create_block_mask(inside, None, None, side**2, side**2, device=device)

    def run(q: Tensor, k: Tensor, v: Tensor, bias: Tensor) -> Tensor:
        def biased(score: Tensor, batch: Tensor, head: Tensor, i: Tensor, j: Tensor) -> Tensor:
            # Outside the window the offset may leave the table; the mask discards that score.
            rows = (j // side // steps - i // side // steps + kernel - 1).clamp(0, 2 * kernel - 2)
            cols = (j % side // steps - i % side // steps + kernel - 1).clamp(0, 2 * kernel - 2)
            return score + bias[head, rows, cols]

        return flex_attention(q, k, v, score_mod=biased, block_mask=blocks)

    maps = (inputs[name].flatten(1, 2).transpose(1, 2).contiguous() for name in "qkv")
    return Form(run, (*maps, inputs["rel_pos_bias"]), lambda out: out.transpose(1, 2).reshape(q.shape))


def _copied_heads(inputs: Inputs) -> Form:
    """Grouped-query attention as full attention on copies of the key heads."""

    def run(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        k, v = k[:, inputs["groups"]], v[:, inputs["groups"]]
        return F.scaled_dot_product_attention(q, k, v)

    maps = tuple(inputs[name].transpose(1, 2).contiguous() for name in "qkv")
    return Form(run, maps, lambda out: out.transpose(1, 2))


def _attention(inputs: Inputs) -> Form:
    """scaled_dot_product_attention as it is, under the mask where there is one."""
    mask = inputs.get("mask")
    maps = tuple(inputs[name].transpose(1, 2).contiguous() for name in "qkv")
    return Form(
        lambda q, k, v: F.scaled_dot_product_attention(q, k, v, attn_mask=mask), maps, lambda out: out.transpose(1, 2)
    )


PEERS: dict[str, dict[str, Peer]] = {
    "neighborhood_attention": {
        "gather": Peer(published.gathered_windows),
        "SDPA, dense mask": Peer(_dense_mask),
        "flex_attention": Peer(_flex, compiled=True, cpu_backward=False),
        **natten_peer(),
    },
    "bi_level_routing_attention": {"published": Peer(published.routing)},
    "large_kernel_attention": {"published": Peer(published.large_kernel)},
    "magnitude_aware_linear_attention": {"published": Peer(published.magnitude_aware)},
    "linear_attention": {"published": Peer(published.linear)},
    "flow_attention": {"published": Peer(published.flow)},
    "agent_attention": {"published": Peer(published.agent)},
    "sparse_attention": {"published": Peer(published.sparse), "SDPA": Peer(_attention)},
    "grouped_query_attention": {"published": Peer(published.grouped), "SDPA": Peer(_copied_heads)},
    "strip_attention": {"published": Peer(published.strip), "SDPA": Peer(_attention)},
    "dynamic_depthwise_conv": {"published": Peer(published.dynamic)},
}
