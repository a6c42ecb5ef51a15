"""Pieces that several families share: the pre-norm block, weight initialisation, renaming of checkpoint keys."""

import re
from collections.abc import Callable, Iterable
from typing import Any

from timm.layers import DropPath, LayerScale, Mlp, trunc_normal_
from torch import Tensor, nn


class TransformerBlock(nn.Module):
    """``x + attn(norm1(x))``, then ``x + mlp(norm2(x))``, channels last; optional layer scale and stochastic depth.

    Args:
        dim: width C.
        attn: token mixer [B, ..., C] → [B, ..., C].
        mlp_ratio: hidden width of the MLP over ``dim``.
        norm_eps: epsilon of both LayerNorms.
        proj_drop: dropout in the MLP.
        drop_path: probability of dropping a branch in training.
        init_values: initial layer scale of both branches, None for none.
        mlp_layer: channel mixer, built as timm's ``Mlp`` is.
    """

    def __init__(
        self,
        dim: int,
        attn: nn.Module,
        mlp_ratio: float = 4.0,
        norm_eps: float = 1e-5,
        proj_drop: float = 0.0,
        drop_path: float = 0.0,
        init_values: float | None = None,
        mlp_layer: Callable[..., nn.Module] = Mlp,
        **dd: Any,
    ) -> None:
        super().__init__()
        self.norm1 = nn.LayerNorm(dim, eps=norm_eps, **dd)
        self.attn = attn
        self.ls1 = nn.Identity() if init_values is None else LayerScale(dim, init_values, **dd)
        self.drop_path1 = DropPath(drop_path) if drop_path else nn.Identity()
        self.norm2 = nn.LayerNorm(dim, eps=norm_eps, **dd)
        self.mlp = mlp_layer(dim, int(dim * mlp_ratio), drop=proj_drop, **dd)
        self.ls2 = nn.Identity() if init_values is None else LayerScale(dim, init_values, **dd)
        self.drop_path2 = DropPath(drop_path) if drop_path else nn.Identity()

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.drop_path1(self.ls1(self.attn(self.norm1(x))))
        return x + self.drop_path2(self.ls2(self.mlp(self.norm2(x))))


def init_weights(module: nn.Module) -> None:
    """Linear layers: normal with deviation 0.02 cut at two, biases zero; the rest keeps torch's defaults."""
    if isinstance(module, nn.Linear):
        trunc_normal_(module.weight, std=0.02)
        if module.bias is not None:
            nn.init.zeros_(module.bias)


def rename_keys(
    state_dict: dict[str, Tensor],
    rules: Iterable[tuple[str, str | Callable[[re.Match], str]]],
    drop: str | None = None,
) -> dict[str, Tensor]:
    """The tensors under new names: each rule's pattern is replaced, in order; names matching ``drop`` are left out."""
    rules = [(re.compile(pattern), to) for pattern, to in rules]
    renamed = {}
    for key, value in state_dict.items():
        if drop is not None and re.search(drop, key):
            continue
        for pattern, to in rules:
            key = pattern.sub(to, key)
        renamed[key] = value
    return renamed
