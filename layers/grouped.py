"""Grouped-query attention, and groups that follow the keys' norms (Khan et al. 2024, arXiv 2408.08454).

Uniform groups: Ainslie et al., "GQA", arXiv 2305.13245. The published code of the key-driven variants corrects a split
that does not add up one head at a time, at random groups in DGQA, and runs next to for ever where all norms are equal.
Here the corrections are a fixed number of steps and deterministic, and equal norms give uniform groups.
"""

from collections.abc import Callable

import torch
from torch import Tensor, nn

from ..kernels import grouped_query_attention
from ..kernels._checks import compute_dtype
from ._checks import check_heads


def pool_heads(tensor: Tensor, num_heads: int, num_kv_heads: int) -> Tensor:
    """Mean over the heads of each group: a key or value projection [num_heads·D, ...] → [num_kv_heads·D, ...].

    Raises:
        ValueError: the sizes do not divide one another.
    """
    if num_kv_heads < 1 or num_heads % num_kv_heads or tensor.shape[0] % num_heads:
        raise ValueError(
            f"{tuple(tensor.shape)} in {num_heads} heads cannot be pooled to num_kv_heads={num_kv_heads}: "
            "each must divide the one before"
        )
    return tensor.unflatten(0, (num_kv_heads, num_heads // num_kv_heads, -1)).mean(1).flatten(0, 1)


def group_fused_attention(state_dict: dict[str, Tensor], num_heads: int, num_kv_heads: int) -> dict[str, Tensor]:
    """A plain ViT's fused projections → those of grouped-query attention, wherever they stand in the state dict.

    ``qkv.weight`` [3·C, C] and ``qkv.bias`` [3·C], under any prefix, become ``q`` as it is, and ``k`` and ``v`` pooled
    over the heads of each group (section 4.1 of the paper); other tensors are left as they are.

    Raises:
        ValueError: the sizes do not divide one another.
    """
    converted = {}
    for key, value in state_dict.items():
        prefix, _, leaf = key.rpartition("qkv.")
        if leaf not in ("weight", "bias") or (prefix and not prefix.endswith(".")):
            converted[key] = value
            continue
        q, k, v = value.chunk(3)
        converted[f"{prefix}q.{leaf}"] = q
        converted[f"{prefix}k.{leaf}"] = pool_heads(k, num_heads, num_kv_heads)
        converted[f"{prefix}v.{leaf}"] = pool_heads(v, num_heads, num_kv_heads)
    return converted


def key_norms(k: Tensor) -> Tensor:
    """Norm of each head's keys over tokens and channels, summed over the batch: [B, N, heads, D] → [heads]."""
    dtype = compute_dtype(k.dtype)
    return torch.linalg.vector_norm(k.detach(), dim=(1, 3), dtype=dtype).sum(0)


def allocate_heads(shares: Tensor, num_heads: int) -> Tensor:
    """Whole query heads for each group, as near to its share as they go: [groups] → int64 [groups].

    Shares of the sum are rounded, half to even. While there are too many heads the largest group loses one, while
    there are too few the smallest gains one, the first among equals. Shares without a positive, finite sum are equal.
    """
    groups = shares.shape[0]
    place = torch.arange(groups, device=shares.device)
    uniform = num_heads // groups + (place < num_heads % groups).to(torch.int64)
    exact = shares / shares.sum() * num_heads
    counts = torch.where(exact.isfinite().all(), exact.nan_to_num().round().to(torch.int64), uniform)
    # Rounding is off by at most a half for each group.
    for _ in range((groups + 1) // 2):
        excess = counts.sum() - num_heads
        largest = place == (counts * groups - place).argmax()
        smallest = place == (counts * groups + place).argmin()
        counts = counts - (largest & (excess > 0)).to(torch.int64) + (smallest & (excess < 0)).to(torch.int64)
    return counts


class GroupedQueryAttention(nn.Module):
    """Self-attention on tokens in which groups of equally many query heads share a key and value head (GQA).

    Args:
        dim: width C.
        num_heads: query heads; must divide ``dim``.
        num_kv_heads: key and value heads; must divide ``num_heads``. Default half of them.
        qkv_bias: give the q, k and v projections a bias.
        proj_drop: dropout after the output projection.

    Raises:
        ValueError: an argument is out of its range.
    """

    def __init__(
        self,
        dim: int,
        num_heads: int = 8,
        num_kv_heads: int | None = None,
        qkv_bias: bool = True,
        proj_drop: float = 0.0,
        device: torch.device | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__()
        dd = {"device": device, "dtype": dtype}
        check_heads(dim, num_heads)
        if num_kv_heads is None:
            num_kv_heads = max(1, num_heads // 2)
        if num_kv_heads < 1 or num_heads % num_kv_heads:
            raise ValueError(f"num_kv_heads={num_kv_heads} does not divide num_heads={num_heads}")
        self.num_heads = num_heads
        self.num_kv_heads = num_kv_heads
        kv_dim = dim // num_heads * num_kv_heads
        self.q = nn.Linear(dim, dim, bias=qkv_bias, **dd)
        self.k = nn.Linear(dim, kv_dim, bias=qkv_bias, **dd)
        self.v = nn.Linear(dim, kv_dim, bias=qkv_bias, **dd)
        self.proj = nn.Linear(dim, dim, **dd)
        self.proj_drop = nn.Dropout(proj_drop)

    def heads_per_group(self, k: Tensor) -> Tensor | None:
        """Query heads of each key head, int64 [num_kv_heads], from the keys [B, N, num_kv_heads, D]; None: uniform."""
        return None

    def attend(self, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        """[B, N, num_heads, D] and [B, N, num_kv_heads, D] → [B, N, num_heads, D]."""
        counts = self.heads_per_group(k)
        if counts is None:
            return grouped_query_attention(q, k, v)
        # Query head h comes after as many groups as have a running total of up to h.
        heads = torch.arange(self.num_heads, device=q.device)
        return grouped_query_attention(q, k, v, (heads[:, None] >= counts.cumsum(0)).sum(1))

    def forward(self, x: Tensor) -> Tensor:
        """[B, N, C] → [B, N, C]."""
        q = self.q(x).unflatten(-1, (self.num_heads, -1))
        k, v = (project(x).unflatten(-1, (self.num_kv_heads, -1)) for project in (self.k, self.v))
        return self.proj_drop(self.proj(self.attend(q, k, v).flatten(-2)))

    def extra_repr(self) -> str:
        return f"num_heads={self.num_heads}, num_kv_heads={self.num_kv_heads}"


class KeyDistributedGQA(GroupedQueryAttention):
    """KDGQA: query heads go to key heads in proportion to the norms of the keys at hand (section 3.2).

    As published, norms are stretched from 0 to 1, so that the group of the smallest norm gets no head unless heads
    are left over, and are summed over the batch, so that an image's output depends on the others of its batch.
    """

    def heads_per_group(self, k: Tensor) -> Tensor:
        norms = key_norms(k)
        return allocate_heads((norms - norms.min()) / (norms.max() - norms.min()), self.num_heads)


class DynamicGQA(GroupedQueryAttention):
    """DGQA: query heads go to key heads as the keys' norms evolve from step to step (section 3.3).

    The norms of the step before are kept in the buffer ``key_norms``. ``update="diff"`` divides heads in proportion to
    the norms' absolute change, ``"ema"`` to 0.9 of the new norms and 0.1 of the kept ones. In training heads are
    divided anew every ``window_size`` steps, and the kept norms become (kept + new) / ``window_size``; in evaluation,
    as published, every forward divides anew and keeps its norms, so that answers depend on what was asked before.

    Args:
        update: ``"diff"`` or ``"ema"``.
        window_size: training steps from one division to the next.

    Raises:
        ValueError: an argument is out of its range.
    """

    def __init__(
        self,
        dim: int,
        num_heads: int = 8,
        num_kv_heads: int | None = None,
        qkv_bias: bool = True,
        proj_drop: float = 0.0,
        update: str = "ema",
        window_size: int = 1,
        device: torch.device | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__(dim, num_heads, num_kv_heads, qkv_bias, proj_drop, device=device, dtype=dtype)
        if update not in ("diff", "ema"):
            raise ValueError(f"update={update!r} is neither 'diff' nor 'ema'")
        if window_size < 1:
            raise ValueError(f"window_size={window_size} is below 1")
        self.update = update
        self.window_size = window_size
        groups = self.num_kv_heads
        counts = torch.full((groups,), self.num_heads // groups, dtype=torch.int64, device=device)
        self.register_buffer("key_norms", torch.zeros(groups, device=device, dtype=dtype))
        self.register_buffer("head_counts", counts)
        self.register_buffer("step", torch.zeros((), dtype=torch.int64, device=device))

    @torch.no_grad()
    def heads_per_group(self, k: Tensor) -> Tensor:
        # Gradient checkpointing runs the forward again inside backward: the same step, so the same division.
        if not torch.compiler.is_compiling() and torch._C._current_graph_task_id() != -1:
            return self.head_counts
        norms = key_norms(k)
        kept = self.key_norms.to(norms.dtype)
        shares = (kept - norms).abs() if self.update == "diff" else 0.9 * norms + 0.1 * kept
        counts = allocate_heads(shares, self.num_heads)
        if self.training:
            due = self.step % self.window_size == 0
            counts = torch.where(due, counts, self.head_counts)
            norms = torch.where(due, (kept + norms) / self.window_size, kept)
            self.step.add_(1)
        self.key_norms.copy_(norms)
        self.head_counts.copy_(counts)
        return counts

    def extra_repr(self) -> str:
        return f"{super().extra_repr()}, update={self.update!r}, window_size={self.window_size}"


class PerturbedGQA(GroupedQueryAttention):
    """PGQA: uniform groups, and noise of the output's own mean and deviation subtracted from it (section 3.4).

    The output of each query head, flattened over tokens and channels, is a row. A group's noise is one matrix for the
    whole batch, uniform from 0 to 1 with a zero diagonal, each row standardised and then given the mean and deviation
    of the row it is subtracted from. As published the noise stays on in evaluation. There, unless ``noise`` or
    ``generator`` is set, it is a fixed matrix, so that a model gives the same answer twice; in training it is drawn.

    Args:
        seed: tells the fixed matrices of different layers apart.
        noise: called with (rows, columns) for every group in turn; gives values from 0 to 1 [rows, columns].
        generator: what noise is drawn from where ``noise`` is None.
    """

    def __init__(
        self,
        dim: int,
        num_heads: int = 8,
        num_kv_heads: int | None = None,
        qkv_bias: bool = True,
        proj_drop: float = 0.0,
        seed: int = 0,
        noise: Callable[[int, int], Tensor] | None = None,
        generator: torch.Generator | None = None,
        device: torch.device | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__(dim, num_heads, num_kv_heads, qkv_bias, proj_drop, device=device, dtype=dtype)
        self.seed = seed
        self.noise = noise
        self.generator = generator

    def attend(self, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        x = grouped_query_attention(q, k, v)
        rows = x.transpose(1, 2).flatten(2).unflatten(1, (self.num_kv_heads, -1))
        rows = rows.to(compute_dtype(x.dtype))
        noise = self._draw(rows)
        noise = noise * (1 - torch.eye(*noise.shape[1:], dtype=noise.dtype, device=noise.device))
        noise = (noise - noise.mean(-1, keepdim=True)) / noise.std(-1, keepdim=True)
        rows = rows - (noise * rows.std(-1, keepdim=True) + rows.mean(-1, keepdim=True))
        return rows.flatten(1, 2).unflatten(-1, (x.shape[1], -1)).transpose(1, 2).to(x.dtype)

    def _draw(self, like: Tensor) -> Tensor:
        """Values from 0 to 1 for rows [B, groups, heads, columns], without the batch axis."""
        groups, heads, columns = like.shape[1:]
        if self.noise is not None:
            drawn = [self.noise(heads, columns) for _ in range(groups)]
            return torch.stack(drawn).to(like)
        if self.generator is not None:
            device = self.generator.device
            return torch.rand(groups, heads, columns, generator=self.generator, device=device).to(like)
        if self.training:
            return torch.rand(groups, heads, columns, dtype=like.dtype, device=like.device)
        place = torch.arange(groups * heads * columns, device=like.device) + self.seed * groups * heads * columns
        return _scatter_bits(place).to(like.dtype).view(groups, heads, columns)


def _scatter_bits(place: Tensor) -> Tensor:
    """A number from 0 to 1 for every place, alike for no two near ones: multiply and shift, 32 bits, twice."""
    low = 0xFFFFFFFF
    bits = place & 0x7FFFFFFF
    for factor, shift in ((0x7FEB352D, 16), (0x46CA68B1, 15)):
        bits = (bits * factor) & low
        bits = bits ^ (bits >> shift)
    return bits.to(torch.float64) / low
