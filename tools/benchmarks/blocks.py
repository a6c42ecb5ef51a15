"""Layers as they are timed, alone or in blocks, and the same with their published form in the layer's place."""

import copy
from collections.abc import Callable

import torch
from timm.layers import Mlp
from torch import Tensor, nn

from ... import layers
from . import published_layers
from .layer_cases import LayerCase


class _Alone(nn.Module):
    """A layer that takes its input several times."""

    def __init__(self, attn: nn.Module, inputs: int) -> None:
        super().__init__()
        self.attn = attn
        self.inputs = inputs

    def forward(self, x: Tensor) -> Tensor:
        return _first(self.attn(*[x] * self.inputs))


class _Block(nn.Module):
    """Norm, layer, residual; norm, MLP, residual; channels last. What is counted in the goals for blocks."""

    def __init__(self, attn: nn.Module, dim: int, mlp_ratio: float) -> None:
        super().__init__()
        self.norm1 = nn.LayerNorm(dim)
        self.attn = attn
        self.norm2 = nn.LayerNorm(dim)
        self.mlp = Mlp(dim, int(dim * mlp_ratio))

    def forward(self, x: Tensor) -> Tensor:
        x = x + _first(self.attn(self.norm1(x)))
        return x + self.mlp(self.norm2(x))


class _Published(nn.Module):
    """A function in a layer's place."""

    def __init__(self, function: Callable[..., Tensor | tuple[Tensor, ...]]) -> None:
        super().__init__()
        self.function = function

    def forward(self, *inputs: Tensor) -> Tensor | tuple[Tensor, ...]:
        return self.function(*inputs)


def build(case: LayerCase, in_block: bool) -> nn.Module:
    """The case's layer or block with random weights, [B, *shape] → [B, *shape]; in evaluation."""
    torch.manual_seed(0)
    if in_block and case.block is not None:
        return getattr(layers, case.block[0])(**case.arguments).eval()
    layer = getattr(layers, case.name)(**case.arguments, **case.alone)
    if in_block:
        return _Block(layer, case.shape[-1], case.mlp_ratio).eval()
    return _Alone(layer, case.inputs).eval()


def with_published(case: LayerCase, module: nn.Module) -> nn.Module:
    """A copy of what :func:`build` made, which computes its layer as the published code does."""
    twin = copy.deepcopy(module)
    path = case.block[1] if case.block is not None and not isinstance(module, _Alone) else "attn"
    form = getattr(published_layers, case.published)(twin.get_submodule(path))
    twin.set_submodule(path, _Published(form))
    return twin


def _first(result: Tensor | tuple[Tensor, ...]) -> Tensor:
    return result[0] if isinstance(result, tuple) else result
