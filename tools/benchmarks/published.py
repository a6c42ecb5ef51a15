"""How the published code computes each op, written anew from its description, to be timed beside ours.

Each function here takes an op's arguments and returns a :class:`Form`. The arguments are brought into the layout of
the published layer outside the timing; what its layer does with them is inside.
"""

from collections.abc import Callable
from dataclasses import dataclass

import torch
import torch.nn.functional as F

from .cases import Inputs

Tensor = torch.Tensor


@dataclass(frozen=True)
class Form:
    """One way of computing an op.

    Attributes:
        run: what is timed, a function of ``tensors``.
        tensors: the op's floating-point arguments in the layout that ``run`` takes.
        view: brings what ``run`` returns into the op's layout.
    """

    run: Callable[..., Tensor]
    tensors: tuple[Tensor, ...]
    view: Callable[[Tensor], Tensor] = lambda out: out


def _layer(core: Callable[..., Tensor], inputs: Inputs) -> Form:
    """``core`` between what the published layers put around it.

    They view a token's channels as heads, ``[B, N, heads, D]`` → ``[B, heads, N, D]``, without a copy, and copy the
    result into ``[B, N, C]`` for the projection.
    """
    q = inputs["q"]

    def run(*tensors: Tensor) -> Tensor:
        return core(*(x.transpose(1, 2) for x in tensors)).transpose(1, 2).contiguous()

    maps = tuple(inputs[name].flatten(1, -3) for name in "qkv")
    return Form(run, maps, lambda out: out.view(*q.shape[:-1], out.shape[-1]))


def _head_width(x: Tensor) -> float:
    return x.shape[-1] ** -0.5


def window_indices(length: int, kernel: int, dilation: int) -> tuple[Tensor, Tensor]:
    """Positions ``[L, K]`` of every window along an axis, and their indices into the bias (NATTEN 0.14.6)."""
    position = torch.arange(length)
    group, place = position % dilation, position // dilation
    members = (length - 1 - group) // dilation + 1
    start = torch.minimum((place - kernel // 2).clamp(min=0), members - kernel)
    window = start[:, None] + torch.arange(kernel)
    return window * dilation + group[:, None], window - place[:, None] + kernel - 1


def square_windows(side: int, kernel: int, dilation: int, device: torch.device) -> tuple[Tensor, Tensor]:
    """The same for a square map: ``[N, K * K]`` positions, and indices into the flat bias."""
    position, offset = window_indices(side, kernel, dilation)
    pairs = ((position, side), (offset, 2 * kernel - 1))
    flat = ((x[:, None, :, None] * row + x[None, :, None, :]).reshape(side**2, -1) for x, row in pairs)
    return tuple(x.to(device) for x in flat)


def attend_windows(q: Tensor, k: Tensor, v: Tensor, bias: Tensor, index: Tensor, offsets: Tensor) -> Tensor:
    """q, k, v ``[B, heads, N, D]``, and :func:`square_windows` → ``[B, heads, N, D]``."""
    # One copy of windows at a time: held together they would take twice the memory.
    scores = (q * _head_width(q)).unsqueeze(-2) @ k[:, :, index].transpose(-1, -2)
    scores = scores + bias.flatten(1)[:, offsets].unsqueeze(-2)
    return (scores.softmax(-1) @ v[:, :, index]).squeeze(-2)


def gathered_windows(inputs: Inputs) -> Form:
    """Neighborhood attention by an index: a copy of every window's keys and values, then products."""
    q = inputs["q"]
    index, offsets = square_windows(q.shape[1], inputs["kernel_size"], inputs["dilation"], q.device)

    def run(q: Tensor, k: Tensor, v: Tensor, bias: Tensor) -> Tensor:
        return attend_windows(q, k, v, bias, index, offsets)

    maps = (inputs[name].flatten(1, 2).transpose(1, 2).contiguous() for name in "qkv")
    return Form(run, (*maps, inputs["rel_pos_bias"]), lambda out: out.transpose(1, 2).reshape(q.shape))


def routing(inputs: Inputs) -> Form:
    """BiFormer: keys and values of the chosen regions by an element-wise gather from the packed regions."""
    batch, side, _, heads, width = inputs["q"].shape
    regions, topk = inputs["num_regions"], inputs["topk"]
    scale = (heads * width) ** -0.5

    def windows(x: Tensor) -> Tensor:
        x = x.flatten(3).unflatten(2, (regions, -1)).unflatten(1, (regions, -1)).transpose(2, 3)
        return x.flatten(3, 4).flatten(1, 2)  # [B, regions, tokens, C]

    def run(x: Tensor, kv: Tensor) -> Tensor:
        # The published layer arranges its input by windows, before it projects it: as much to copy as q.
        q = windows(x).contiguous()
        channels = q.shape[-1]
        query, key = q.detach().mean(2), kv[..., :channels].detach().mean(2)
        chosen = ((query * scale) @ key.transpose(-2, -1)).topk(topk).indices
        count, tokens = kv.shape[1:3]
        index = chosen[..., None, None].expand(-1, -1, -1, tokens, kv.shape[-1])
        pool = kv.unsqueeze(1).expand(-1, count, -1, -1, -1)
        near = torch.gather(pool, 2, index).flatten(2, 3)
        keys, values = (
            x.flatten(0, 1).unflatten(-1, (heads, width)).transpose(1, 2) for x in near.split(channels, dim=-1)
        )
        queries = q.flatten(0, 1).unflatten(-1, (heads, width)).transpose(1, 2)
        out = ((queries * scale) @ keys.transpose(-2, -1)).softmax(-1) @ values
        out = out.transpose(1, 2).reshape(batch, regions, regions, side // regions, side // regions, channels)
        return out.transpose(2, 3).reshape(batch, side, side, channels)

    packed = torch.cat([windows(inputs["k"]), windows(inputs["v"])], dim=-1)
    return Form(run, (inputs["q"], packed), lambda out: out.unflatten(-1, (heads, width)))


def large_kernel(inputs: Inputs) -> Form:
    """VAN: three convolutions in NCHW."""

    def run(x: Tensor, local: Tensor, dilated: Tensor, point: Tensor, *biases: Tensor) -> Tensor:
        channels = x.shape[1]
        attention = F.conv2d(x, local, biases[0], padding=2, groups=channels)
        attention = F.conv2d(attention, dilated, biases[1], padding=9, dilation=3, groups=channels)
        return x * F.conv2d(attention, point, biases[2])

    parts = ("local", "dilated", "point")
    return Form(run, (inputs["x"], *(inputs[f"{name}_{kind}"] for kind in ("weight", "bias") for name in parts)))


def attend_magnitude_aware(q: Tensor, k: Tensor, v: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """q, k, v ``[B, heads, N, D]`` and tables ``[N, D]`` of neighbouring pairs → ``[B, heads, N, D]``."""

    def turn(x: Tensor) -> Tensor:
        return x * cos + torch.stack([-x[..., 1::2], x[..., ::2]], dim=-1).flatten(-2) * sin

    scale, tokens = _head_width(q), q.shape[-2]
    q, k = F.elu(q) + 1, F.elu(k) + 1
    z = q @ k.mean(-2, keepdim=True).transpose(-2, -1) * scale
    q, k = turn(q), turn(k)
    share = (scale / tokens) ** 0.5
    state = (k.transpose(-2, -1) * share) @ (v * share)
    return q @ state * (1 + 1 / (z + 1e-6)) - z * v.mean(-2, keepdim=True)


def magnitude_aware(inputs: Inputs) -> Form:
    """MALA: from channels first, rotation of neighbouring channels by stacking."""
    cos, sin = (x.flatten(0, -2).repeat_interleave(2, dim=-1) for x in inputs["rotation"])
    like = inputs["q"]

    def channels_first(x: Tensor) -> Tensor:
        return x.flatten(1, 2).permute(0, 2, 3, 1).contiguous()  # [B, heads, D, N]

    def interleaved(x: Tensor) -> Tensor:
        return torch.stack(x.chunk(2, dim=-1), dim=-1).flatten(-2)

    def run(*maps: Tensor) -> Tensor:
        return attend_magnitude_aware(*(x.transpose(-2, -1) for x in maps), cos, sin)

    q, k, v = (inputs[name] for name in "qkv")
    maps = (channels_first(x) for x in (interleaved(q), interleaved(k), v))
    return Form(run, tuple(maps), lambda out: out.transpose(1, 2).reshape(like.shape))


def linear(inputs: Inputs) -> Form:
    """L2ViT's linear global attention."""

    def run(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        state = k.transpose(-2, -1) @ v
        norm = q @ k.sum(-2, keepdim=True).transpose(-2, -1)
        return q @ state / norm.clamp(min=inputs["eps"])

    return _layer(run, inputs)


def flow(inputs: Inputs) -> Form:
    """Flowformer, the vision form or the causal form of the sequence model, by what the arguments ask for."""
    run = _causal_flow if inputs.get("causal") else _vision_flow
    return _layer(run, inputs)


def _vision_flow(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    eps = 1e-6
    q, k = q.sigmoid(), k.sigmoid()
    incoming = 1 / (((q + eps) * (k.sum(2, keepdim=True) + eps)).sum(-1) + eps)
    outgoing = 1 / (((k + eps) * (q.sum(2, keepdim=True) + eps)).sum(-1) + eps)
    sink = ((q + eps) * ((k * outgoing[..., None]).sum(2, keepdim=True) + eps)).sum(-1) + eps
    source = ((k + eps) * ((q * incoming[..., None]).sum(2, keepdim=True) + eps)).sum(-1) + eps
    allocation = (sink * (q.shape[2] / k.shape[2])).sigmoid()
    competition = source.clamp(-1, 1).softmax(-1) * k.shape[2]
    out = q @ (k.transpose(-2, -1) @ (v * competition[..., None]))
    return out * incoming[..., None] * allocation[..., None]


def _causal_flow(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    eps = 1e-6
    q, k = q.sigmoid(), k.sigmoid()
    count = torch.arange(1, q.shape[2] + 1, dtype=q.dtype, device=q.device)
    incoming = 1 / ((q + eps) * (k.cumsum(2) + eps)).sum(-1) * count
    outgoing = 1 / ((k + eps) * (q.cumsum(2) + eps)).sum(-1) * count
    sink = ((q + eps) * ((k * outgoing[..., None]).cumsum(2) + eps)).sum(-1) / count
    source = (((k + eps) * ((q * incoming[..., None]).cumsum(2) + eps)).sum(-1) / count).clamp(-1, 1).exp()
    competition = source / source.cumsum(-1) * count
    states = torch.einsum("bhld,bhlm->bhldm", k, v * competition[..., None]).cumsum(2)
    out = torch.einsum("bhld,bhldm->bhlm", q * (incoming / count)[..., None], states)
    return out * sink.sigmoid()[..., None]


def agent(inputs: Inputs) -> Form:
    """Agent attention: both score matrices, their biases repeated for every image."""

    def run(q: Tensor, k: Tensor, v: Tensor, agent: Tensor, agent_bias: Tensor, query_bias: Tensor) -> Tensor:
        batch, scale = q.shape[0], _head_width(q)
        q, k, v, agent = (x.transpose(1, 2) for x in (q, k, v, agent))
        to_agents = (agent * scale) @ k.transpose(-2, -1) + agent_bias[None].repeat(batch, 1, 1, 1)
        to_tokens = (q * scale) @ agent.transpose(-2, -1) + query_bias[None].repeat(batch, 1, 1, 1)
        return (to_tokens.softmax(-1) @ (to_agents.softmax(-1) @ v)).transpose(1, 2).contiguous()

    return Form(run, tuple(inputs[name] for name in ("q", "k", "v", "agent", "agent_bias", "query_bias")))


def sparse(inputs: Inputs) -> Form:
    """Sparsifiner: dense scores, masked, with their softmax cleared of rows that keep nothing."""

    def run(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        scores = q @ k.transpose(-2, -1) * _head_width(q)
        weights = scores.masked_fill(~inputs["mask"], float("-inf")).softmax(-1).nan_to_num()
        return weights @ v

    return _layer(run, inputs)


def grouped(inputs: Inputs) -> Form:
    """Key-driven GQA: a Python loop over the key heads, each with its query heads."""
    counts = torch.bincount(inputs["groups"], minlength=inputs["k"].shape[2]).tolist()

    def run(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        queries = (q * _head_width(q)).split(counts, dim=1)
        parts = [
            (query @ key.unsqueeze(1).transpose(-2, -1)).softmax(-1) @ value.unsqueeze(1)
            for query, key, value in zip(queries, k.unbind(1), v.unbind(1), strict=True)
        ]
        return torch.cat(parts, dim=1)

    return _layer(run, inputs)


def strip(inputs: Inputs) -> Form:
    """S2AFormer: scores, softmax, product."""

    def run(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        return (q @ k.transpose(-2, -1) * _head_width(q)).softmax(-1) @ v

    return _layer(run, inputs)


def convolve_unfolded(x: Tensor, weight: Tensor) -> Tensor:
    """x ``[B, C, H, W]``, weight ``[B, groups, H, W, K * K]`` → ``[B, groups, C / groups, H, W]``."""
    groups, height, width, window = weight.shape[1:]
    kernel = round(window**0.5)
    windows = F.unfold(x, kernel).unflatten(2, (height - kernel + 1, width - kernel + 1))
    windows = F.pad(windows, (kernel // 2,) * 4, mode="replicate")
    windows = windows.view(len(x), groups, -1, window, height, width)
    return torch.einsum("bgckhw,bghwk->bgchw", windows, weight)


def dynamic(inputs: Inputs) -> Form:
    """OverLoCK's form without NATTEN: every window unfolded, those at the border copied from their neighbours."""
    x = inputs["x"].permute(0, 3, 4, 1, 2).flatten(1, 2).contiguous()
    weight = inputs["weight"].permute(0, 3, 1, 2, 4).contiguous()
    return Form(convolve_unfolded, (x, weight), lambda out: out.permute(0, 3, 4, 1, 2))
