"""What timm asks of a model of one resolution, written once: a family adds its stem, blocks and norm."""

import torch
from timm.models import checkpoint_seq
from torch import Tensor, nn

from ._indices import take_indices
from ._pyramid import Backbone


class Plain(Backbone):
    """A backbone of equal blocks: tokens [B, N, C] behind ``num_prefix_tokens`` class tokens, or a map [B, H, W, C].

    A subclass sets ``stem``, ``stages`` (an ``nn.Sequential`` of blocks), ``norm`` and ``patch_size``.
    """

    output_fmt = "NHWC"
    num_prefix_tokens = 0

    def _finish_plain(
        self, embed_dim: int, patch_size: int, num_classes: int, global_pool: str, drop_rate: float
    ) -> None:
        self.grad_checkpointing = False
        self.patch_size = patch_size
        self.feature_info = [
            dict(num_chs=embed_dim, reduction=patch_size, module=f"stages.{i}") for i in range(len(self.stages))
        ]
        self._finish(embed_dim, num_classes, global_pool, drop_rate)

    def _set_pool(self, global_pool: str) -> None:
        allowed = ("token", "avg", "") if self.num_prefix_tokens else ("avg", "max", "")
        if global_pool not in allowed:
            raise ValueError(f"global_pool is {global_pool!r}; one of {', '.join(map(repr, allowed))} works")
        self.global_pool = global_pool

    @torch.jit.ignore
    def group_matcher(self, coarse: bool = False) -> dict:
        return dict(stem=r"^stem|^cls_token|^pos_embed", blocks=[(r"^stages\.(\d+)", None), (r"^norm", (99999,))])

    @torch.jit.ignore
    def set_grad_checkpointing(self, enable: bool = True) -> None:
        self.grad_checkpointing = enable

    def _embed(self, x: Tensor) -> Tensor:
        """The image as the blocks' input; a model with class tokens or a position embedding adds them here."""
        return self._apply_stem(x)

    def _run(self, x: Tensor, grid: tuple[int, int]) -> Tensor:
        """All blocks; ``grid`` is (H, W) of the map, for blocks of tokens that need it (see ``_forward_block``)."""
        if self.grad_checkpointing and not torch.jit.is_scripting():
            return checkpoint_seq(self.stages, x)
        return self.stages(x)

    def _forward_block(self, block: nn.Module, x: Tensor, grid: tuple[int, int]) -> Tensor:
        return block(x)

    def _grid(self, image: Tensor) -> tuple[int, int]:
        return -(-image.shape[-2] // self.patch_size), -(-image.shape[-1] // self.patch_size)

    def forward_features(self, x: Tensor) -> Tensor:
        """[B, in_chans, H, W] → the last block's normalised output, unpooled."""
        return self.norm(self._run(self._embed(x), self._grid(x)))

    def forward_head(self, x: Tensor, pre_logits: bool = False) -> Tensor:
        """Final features → logits [B, num_classes], or the pooled features the classifier would read."""
        x = self.head_drop(self.head_proj(self._pool(x)))
        return x if pre_logits else self.head(x)

    def _pool(self, x: Tensor) -> Tensor:
        if self.global_pool == "token":
            return x[:, 0]
        if not self.global_pool:
            return x
        tokens = x[:, self.num_prefix_tokens :] if self.num_prefix_tokens else x.flatten(1, 2)
        return tokens.amax(1) if self.global_pool == "max" else tokens.mean(1)

    def forward_intermediates(
        self,
        x: Tensor,
        indices: int | list[int] | None = None,
        norm: bool = False,
        stop_early: bool = False,
        output_fmt: str = "NCHW",
        intermediates_only: bool = False,
        return_prefix_tokens: bool = False,
    ) -> list[Tensor] | tuple[Tensor, list[Tensor]]:
        """Block outputs of an image [B, in_chans, H, W], and the final features unless ``intermediates_only``.

        Args:
            indices: the last n blocks if an int, all if None, else these.
            norm: apply the final norm to each.
            stop_early: do not compute blocks after the last one asked for.
            output_fmt: ``NCHW``, ``NHWC`` or ``NLC`` (tokens).
            return_prefix_tokens: give pairs (map, class tokens [B, n, C]) where the model has class tokens.

        Raises:
            ValueError: ``output_fmt`` is something else, or there are no such blocks.
        """
        if output_fmt not in ("NCHW", "NHWC", "NLC"):
            raise ValueError(f"output_fmt is {output_fmt!r}; 'NCHW', 'NHWC' and 'NLC' work")
        take, last = take_indices(len(self.stages), indices)
        x, grid = self._embed(x), self._grid(x)
        outputs = []
        for i, block in enumerate(self.stages[: last + 1] if stop_early else self.stages):
            x = self._forward_block(block, x, grid)
            if i in take:
                outputs.append(self.norm(x) if norm else x)
        maps = [self._as(y, grid, output_fmt) for y in outputs]
        if return_prefix_tokens and self.num_prefix_tokens:
            maps = [(m, y[:, : self.num_prefix_tokens]) for m, y in zip(maps, outputs, strict=True)]
        return maps if intermediates_only else (self.norm(x), maps)

    def _as(self, x: Tensor, grid: tuple[int, int], output_fmt: str) -> Tensor:
        if self.num_prefix_tokens:
            x = x[:, self.num_prefix_tokens :].unflatten(1, grid)
        if output_fmt == "NCHW":
            return x.permute(0, 3, 1, 2)
        return x.flatten(1, 2) if output_fmt == "NLC" else x

    def prune_intermediate_layers(
        self, indices: int | list[int] = 1, prune_norm: bool = False, prune_head: bool = True
    ) -> list[int]:
        """Cut the blocks after the last of ``indices``, and the norm and head on request.

        Raises:
            ValueError: there are no such blocks.
        """
        take, last = take_indices(len(self.stages), indices)
        self.stages = self.stages[: last + 1]
        if prune_norm:
            self.norm = nn.Identity()
        if prune_head:
            self._drop_head()
        return take
