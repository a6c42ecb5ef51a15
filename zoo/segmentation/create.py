"""``create_segmenter``: a zoo or timm model under a segmentation decoder."""

import inspect
from typing import Any

import torch.nn.functional as F
from torch import Tensor, nn

from .._levels import as_list, build_levels, unknown
from ._parts import resize
from .fcn import FCN
from .linear import LinearAttentionDecoder
from .semantic_fpn import SemanticFPN
from .upernet import UPerNet

_KINDS: dict[str, type[nn.Module]] = {
    "semantic_fpn": SemanticFPN,
    "upernet": UPerNet,
    "fcn": FCN,
    "linear": LinearAttentionDecoder,
}
_ALIASES = {"attention": "linear"}
_GIVEN = {"in_channels", "strides", "num_classes"}


def _options(decoder: type[nn.Module]) -> set[str]:
    return set(inspect.signature(decoder).parameters) - _GIVEN


class Segmenter(nn.Module):
    """A backbone, a decoder and perhaps an auxiliary head; images of any size.

    Args:
        backbone: returns maps, finest first.
        decoder: maps → logits at the size of one of them.
        multiple: images are padded with zeros at the bottom and right to multiples of this.
        auxiliary: a second decoder, for training only.
    """

    def __init__(
        self, backbone: nn.Module, decoder: nn.Module, multiple: int = 32, auxiliary: nn.Module | None = None
    ) -> None:
        super().__init__()
        self.backbone = backbone
        self.decoder = decoder
        self.auxiliary = auxiliary
        self.multiple = multiple

    def forward(self, x: Tensor) -> Tensor | tuple[Tensor, Tensor]:
        """Images [B, C, H, W] → logits [B, num_classes, H, W]; with an auxiliary head in training a pair of them."""
        height, width = x.shape[-2:]
        padding = (-width % self.multiple, -height % self.multiple)
        if any(padding):
            x = F.pad(x, (0, padding[0], 0, padding[1]))
        maps = as_list(self.backbone(x))
        heads = [self.decoder] if self.auxiliary is None or not self.training else [self.decoder, self.auxiliary]
        logits = [resize(head(maps), x.shape[-2:])[..., :height, :width] for head in heads]
        return logits[0] if len(logits) == 1 else tuple(logits)


def create_segmenter(
    kind: str, backbone: str | nn.Module, num_classes: int, *, auxiliary: bool = False, **kwargs: Any
) -> Segmenter:
    """A segmenter whose backbone is any model with stages of attnzoo's or timm's.

    It takes normalised images [B, C, H, W] (float, mean and std as the backbone's classifier wants them), of any height
    and width, and returns logits [B, num_classes, H, W]. :func:`segmentation_loss` is the loss.

    Args:
        kind: ``semantic_fpn`` (Kirillov et al. 2019), ``upernet`` (Xiao et al. 2018), ``fcn`` (Long et al. 2015), or
            ``linear`` (also ``attention``), the zoo's own unpublished decoder of linear-cost attention.
        backbone: a model's name, an :class:`attnzoo.Backbone`, or a module that returns maps, finest first, and has
            ``out_channels``. Of a name the four coarsest levels are used, of a module all maps.
        num_classes: classes of pixels, all of them: there is no background but what the labels call so.
        auxiliary: an FCN head on the map before the coarsest; in training the segmenter then returns a pair of logits.
        **kwargs: arguments of the decoder (``channels``, ``dropout``; ``fpn_channels`` of ``semantic_fpn``;
            ``num_convs`` and ``level`` of ``fcn``; ``attention`` = ``agent``, ``mala`` or ``flow``, ``depth``,
            ``num_heads``, ``mlp_ratio``, ``fusion_stride``, ``block_drop_path`` of ``linear``); all others are the
            backbone's (``pretrained``, ``checkpoint``, ``drop_path_rate``, ``out_indices``, ``in_chans``, …).

    Raises:
        ValueError: an unknown kind, model or attention, a model whose maps are no pyramid, ``num_classes`` below 1, or
            an argument of another kind's decoder.
        CheckpointError: the backbone's weights cannot be read or do not fit.
    """
    kind = _ALIASES.get(kind, kind)
    if kind not in _KINDS:
        raise ValueError(unknown("kind", kind, [*_KINDS, *_ALIASES]))
    if num_classes < 1:
        raise ValueError(f"num_classes={num_classes} is below 1")
    decoder = _KINDS[kind]
    own = _options(decoder)
    for other in _KINDS.values():
        if wrong := [key for key in kwargs if key in _options(other) - own]:
            has = ", ".join(sorted(own))
            raise ValueError(f"{wrong[0]} is an argument of {other.__name__}; kind {kind!r} has {has}")
    settings = {key: kwargs.pop(key) for key in list(kwargs) if key in own}
    maps = build_levels(backbone, kwargs)
    shapes = (maps.channels, maps.strides, num_classes)
    second = FCN(*shapes, num_convs=1, level=max(len(maps.channels) - 2, 0)) if auxiliary else None
    return Segmenter(maps.body, decoder(*shapes, **settings), max(maps.strides), second)
