"""Whole layers as the published code computes them, on the weights of ours; written anew from their description.

Each function takes a layer and returns what stands in for its forward. What the published layer keeps, its tables and
the order of its weights, is made before or at the first call.
"""

import math
from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .published import attend_magnitude_aware, attend_windows, convolve_unfolded, square_windows

Forward = Callable[..., Tensor | tuple[Tensor, ...]]


def routing(layer: nn.Module) -> Forward:
    """BiFormer's layer: the map is arranged by regions first, keys and values are gathered element by element."""
    regions, heads = layer.num_regions, layer.num_heads
    count = regions**2

    def to_map(x: Tensor, side: int) -> Tensor:
        x = x.unflatten(1, (regions, regions)).unflatten(3, (side // regions, -1))
        return x.transpose(2, 3).flatten(3, 4).flatten(1, 2)

    def forward(x: Tensor) -> Tensor:
        batch, side, _, channels = x.shape
        tokens = (side // regions) ** 2
        x = x.unflatten(2, (regions, -1)).unflatten(1, (regions, -1)).transpose(2, 3).flatten(3, 4).flatten(1, 2)
        q, kv = layer.qkv(x.contiguous()).split([channels, 2 * channels], dim=-1)
        with torch.no_grad():
            scores = (q.mean(2) * channels**-0.5) @ kv[..., :channels].mean(2).transpose(1, 2)
            chosen = scores.topk(layer.topk).indices
        values = to_map(kv[..., channels:], side).permute(0, 3, 1, 2).contiguous()
        position = nn.Conv2d.forward(layer.lepe, values).permute(0, 2, 3, 1)
        index = chosen[..., None, None].expand(-1, -1, -1, tokens, 2 * channels)
        near = torch.gather(kv.unsqueeze(1).expand(-1, count, -1, -1, -1), 2, index).flatten(2, 3)
        q, k, v = (
            each.flatten(0, 1).unflatten(-1, (heads, -1)).transpose(1, 2) for each in (q, *near.split(channels, dim=-1))
        )
        out = ((q * channels**-0.5) @ k.transpose(-2, -1)).softmax(-1) @ v
        out = to_map(out.transpose(1, 2).flatten(2).view(batch, count, tokens, channels), side)
        return layer.proj(out + position)

    return forward


def neighborhood(layer: nn.Module) -> Forward:
    """NAT's layer with PyTorch's operators for NATTEN's: a copy of every window's keys and values by an index."""
    (kernel, _), (dilation, _) = layer.kernel_size, layer.dilation
    tables: dict[int, tuple[Tensor, Tensor]] = {}

    def forward(x: Tensor) -> Tensor:
        side, device = x.shape[1], x.device
        if side not in tables:
            tables[side] = square_windows(side, kernel, dilation, device)
        index, offsets = tables[side]
        q, k, v = layer.qkv(x).flatten(1, 2).unflatten(-1, (3, layer.num_heads, -1)).permute(2, 0, 3, 1, 4).unbind(0)
        out = attend_windows(q, k, v, layer.rel_pos_bias, index, offsets)
        return layer.proj(out.transpose(1, 2).reshape(x.shape))

    return forward


def magnitude_aware(layer: nn.Module) -> Forward:
    """MALA's layer: maps with channels first, rotation of neighbouring channels by stacking.

    The copy into channels first is part of it, as it is of the norm before the published layer.
    """
    heads, dim = layer.num_heads, layer.proj.out_features
    width = dim // heads
    # Ours has a pair's channels half a head apart, in queries and keys.
    order = torch.arange(dim).view(heads, 2, width // 2).transpose(1, 2).flatten()
    order = torch.cat([order, order + dim, torch.arange(2 * dim, 4 * dim)]).to(layer.qkvo.weight.device)
    weight, bias = layer.qkvo.weight.detach()[order, :, None, None], layer.qkvo.bias.detach()[order]
    tables: dict[int, tuple[Tensor, Tensor]] = {}

    def table(side: int, like: Tensor) -> tuple[Tensor, Tensor]:
        frequency = 1 / 10000 ** torch.linspace(0, 1, width // 4, dtype=torch.float32)
        angle = torch.arange(side, dtype=torch.float64)[:, None] * frequency.double().repeat_interleave(2)
        rows, columns = angle[:, None].expand(-1, side, -1), angle[None].expand(side, -1, -1)
        angles = torch.cat([rows, columns], dim=-1).flatten(0, 1)
        return angles.cos().to(like), angles.sin().to(like)

    def forward(x: Tensor) -> Tensor:
        side = x.shape[1]
        if side not in tables:
            tables[side] = table(side, x)
        x = x.permute(0, 3, 1, 2).contiguous()
        q, k, v, gate = F.conv2d(x, weight, bias).chunk(4, dim=1)
        position = nn.Conv2d.forward(layer.lepe, v)
        q, k, v = (each.flatten(2).unflatten(1, (heads, -1)).transpose(-2, -1) for each in (q, k, v))
        out = attend_magnitude_aware(q, k, v, *tables[side]).transpose(-2, -1).reshape(position.shape)
        out = F.conv2d((out + position) * gate, layer.proj.weight[:, :, None, None], layer.proj.bias)
        return out.permute(0, 2, 3, 1)

    return forward


def contmix(layer: nn.Module) -> Forward:
    """OverLoCK's layer as it computes without NATTEN: every window unfolded, those at the border copied."""
    groups, sizes = layer.groups, layer.windows
    tables: dict[tuple[int, int], Tensor] = {}

    def biased(logits: Tensor, table: Tensor, size: int, side: int) -> Tensor:
        if (side, size) not in tables:
            tables[side, size] = square_windows(side, size, 1, logits.device)[1]
        return logits + table.flatten(1)[:, tables[side, size]].unflatten(1, (side, side))

    def forward(x: Tensor, query: Tensor, context: Tensor) -> Tensor:
        height, width = x.shape[2:]
        q = (layer.query(query) * layer.scale).flatten(2).unflatten(1, (groups, -1))
        k = layer.key(F.adaptive_avg_pool2d(context, 7)).flatten(2).unflatten(1, (groups, -1))
        logits = layer.weight_proj(q.transpose(-2, -1) @ k).unflatten(2, (height, width))
        parts = zip(
            layer.value(x).chunk(2, dim=1),
            logits.split([size**2 for size in sizes], dim=-1),
            (layer.rel_pos_bias_small, layer.rel_pos_bias),
            sizes,
            strict=True,
        )
        mixed = [
            convolve_unfolded(values, biased(part, table, size, height).softmax(-1)).flatten(1, 2)
            for values, part, table, size in parts
        ]
        return layer.proj(torch.cat(mixed, dim=1))

    return forward


def sparsifiner(layer: nn.Module) -> Forward:
    """Sparsifiner's layer: dense masks from two selections, dense scores, and a softmax cleared of empty rows.

    It hands on everything that it makes, and makes one thing only to hand it on: the softmax of the scores without the
    mask.
    """
    predictor, heads = layer.predictor, layer.num_heads

    def forward(x: Tensor) -> tuple[Tensor, ...]:
        q, k, v = layer.qkv(x).unflatten(-1, (3, heads, -1)).permute(2, 0, 3, 1, 4).unbind(0)
        reduced = predictor.proj_c_k(k).transpose(-2, -1) @ predictor.proj_n
        coefficients = (predictor.proj_c_q(q) @ reduced * predictor.scale)[:, :, 1:].softmax(-1)
        best = coefficients.topk(predictor.basis_coef_topk, sorted=False)
        coefficients = torch.zeros_like(coefficients).scatter_(-1, best.indices, best.values)
        basis = F.threshold(predictor.proj_back_n.t().abs(), predictor.basis_threshold, 0.0)
        estimate = coefficients @ basis
        budget = math.ceil(predictor.attn_keep_rate * estimate.shape[-1])
        chosen = estimate.clone().topk(budget, sorted=False).indices
        mask = torch.zeros_like(estimate).scatter_(-1, chosen, 1.0)
        mask = torch.cat([mask.new_ones(len(x), heads, 1, mask.shape[-1]), mask], dim=2)
        weights = q @ k.transpose(-2, -1) * q.shape[-1] ** -0.5
        unmasked = weights.clone().softmax(-1)
        weights = weights.masked_fill_(~mask.bool(), float("-inf")).softmax(-1).nan_to_num()
        return layer.proj((weights @ v).transpose(1, 2).flatten(2)), weights, unmasked, mask, estimate, coefficients

    return forward
