"""Effective receptive fields: which pixels a position of a convolutional layer depends on.

Luo et al., "Understanding the Effective Receptive Field in Deep Convolutional Neural Networks", arXiv:1701.04128.
"""

import threading
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from .base import AttentionMap, exact
from .tap import evaluating


class _Reached(Exception):
    def __init__(self, output: Tensor) -> None:
        super().__init__()
        self.output = output


@dataclass(kw_only=True, eq=False)
class ReceptiveFieldMap(AttentionMap):
    """Absolute gradient of a position's channel sum by the image, summed over colours; adds up to one.

    Every map is a pass through the model up to the layer and back; the keys are the image's pixels.

    Attributes:
        model: the model, in evaluation mode while a map is computed.
        module: the layer, whose output is ``[1, C, H, W]``.
        image: ``[1, in_chans, H, W]``.
    """

    kind: ClassVar[str] = "receptive_field"
    model: nn.Module
    module: nn.Module
    image: Tensor

    def row(self, row: int, column: int) -> Tensor:
        image = self.image.detach().clone().requires_grad_(True)
        with torch.enable_grad():
            feature = self._output(image)[0, :, row, column].sum()
            (gradient,) = torch.autograd.grad(feature, image)
        field = exact(gradient[0]).abs().sum(0).flatten()[None]
        return field / field.sum().clamp(min=torch.finfo(field.dtype).tiny)

    def _output(self, image: Tensor) -> Tensor:
        thread = threading.get_ident()

        def reached(module: nn.Module, inputs: Any, output: Tensor) -> None:
            if threading.get_ident() == thread:
                raise _Reached(output)

        handle = self.module.register_forward_hook(reached)
        try:
            with evaluating(self.model):
                self.model(image)
        except _Reached as found:
            return found.output
        finally:
            handle.remove()
        raise RuntimeError(f"{self.layer} did not run")
