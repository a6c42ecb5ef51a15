"""What timm asks of a hierarchical model, written once: a family adds its stem, blocks and norm."""

from collections.abc import Iterable, Iterator, Sequence

import torch
import torch.fx
from timm.layers import SelectAdaptivePool2d
from timm.models import checkpoint_seq
from torch import Tensor, nn

from ..weights import convert_checkpoint
from ..weights.load import check_finite
from ._image import channels_last_on_cpu, checked_image
from ._indices import take_indices

# It cannot follow questions about shape and dtype.
torch.fx.wrap("checked_image")
torch.fx.wrap("channels_last_on_cpu")

_POOLS = ("avg", "max", "avgmax", "")


class Stage(nn.Module):
    """Blocks of one resolution behind their downsampling; its output is the last block's, unnormalised."""

    def __init__(self, blocks: Iterable[nn.Module], downsample: nn.Module | None = None) -> None:
        super().__init__()
        self.downsample = downsample if downsample is not None else nn.Identity()
        self.blocks = nn.Sequential(*blocks)
        self.grad_checkpointing = False

    def forward(self, x: Tensor) -> Tensor:
        x = self.downsample(x)
        if self.grad_checkpointing and not torch.jit.is_scripting():
            return checkpoint_seq(self.blocks, x)
        return self.blocks(x)


class Backbone(nn.Module):
    """The part of timm's contract that token models and pyramids share.

    A subclass sets ``in_chans``, ``stem``, ``stages``, ``norm`` and ``head_proj`` and calls :meth:`_finish` at the end
    of its constructor. ``stages`` is what ``forward_intermediates`` counts: a pyramid's stages, a plain model's blocks.
    """

    output_fmt = "NCHW"
    no_decay_leaves = ()
    out_norm_eps = 1e-6
    min_img_size = 1

    def load_state_dict(self, state_dict: dict, strict: bool = True, assign: bool = False):
        """As ``nn.Module``'s; checkpoints under published names, or for another image size, are converted on the way.

        See ``convert_checkpoint``.

        Raises:
            CheckpointError: converted ones hold NaN or infinity.
        """
        # Not everything there is a tensor: quantized layers keep more.
        own = {key: getattr(value, "shape", None) for key, value in self.state_dict().items()}
        if any(key not in own or getattr(value, "shape", None) != own[key] for key, value in state_dict.items()):
            state_dict = convert_checkpoint(state_dict, self)
            check_finite(state_dict)
        return super().load_state_dict(state_dict, strict=strict, assign=assign)

    @torch.jit.ignore
    def no_weight_decay(self) -> set[str]:
        return {name for name, _ in self.named_parameters() if name.rsplit(".", 1)[-1] in self.no_decay_leaves}

    @torch.jit.ignore
    def get_classifier(self) -> nn.Module:
        return self.head

    def reset_classifier(self, num_classes: int, global_pool: str | None = None) -> None:
        """Replace the classifier by one of ``num_classes`` outputs (0: none) and, if given, the pooling."""
        if global_pool is not None:
            self._set_pool(global_pool)
        self._set_classifier(num_classes)
        self.head.train(self.training)

    def _finish(self, num_features: int, num_classes: int, global_pool: str, drop_rate: float) -> None:
        self.num_features = num_features
        if not hasattr(self, "head_proj"):
            self.head_proj = nn.Identity()
        self.head_hidden_size = getattr(self.head_proj, "out_features", num_features)
        self.head_drop = nn.Dropout(drop_rate)
        self._set_pool(global_pool)
        self._set_classifier(num_classes)

    def _set_classifier(self, num_classes: int) -> None:
        if num_classes < 0:
            raise ValueError(f"num_classes is {num_classes}; it is 0 (no classifier) or more")
        like = next(self.parameters())
        self.num_classes = num_classes
        self.head = nn.Identity()
        if num_classes > 0:
            self.head = nn.Linear(self.head_hidden_size, num_classes, device=like.device, dtype=like.dtype)
            nn.init.trunc_normal_(self.head.weight, std=0.02)
            nn.init.zeros_(self.head.bias)

    def _drop_head(self) -> None:
        """Remove the classifier, the pooling and the projection between them."""
        self.head_proj = nn.Identity()
        self.head_hidden_size = self.num_features
        self.reset_classifier(0, "")

    def _set_pool(self, global_pool: str) -> None:
        raise NotImplementedError

    def forward_head(self, x: Tensor, pre_logits: bool = False) -> Tensor:
        raise NotImplementedError

    def _apply_stem(self, x: Tensor) -> Tensor:
        return self.stem(channels_last_on_cpu(checked_image(x, self.in_chans, self.min_img_size)))

    def forward_features(self, x: Tensor) -> Tensor:
        """[B, in_chans, H, W] → the last stage's normalised output, unpooled."""
        return self.norm(self.stages(self._apply_stem(x)))

    def forward(self, x: Tensor) -> Tensor:
        """[B, in_chans, H, W] → logits [B, num_classes]."""
        return self.forward_head(self.forward_features(x))


class Pyramid(Backbone):
    """A hierarchical backbone whose stages are :class:`Stage` modules working in ``output_fmt``."""

    def _finish_pyramid(
        self,
        embed_dims: Sequence[int],
        num_classes: int,
        global_pool: str,
        drop_rate: float,
        stem_stride: int = 4,
    ) -> None:
        self.feature_info = [
            dict(num_chs=dim, reduction=stem_stride * 2**i, module=f"stages.{i}") for i, dim in enumerate(embed_dims)
        ]
        self._finish(embed_dims[-1], num_classes, global_pool, drop_rate)

    def _set_pool(self, global_pool: str) -> None:
        # As timm's module calls them, and with it files that older versions of this package wrote.
        global_pool = global_pool.removeprefix("fast")
        if global_pool not in _POOLS:
            raise ValueError(f"global_pool is {global_pool!r}; one of {', '.join(map(repr, _POOLS))} works")
        self._is_pooled = bool(global_pool)
        self.global_pool = SelectAdaptivePool2d(
            pool_type=f"fast{global_pool}" if global_pool else "", flatten=bool(global_pool), input_fmt=self.output_fmt
        )
        # timm writes it into the configuration of a saved model.
        self.global_pool.pool_type = global_pool

    @torch.jit.ignore
    def group_matcher(self, coarse: bool = False) -> dict:
        blocks = r"^stages\.(\d+)"
        if not coarse:
            blocks = [
                (r"^stages\.(\d+)\.downsample", (0,)),
                (r"^stages\.(\d+)\.blocks\.(\d+)", None),
                (r"^stages\.(\d+)\.norm", (99999,)),
                (r"^norm", (99999,)),
            ]
        return dict(stem=r"^stem", blocks=blocks)

    @torch.jit.ignore
    def set_grad_checkpointing(self, enable: bool = True) -> None:
        for stage in self.stages:
            stage.grad_checkpointing = enable

    def forward_intermediates(
        self,
        x: Tensor,
        indices: int | list[int] | None = None,
        norm: bool = False,
        stop_early: bool = False,
        output_fmt: str = "NCHW",
        intermediates_only: bool = False,
    ) -> list[Tensor] | tuple[Tensor, list[Tensor]]:
        """Stage outputs of an image [B, in_chans, H, W], and the final features unless ``intermediates_only``.

        Args:
            indices: the last n stages if an int, all if None, else these.
            norm: apply the final norm to the last stage's map where it is among them.
            stop_early: do not compute stages after the last one asked for.
            output_fmt: ``NCHW`` or ``NHWC``.

        Raises:
            ValueError: ``output_fmt`` is something else, or there are no such stages.
        """
        if output_fmt not in ("NCHW", "NHWC"):
            raise ValueError(f"output_fmt is {output_fmt!r}; 'NCHW' and 'NHWC' work")
        take, deepest = take_indices(len(self.stages), indices)
        count = deepest + 1 if stop_early else len(self.stages)
        maps = []
        for i, output in enumerate(self._outputs(x, count)):
            last = self.norm(output) if i == len(self.stages) - 1 and (norm or not intermediates_only) else output
            if i in take:
                maps.append(self._as(last if norm else output, output_fmt))
        return maps if intermediates_only else (last, maps)

    def _outputs(self, x: Tensor, count: int) -> Iterator[Tensor]:
        """The outputs of the first ``count`` stages, one after another."""
        x = self._apply_stem(x)
        for stage in self.stages[:count]:
            x = stage(x)
            yield x

    def _as(self, x: Tensor, output_fmt: str) -> Tensor:
        if output_fmt == self.output_fmt:
            return x
        return x.permute(0, 3, 1, 2) if output_fmt == "NCHW" else x.permute(0, 2, 3, 1)

    def prune_intermediate_layers(
        self, indices: int | list[int] = 1, prune_norm: bool = False, prune_head: bool = True
    ) -> list[int]:
        """Cut the stages after the last of ``indices``, and the norm and head with them or on request.

        Raises:
            ValueError: there are no such stages.
        """
        take, last = take_indices(len(self.stages), indices)
        cut = last < len(self.stages) - 1
        self.stages = self.stages[: last + 1]
        if cut:
            self.num_features = self.feature_info[last]["num_chs"]
        if prune_norm or cut:
            self.norm = nn.Identity()
        if prune_head or cut:
            self._drop_head()
        return take

    def forward_head(self, x: Tensor, pre_logits: bool = False) -> Tensor:
        """Final features → logits [B, num_classes], or the pooled features the classifier would read.

        Without pooling there are logits at every position, in the map's format.
        """
        x = self.head_drop(self.global_pool(self.head_proj(x)))
        if not (pre_logits or self._is_pooled) and self.num_classes and self.output_fmt == "NCHW":
            return self.head(x.permute(0, 2, 3, 1)).permute(0, 3, 1, 2)
        return x if pre_logits else self.head(x)
