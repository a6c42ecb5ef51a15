"""Whole layers as the published code computes them, on the weights of ours; written anew from their description."""

import math

import torch
from torch import Tensor, nn


def routing(layer: nn.Module, x: Tensor) -> Tensor:
    """BiFormer's layer: the map is arranged by regions first, keys and values are gathered element by element."""
    batch, side, _, channels = x.shape
    regions, heads = layer.num_regions, layer.num_heads
    count, tokens = regions**2, (side // regions) ** 2

    def to_map(x: Tensor) -> Tensor:
        x = x.unflatten(1, (regions, regions)).unflatten(3, (side // regions, -1))
        return x.transpose(2, 3).flatten(3, 4).flatten(1, 2)

    x = x.unflatten(2, (regions, -1)).unflatten(1, (regions, -1)).transpose(2, 3).flatten(3, 4).flatten(1, 2)
    q, kv = layer.qkv(x.contiguous()).split([channels, 2 * channels], dim=-1)
    with torch.no_grad():
        scores = (q.mean(2) * channels**-0.5) @ kv[..., :channels].mean(2).transpose(1, 2)
        chosen = scores.topk(layer.topk).indices
    values = to_map(kv[..., channels:]).permute(0, 3, 1, 2).contiguous()
    position = nn.Conv2d.forward(layer.lepe, values).permute(0, 2, 3, 1)
    index = chosen[..., None, None].expand(-1, -1, -1, tokens, 2 * channels)
    near = torch.gather(kv.unsqueeze(1).expand(-1, count, -1, -1, -1), 2, index).flatten(2, 3)
    q, k, v = (
        each.flatten(0, 1).unflatten(-1, (heads, -1)).transpose(1, 2) for each in (q, *near.split(channels, dim=-1))
    )
    out = ((q * channels**-0.5) @ k.transpose(-2, -1)).softmax(-1) @ v
    out = to_map(out.transpose(1, 2).flatten(2).view(batch, count, tokens, channels))
    return layer.proj(out + position)


def sparsifiner(layer: nn.Module, x: Tensor) -> tuple[Tensor, ...]:
    """Sparsifiner's layer: dense masks from two selections, dense scores, and a softmax cleared of empty rows.

    It hands on everything that it makes, and makes one thing only to hand it on: the softmax of the scores without the
    mask.
    """
    predictor, heads = layer.predictor, layer.num_heads
    q, k, v = layer.qkv(x).unflatten(-1, (3, heads, -1)).permute(2, 0, 3, 1, 4).unbind(0)
    reduced = predictor.proj_c_k(k).transpose(-2, -1) @ predictor.proj_n
    coefficients = (predictor.proj_c_q(q) @ reduced * predictor.scale)[:, :, 1:].softmax(-1)
    best = coefficients.topk(predictor.basis_coef_topk, sorted=False)
    coefficients = torch.zeros_like(coefficients).scatter_(-1, best.indices, best.values)
    basis = nn.functional.threshold(predictor.proj_back_n.t().abs(), predictor.basis_threshold, 0.0)
    estimate = coefficients @ basis
    budget = math.ceil(predictor.attn_keep_rate * estimate.shape[-1])
    chosen = estimate.clone().topk(budget, sorted=False).indices
    mask = torch.zeros_like(estimate).scatter_(-1, chosen, 1.0)
    mask = torch.cat([mask.new_ones(len(x), heads, 1, mask.shape[-1]), mask], dim=2)
    weights = q @ k.transpose(-2, -1) * q.shape[-1] ** -0.5
    unmasked = weights.clone().softmax(-1)
    weights = weights.masked_fill_(~mask.bool(), float("-inf")).softmax(-1).nan_to_num()
    return layer.proj((weights @ v).transpose(1, 2).flatten(2)), weights, unmasked, mask, estimate, coefficients
