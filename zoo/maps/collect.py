"""Attention maps of any model of the zoo, from one forward that is followed from outside."""

from collections.abc import Callable, Iterable

import torch
from torch import Tensor, nn

from .base import AttentionMap, Pixel, check_query
from .builders import BUILDERS, Scene
from .tap import Call, Tap


def attention_maps(
    model: nn.Module, image: Tensor, layers: Iterable[str] | None = None, query: Pixel | None = None
) -> dict[str, AttentionMap]:
    """The attention maps of every layer for one image, in the order in which the model computes them.

    Works for every model of the zoo, and for others whose attention is PyTorch's. The model is run once, in evaluation
    mode and without gradient; nothing in it is changed. Layers that convolve in attention's place give effective
    receptive fields. Queries and keys are kept by reference; a map is computed when one of its methods is called.

    Args:
        model: the model, on any device and of any dtype.
        image: a normalised image ``[in_chans, H, W]`` or ``[1, in_chans, H, W]`` of a size that the model takes.
        layers: names of the layers that are wanted; None is all.
        query: pixel (x, y) that the maps are asked about unless their methods get another; None is the centre.

    Returns:
        From the layer's name in the model to its map (see :class:`AttentionMap`). Where a layer has several
        attentions, their names are behind a colon, such as ``stages.0.blocks.0.attn:vertical``.

    Raises:
        ValueError: no such layer, no layer with a map, a query outside the image, or an image of another shape.
    """
    image = _one_image(image)
    parameter = next(model.parameters(), image)
    image = image.to(parameter.device, parameter.dtype)
    height, width = image.shape[-2:]
    query = ((width - 1) / 2, (height - 1) / 2) if query is None else check_query(query, (height, width))
    collector = _Collector(model, image, None if layers is None else set(layers), query)
    with torch.no_grad(), collector.following():
        model(image)
    if not collector.names:
        raise ValueError(f"{type(model).__name__} has no layer with an attention map")
    missing = [name for name in layers or () if name not in collector.maps]
    if missing:
        raise ValueError(f"no attention map of layer {missing[0]}; there are {', '.join(collector.names)}")
    return collector.maps


def _one_image(image: Tensor) -> Tensor:
    image = image.detach()
    if image.ndim == 3:
        image = image[None]
    if image.ndim != 4 or image.shape[0] != 1 or not image.is_floating_point():
        raise ValueError(
            f"image must be one normalised image [in_chans, H, W], got {image.dtype} of shape {tuple(image.shape)}"
        )
    return image


class _Collector(Tap):
    def __init__(self, model: nn.Module, image: Tensor, wanted: set[str] | None, query: Pixel) -> None:
        super().__init__(model)
        self.image, self.wanted, self.query = image, wanted, query
        self.maps: dict[str, AttentionMap] = {}
        self.names: list[str] = []

    def attend(self, call: Call, run: Callable[[], Tensor]) -> Tensor:
        self.names.append(call.layer)
        if self.wanted is None or call.layer in self.wanted:
            scene = Scene(self.model, self.image, self.query, call)
            self.maps[call.layer] = BUILDERS[call.op](scene, *map(_detached, call.arguments))
        return run()


def _detached(argument: object) -> object:
    """Tables that are parameters of the model give maps without gradient, too."""
    if isinstance(argument, tuple):
        return tuple(map(_detached, argument))
    return argument.detach() if isinstance(argument, Tensor) else argument
