"""What OverLoCK's base-net, overview-net and focus-net are made of (arXiv 2502.20087, figure 4)."""

from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from timm.layers import DropPath, LayerNorm2d, SqueezeExcite
from timm.models import checkpoint
from torch import Tensor, nn

from ..layers import ContMixBlock, DilatedReparamConv
from ..layers.contmix import ConvMlp, ConvNorm, ResidualDepthwiseConv, ScaleShift2d
from ._pyramid import Stage


class ConvStem(nn.Sequential):
    """Four 3×3 convolutions, the first and third of stride 2, with BatchNorm; GELU after all but the last."""

    def __init__(self, in_chans: int, embed_dim: int, **dd: Any) -> None:
        super().__init__()
        widths = (in_chans, embed_dim // 2, embed_dim // 2, embed_dim, embed_dim)
        for i, stride in enumerate((2, 1, 2, 1), 1):
            self.add_module(f"conv{i}", nn.Conv2d(widths[i - 1], widths[i], 3, stride, 1, bias=False, **dd))
            self.add_module(f"norm{i}", nn.BatchNorm2d(widths[i], **dd))
            if i < 4:
                self.add_module(f"act{i}", nn.GELU())


class RepConvBlock(nn.Module):
    """Block of the base-net and overview-net: ``ls(x) + f(x)``, f a large convolution and an MLP, on [B, C, H, W].

    The layer scale is on the shortcut, as published.
    """

    def __init__(
        self,
        dim: int,
        kernel_size: int,
        mlp_ratio: float,
        init_values: float | None,
        proj_drop: float,
        drop_path: float,
        deploy: bool,
        **dd: Any,
    ) -> None:
        super().__init__()
        self.dwconv = ResidualDepthwiseConv(dim, **dd)
        self.norm = LayerNorm2d(dim, **dd)
        self.conv = DilatedReparamConv(dim, kernel_size, deploy=deploy, **dd)
        self.conv_norm = nn.BatchNorm2d(dim, **dd)
        self.se = SqueezeExcite(dim, rd_channels=max(dim // 8, 16), act_layer=nn.GELU, **dd)
        self.mlp = ConvMlp(dim, int(dim * mlp_ratio), dim, proj_drop, **dd)
        self.drop_path = DropPath(drop_path) if drop_path else nn.Identity()
        self.ls = nn.Identity() if init_values is None else ScaleShift2d(dim, init_values, **dd)

    def forward(self, x: Tensor) -> Tensor:
        x = self.dwconv(x)
        y = self.se(self.conv_norm(self.conv(self.norm(x))))
        return self.ls(x) + self.drop_path(self.mlp(y))


class FocusBlock(ContMixBlock):
    """A block whose context is first mixed with the overview's, each by a factor and offset for every channel."""

    def __init__(self, dim: int, *, ctx_dim: int, first: bool, **kwargs: Any) -> None:
        super().__init__(dim, ctx_dim=ctx_dim, **kwargs)
        dd = {"device": kwargs["device"], "dtype": kwargs["dtype"]}
        self.context_scale = None if first else ScaleShift2d(ctx_dim, **dd)
        self.prior_scale = None if first else ScaleShift2d(ctx_dim, **dd)

    def forward(self, x: Tensor, prior: Tensor) -> Tensor:
        """Map and context [B, dim + ctx_dim, H, W], overview [B, ctx_dim, H, W] → the first one's shape."""
        if self.context_scale is not None:
            context = self.context_scale(x[:, self.dim :]) + self.prior_scale(prior)
            x = torch.cat([x[:, : self.dim], context], dim=1)
        return super().forward(x)


class FocusStage(Stage):
    """Blocks of the focus-net, which read the overview beside the map."""

    def forward(self, x: Tensor, prior: Tensor) -> Tensor:
        x = self.downsample(x)
        for block in self.blocks:
            if self.grad_checkpointing and not torch.jit.is_scripting():
                x = checkpoint(block, x, prior)
            else:
                x = block(x, prior)
        return x


class FocusDownsample(nn.Module):
    """Map and context, each by a 3×3 convolution of stride 2 and BatchNorm."""

    def __init__(self, dim: int, dim_out: int, ctx_dim: int, **dd: Any) -> None:
        super().__init__()
        self.dim = dim
        self.map = ConvNorm(dim, dim_out, 3, 2, **dd)
        self.context = ConvNorm(ctx_dim, ctx_dim, 3, 2, **dd)

    def forward(self, x: Tensor) -> Tensor:
        return torch.cat([self.map(x[:, : self.dim]), self.context(x[:, self.dim :])], dim=1)


class OverviewStage(Stage):
    """The base-net's third stage, the overview-net behind it, and the focus-net's blocks on the same map."""

    def __init__(
        self,
        blocks: Sequence[nn.Module],
        downsample: nn.Module,
        overview: Stage,
        ctx_proj: nn.Module,
        focus: FocusStage,
    ) -> None:
        super().__init__(blocks, downsample)
        self.overview = overview
        self.ctx_proj = ctx_proj
        self.focus = focus

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Map → map with context at the same stride, context for the next stage, and the whole overview."""
        x = super().forward(x)
        overview = self.overview(x)
        prior = self.ctx_proj(overview)
        enlarged = F.interpolate(prior, size=x.shape[2:], mode="bilinear")
        return self.focus(torch.cat([x, enlarged], dim=1), enlarged), prior, overview


class HeadProjection(nn.Sequential):
    """1×1 convolution, BatchNorm and SiLU before the pooling."""

    def __init__(self, dim: int, out_features: int, **dd: Any) -> None:
        super().__init__()
        self.out_features = out_features
        self.conv = nn.Conv2d(dim, out_features, 1, bias=False, **dd)
        self.norm = nn.BatchNorm2d(out_features, **dd)
        self.act = nn.SiLU()


class AuxHead(nn.Module):
    """Classifier of the overview: BatchNorm, mean over the map, linear layer."""

    def __init__(self, dim: int, num_classes: int, **dd: Any) -> None:
        super().__init__()
        self.norm = nn.BatchNorm2d(dim, **dd)
        self.fc = nn.Linear(dim, num_classes, **dd)

    def forward(self, x: Tensor) -> Tensor:
        return self.fc(self.norm(x).mean((2, 3)))

    def idle(self) -> Tensor:
        """Zero, as a function of every parameter; by name, so that torch.fx sees them."""
        return 0 * (self.norm.weight.sum() + self.norm.bias.sum() + self.fc.weight.sum() + self.fc.bias.sum())


class OverviewOutput(nn.Module):
    """What the published dense models add to their last map: the overview, normed, projected and scaled."""

    def __init__(self, dim: int, dim_out: int, **dd: Any) -> None:
        super().__init__()
        self.norm = LayerNorm2d(dim, **dd)
        self.proj = nn.Conv2d(dim, dim_out, 1, **dd)
        self.ls = ScaleShift2d(dim_out, 1e-5, **dd)

    def forward(self, x: Tensor) -> Tensor:
        return self.ls(self.proj(self.norm(x)))
