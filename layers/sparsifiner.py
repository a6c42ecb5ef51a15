"""Sparsifiner's attention: a cheap predictor says which keys each patch attends to (Wei et al. 2023, arXiv 2303.13755).

Where paper and published code disagree the code is followed: the predictor's scores are scaled by num_heads ** -0.5,
the coefficients' softmax is cut and not normalised again, and the class token attends to all tokens.
"""

import math

import torch
from timm.layers import resample_abs_pos_embed, trunc_normal_
from torch import Tensor, nn

from ..kernels import sparse_attention
from ..kernels._checks import compute_dtype
from ..kernels._chunks import in_chunks
from ..kernels._linear import full_precision
from ..kernels.sparse import largest_entries, top_mask
from ._checks import check_heads
from ._plain import is_plain


def resample_tokens(table: Tensor, grid: tuple[int, int], new_grid: tuple[int, int]) -> Tensor:
    """Rows of a class token and an image of ``grid`` patches → those of ``new_grid``, bicubic: [1 + H·W, C]."""
    return resample_abs_pos_embed(table[None], new_grid, grid, num_prefix_tokens=1)[0]


def resample_mixing(table: Tensor, grid: tuple[int, int], new_grid: tuple[int, int]) -> Tensor:
    """As :func:`resample_tokens`, for weights of a sum over tokens: more patches get smaller weights."""
    table = resample_tokens(table, grid, new_grid)
    share = grid[0] * grid[1] / (new_grid[0] * new_grid[1])
    return torch.cat([table[:1], table[1:] * share])


def _project(module: nn.Module, x: Tensor) -> Tensor:
    """The module's result in x's dtype, which may be wider than its weights'."""
    weight = getattr(module, "weight", None)
    return module(x.to(weight.dtype) if isinstance(weight, Tensor) else x).to(x.dtype)


class ConnectivityPredictor(nn.Module):
    """Which keys each patch attends to: the largest entries of a low-rank estimate of its row of attention.

    A query's coefficients are its attention to R mixtures of the keys; with the R basis rows |back| they make the
    estimate (section 3.2, equations 3 to 5). Both cuts, of coefficients and of scores, are by rank or by threshold.

    The mixing matrices have one row per token of ``grid_size``; for other maps they are resampled.

    Args:
        grid_size: patches (H, W) of the images that the matrices are made for; a class token comes before them.
        num_heads: heads.
        head_dim: channels of a head.
        attn_keep_rate: share of the tokens that each patch attends to, rounded up.
        reduce_n_factor: tokens over basis rows R, rounded down.
        reduce_c_factor: channels of a head over those of the predictor's queries and keys.
        num_basis: R itself, in place of ``reduce_n_factor``.
        basis_threshold: entries of the basis up to this one are zero.
        basis_coef_topk: coefficients kept for each query; None is all.
        basis_coef_threshold: keep all coefficients above this one in place of the largest.
        attn_score_threshold: keep all scores above this one in place of a share of the tokens.

    Raises:
        ValueError: an argument is out of its range.
    """

    def __init__(
        self,
        grid_size: tuple[int, int],
        num_heads: int,
        head_dim: int,
        attn_keep_rate: float = 0.25,
        reduce_n_factor: int = 6,
        reduce_c_factor: int = 2,
        num_basis: int | None = None,
        basis_threshold: float = 0.02,
        basis_coef_topk: int | None = 8,
        basis_coef_threshold: float | None = None,
        attn_score_threshold: float | None = None,
        device: torch.device | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__()
        dd = {"device": device, "dtype": dtype}
        num_tokens = 1 + grid_size[0] * grid_size[1]
        if not 0 < attn_keep_rate <= 1:
            raise ValueError(f"attn_keep_rate={attn_keep_rate} is not above 0 and up to 1")
        if not 1 <= reduce_c_factor <= head_dim:
            raise ValueError(f"reduce_c_factor={reduce_c_factor} is not from 1 to the head's {head_dim} channels")
        if num_basis is None:
            if not 1 <= reduce_n_factor <= num_tokens:
                raise ValueError(f"reduce_n_factor={reduce_n_factor} is not from 1 to the {num_tokens} tokens")
            num_basis = num_tokens // reduce_n_factor
        if num_basis < 1:
            raise ValueError(f"num_basis={num_basis} is below 1")
        if basis_coef_topk is not None and not 1 <= basis_coef_topk <= num_basis:
            raise ValueError(f"basis_coef_topk={basis_coef_topk} is not from 1 to the {num_basis} rows of the basis")
        self.grid_size = tuple(grid_size)
        self.scale = num_heads**-0.5
        self.attn_keep_rate = attn_keep_rate
        self.basis_threshold = basis_threshold
        self.basis_coef_topk = basis_coef_topk
        self.basis_coef_threshold = basis_coef_threshold
        self.attn_score_threshold = attn_score_threshold
        self.proj_n = nn.Parameter(trunc_normal_(torch.empty(num_tokens, num_basis, **dd), std=num_tokens**-0.5))
        self.proj_back_n = nn.Parameter(trunc_normal_(torch.empty(num_tokens, num_basis, **dd), std=num_basis**-0.5))
        self.proj_c_q = nn.Linear(head_dim, head_dim // reduce_c_factor, **dd)
        self.proj_c_k = nn.Linear(head_dim, head_dim // reduce_c_factor, **dd)

    def estimate(
        self, q: Tensor, k: Tensor, grid: tuple[int, int] | None = None, keep: Tensor | None = None
    ) -> tuple[Tensor, Tensor]:
        """The patches' estimated attention [B, heads, N - 1, N], and their cut coefficients [B, heads, N - 1, R].

        In float32 at least, under autocast too: connections near the cut would change with rounding.

        Args:
            q: the attention's queries [B, N, heads, D].
            k: its keys, of q's shape.
            grid: patches (H, W) of this image, ``grid_size`` where None.
            keep: bool [B, N - 1], the patches not dropped before.
        """
        dtype = compute_dtype(q.dtype)
        with full_precision(q.device):
            return self._estimate(q.to(dtype), k.to(dtype), grid, keep)

    def _estimate(
        self, q: Tensor, k: Tensor, grid: tuple[int, int] | None, keep: Tensor | None
    ) -> tuple[Tensor, Tensor]:
        mix, back = self.proj_n.to(q.dtype), self.proj_back_n.to(q.dtype)
        if grid is not None and tuple(grid) != self.grid_size:
            mix = resample_mixing(mix, self.grid_size, grid)
            back = resample_tokens(back, self.grid_size, grid)
        mixed, rows = self._mix(k, mix, keep), q[:, 1:].transpose(1, 2)
        if is_plain(self.proj_c_q):
            # The queries' projection first meets the R mixtures: fewer products than to project every query.
            weight, bias = (x.to(q.dtype) * self.scale for x in (self.proj_c_q.weight, self.proj_c_q.bias))
            coefs = rows @ (mixed @ weight).transpose(-2, -1) + (mixed @ bias).unsqueeze(-2)
        else:
            coefs = _project(self.proj_c_q, rows) * self.scale @ mixed.transpose(-2, -1)
        if keep is not None:
            coefs = coefs * keep[:, None, :, None]
        coefs = self._cut(coefs.softmax(-1))
        basis = back.abs()
        basis = basis * (basis > self.basis_threshold)
        # Head by head: as one tall product it takes twice as long on some CPUs.
        heads = coefs.flatten(0, 1)
        scores = torch.bmm(heads, basis.t().expand(heads.shape[0], -1, -1))
        return scores.unflatten(0, coefs.shape[:2]), coefs

    def _mix(self, k: Tensor, mix: Tensor, keep: Tensor | None) -> Tensor:
        """The keys' R mixtures, projected: [B, heads, R, c]. Linear both, so the fewer rows are projected."""
        if keep is None:
            shares = mix.t().expand(k.shape[0], -1, -1)
        else:
            kept = torch.cat([torch.ones_like(keep[:, :1]), keep], dim=1)
            shares = mix.t() * kept[:, None]
        plain = is_plain(self.proj_c_k)
        k = k if plain else _project(self.proj_c_k, k)
        mixed = (shares @ k.flatten(2)).unflatten(2, k.shape[2:]).transpose(1, 2)
        if not plain:
            return mixed
        weight, bias = (x.to(k.dtype) for x in (self.proj_c_k.weight, self.proj_c_k.bias))
        return mixed @ weight.t() + shares.sum(-1)[:, None, :, None] * bias

    def _cut(self, coefs: Tensor) -> Tensor:
        if self.basis_coef_threshold is not None:
            return coefs * (coefs > self.basis_coef_threshold)
        if self.basis_coef_topk is None:
            return coefs
        if (mask := top_mask(coefs, self.basis_coef_topk)) is not None:
            return coefs * mask
        values, places = coefs.topk(self.basis_coef_topk, dim=-1)
        return torch.zeros_like(coefs).scatter_(-1, places, values)

    def select(self, scores: Tensor, keep: Tensor | None = None, num_kept: int | None = None) -> Tensor:
        """What the patches attend to: columns, int64 [B, heads, N - 1, budget], or a bool mask [B, heads, N - 1, N].

        Which of the two is up to what is faster there; a threshold always makes a mask.

        Args:
            scores: of :meth:`estimate`.
            keep: bool [B, N - 1], the patches not dropped before; the others are not selected.
            num_kept: how many they are in each image; the budget is no larger.
        """
        scores = scores.detach()
        if keep is not None:
            dropped = torch.cat([torch.zeros_like(keep[:, :1]), ~keep], dim=1)
            scores = scores.masked_fill(dropped[:, None, None], float("-inf"))
        if self.attn_score_threshold is not None:
            return scores > self.attn_score_threshold
        budget = math.ceil(self.attn_keep_rate * scores.shape[-1])
        if num_kept is not None:
            budget = min(budget, num_kept)
        return largest_entries(scores, budget)


class SparsifinerAttention(nn.Module):
    """Self-attention on a class token and patches, in which patches attend to the keys of their predicted connections.

    The class token attends to all tokens. The selection itself has no gradient; in training the estimated scores
    pass theirs on as if they were added to the attention's (straight through, the value is unchanged), so that the
    predictor learns without the published reconstruction phase; queries and keys get no gradient from it.

    Args:
        dim: width C.
        num_heads: heads; must divide ``dim``.
        grid_size: patches (H, W) of the images that the predictor is made for.
        qkv_bias: give the q, k, v projection a bias.
        proj_drop: dropout after the output projection.
        predictor: further arguments of :class:`ConnectivityPredictor`.

    Raises:
        ValueError: an argument is out of its range.
    """

    def __init__(
        self,
        dim: int,
        num_heads: int,
        grid_size: tuple[int, int],
        qkv_bias: bool = True,
        proj_drop: float = 0.0,
        predictor: dict | None = None,
        device: torch.device | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__()
        dd = {"device": device, "dtype": dtype}
        check_heads(dim, num_heads)
        self.num_heads = num_heads
        self.qkv = nn.Linear(dim, 3 * dim, bias=qkv_bias, **dd)
        self.predictor = ConnectivityPredictor(grid_size, num_heads, dim // num_heads, **(predictor or {}), **dd)
        self.proj = nn.Linear(dim, dim, **dd)
        self.proj_drop = nn.Dropout(proj_drop)

    def forward(
        self,
        x: Tensor,
        grid: tuple[int, int] | None = None,
        keep: Tensor | None = None,
        num_kept: int | None = None,
    ) -> tuple[Tensor, Tensor]:
        """[B, 1 + H·W, C] → [B, 1 + H·W, C], and the class token's attention to the patches [B, H·W], head mean.

        Args:
            grid: patches (H, W) of this image, the layer's ``grid_size`` where None.
            keep: bool [B, H·W], the patches not dropped before, None for all.
            num_kept: how many they are in each image.
        """
        x, attention = in_chunks(
            lambda x, keep=None: self._attend(x, grid, keep, num_kept),
            (x,) if keep is None else (x, keep),
            self.num_heads * x.shape[1] ** 2 * x.element_size(),
        )
        return self.proj_drop(x), attention

    def _attend(
        self, x: Tensor, grid: tuple[int, int] | None, keep: Tensor | None, num_kept: int | None
    ) -> tuple[Tensor, Tensor]:
        """What :meth:`forward` does for a few images."""
        qkv = self.qkv(x)
        if keep is not None:
            qkv = torch.cat([qkv[:, :1], qkv[:, 1:] * keep[..., None]], dim=1)
        q, k, v = qkv.unflatten(-1, (3, self.num_heads, -1)).unbind(-3)
        scores, _ = self.predictor.estimate(q.detach(), k.detach(), grid, keep)
        connections = self.predictor.select(scores, keep, num_kept)
        bias = (scores - scores.detach()).to(q.dtype) if self.training else None
        patches = sparse_attention(q[:, 1:], k, v, connections, bias=bias)
        first, row = self._class_token(q[:, 0], k, v)
        return self.proj(torch.cat([first, patches.flatten(-2)], dim=1)), row[:, :, 1:].mean(1)

    def _class_token(self, q: Tensor, k: Tensor, v: Tensor) -> tuple[Tensor, Tensor]:
        """Its attention to all tokens, for all heads in one product each: [B, 1, C] and the weights [B, heads, N].

        A head's query is widened to all channels by zeros, and of its row of results only its own channels are taken:
        keys and values are read as they lie.
        """
        own = torch.eye(self.num_heads, dtype=q.dtype, device=q.device).unsqueeze(-1)
        wide = (q.unsqueeze(1) * (own * q.shape[-1] ** -0.5)).flatten(2)
        row = wide @ k.flatten(2).transpose(1, 2)
        row = row.softmax(-1, dtype=compute_dtype(row.dtype))
        out = (row.to(v.dtype) @ v.flatten(2)).unflatten(-1, (self.num_heads, -1))
        return out.diagonal(dim1=1, dim2=2).transpose(1, 2).flatten(1).unsqueeze(1), row

    def extra_repr(self) -> str:
        return f"num_heads={self.num_heads}"
