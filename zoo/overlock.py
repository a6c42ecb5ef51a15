"""OverLoCK: a convolutional network that looks over the image first and then closely, guided by what it saw.

Paper: "OverLoCK: An Overview-first-Look-Closely-next ConvNet with Context-Mixing Dynamic Kernels" (Lou & Yu, CVPR 2025,
arXiv 2502.20087). Published code and weights: LMMMEng/OverLoCK (Apache-2.0 licence).

A base-net makes three maps. From the third an overview-net makes a small context map and a focus-net the last two maps,
whose blocks carry the context in their last channels and draw their kernels from it. The maps of stages 3 and 4 are the
focus-net's, context included, as in the published dense models.
"""

from collections.abc import Iterator, Sequence
from typing import Any

import torch
from timm.layers import calculate_drop_path_rates, trunc_normal_
from torch import Tensor, nn

from ..layers import DilatedReparamConv
from ..layers.contmix import ConvNorm
from ..layers.dilated_reparam import BRANCHES
from ._blocks import init_weights
from ._builder import build_model, cfg, pretrained_tag, published_cfgs, register_model
from ._overlock_checkpoint import checkpoint_filter_fn
from ._overlock_stages import (
    AuxHead,
    ConvStem,
    FocusBlock,
    FocusDownsample,
    FocusStage,
    HeadProjection,
    OverviewOutput,
    OverviewStage,
    RepConvBlock,
)
from ._pyramid import Pyramid, Stage

__all__ = ["OverLoCK", "checkpoint_filter_fn"]


class OverLoCK(Pyramid):
    """OverLoCK.

    The published training supervises the overview through a classifier of its own, which evaluation does not use. It is
    part of the published files and so of the model. Unless ``aux_loss`` is set its parameters get zero gradients, and a
    training step returns plain logits.

    Args:
        in_chans: channels of the image.
        num_classes: outputs of the classifier, 0 for none.
        global_pool: pooling of the last map: avg, max, avgmax, or empty for none.
        embed_dims: width of each stage, without context; the context has a quarter of the last.
        depths: blocks of the base-net's three stages and of the overview-net.
        focus_depths: blocks of the focus-net's two stages.
        kernel_sizes: large kernel of each stage; 7, 13, 15 and 17 are known.
        smk_size: the small window of dynamic convolutions.
        num_heads: heads of the focus-net's stages.
        mlp_ratio: hidden width of the MLP over the width.
        focus_mlp_ratio: the same in the focus-net, over the width without context.
        init_values: initial scale of each stage's shortcuts, None for plain ones.
        head_dim: width of the projection before the pooling.
        deploy: build large convolutions merged, as after :meth:`reparameterize`.
        aux_loss: in training return ``{"main": logits, "aux": logits of the overview}``, as the published model does.
        drop_rate: dropout before the classifier.
        proj_drop_rate: dropout after the MLPs.
        drop_path_rate: stochastic depth of the last block, growing linearly.

    Raises:
        ValueError: the arguments do not fit one another.
    """

    no_decay_leaves = ("rel_pos_bias", "rel_pos_bias_small")

    def __init__(
        self,
        in_chans: int = 3,
        num_classes: int = 1000,
        global_pool: str = "avg",
        embed_dims: Sequence[int] = (64, 128, 256, 512),
        depths: Sequence[int] = (4, 4, 6, 2),
        focus_depths: Sequence[int] = (12, 2),
        kernel_sizes: Sequence[int] = (17, 15, 13, 7),
        smk_size: int = 5,
        num_heads: Sequence[int] = (4, 8),
        mlp_ratio: float = 4.0,
        focus_mlp_ratio: float = 3.0,
        init_values: Sequence[float | None] = (None, None, 1.0, 1.0),
        head_dim: int = 1024,
        deploy: bool = False,
        aux_loss: bool = False,
        drop_rate: float = 0.0,
        proj_drop_rate: float = 0.0,
        drop_path_rate: float = 0.0,
        device: torch.device | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__()
        dd = {"device": device, "dtype": dtype}
        for name, value, length in (
            ("embed_dims", embed_dims, 4),
            ("depths", depths, 4),
            ("kernel_sizes", kernel_sizes, 4),
            ("init_values", init_values, 4),
            ("focus_depths", focus_depths, 2),
            ("num_heads", num_heads, 2),
        ):
            if len(value) != length:
                raise ValueError(f"{name}={tuple(value)} has {len(value)} entries; OverLoCK has {length}")
        if not BRANCHES.keys() >= set(kernel_sizes):
            known = ", ".join(map(str, sorted(BRANCHES)))
            raise ValueError(f"kernel_sizes={tuple(kernel_sizes)} is not of kernels with published branches: {known}")
        self.in_chans = in_chans
        self.aux_loss = aux_loss
        self.overview_dim, ctx_dim = embed_dims[3], embed_dims[3] // 4
        drop_paths = calculate_drop_path_rates(drop_path_rate, [*depths, *focus_depths], stagewise=True)

        def blocks(i: int) -> list[RepConvBlock]:
            settings = (kernel_sizes[i], mlp_ratio, init_values[i], proj_drop_rate)
            return [RepConvBlock(embed_dims[i], *settings, drop_path, deploy, **dd) for drop_path in drop_paths[i]]

        def downsample(i: int) -> ConvNorm:
            return ConvNorm(embed_dims[i - 1], embed_dims[i], 3, 2, **dd)

        def focus(i: int, down: nn.Module | None) -> FocusStage:
            settings = dict(smk_size=smk_size, num_heads=num_heads[i], mlp_ratio=focus_mlp_ratio, deploy=deploy)
            settings.update(init_values=init_values[2 + i], proj_drop=proj_drop_rate, ctx_dim=ctx_dim, **dd)
            dim, kernel_size = embed_dims[2 + i], kernel_sizes[2 + i]
            return FocusStage(
                [
                    FocusBlock(dim, first=i == j == 0, kernel_size=kernel_size, drop_path=drop_path, **settings)
                    for j, drop_path in enumerate(drop_paths[4 + i])
                ],
                down,
            )

        self.stem = ConvStem(in_chans, embed_dims[0], **dd)
        self.stages = nn.Sequential(
            Stage(blocks(0)),
            Stage(blocks(1), downsample(1)),
            OverviewStage(
                blocks(2),
                downsample(2),
                Stage(blocks(3), downsample(3)),
                nn.Conv2d(self.overview_dim, ctx_dim, 1, **dd),
                focus(0, None),
            ),
            focus(1, FocusDownsample(embed_dims[2], embed_dims[3], ctx_dim, **dd)),
        )
        self.norm = nn.Identity()
        self.head_proj = HeadProjection(embed_dims[3] + ctx_dim, head_dim, **dd)
        self.apply(_init_weights)
        widths = (*embed_dims[:2], embed_dims[2] + ctx_dim, embed_dims[3] + ctx_dim)
        self._finish_pyramid(widths, num_classes, global_pool, drop_rate)

    def _set_classifier(self, num_classes: int) -> None:
        super()._set_classifier(num_classes)
        self.aux_head = None
        if num_classes > 0 and len(self.stages) == 4:
            like = next(self.parameters())
            self.aux_head = AuxHead(self.overview_dim, num_classes, device=like.device, dtype=like.dtype)
            self.aux_head.train(self.training).apply(_init_weights)

    @torch.jit.ignore
    def set_grad_checkpointing(self, enable: bool = True) -> None:
        for module in self.modules():
            if isinstance(module, Stage):
                module.grad_checkpointing = enable

    @torch.jit.ignore
    def group_matcher(self, coarse: bool = False) -> dict:
        if coarse:
            return dict(
                stem=r"^stem",
                blocks=r"^stages\.([012])\.(?:downsample|blocks)",
                overview=r"^stages\.2\.(?:overview|ctx_proj)",
                focus=r"^stages\.([23])",
            )
        return dict(
            stem=r"^stem",
            blocks=[(r"^stages\.([012])\.downsample", (0,)), (r"^stages\.([012])\.blocks\.(\d+)", None)],
            overview=[
                (r"^stages\.2\.overview\.downsample", (0,)),
                (r"^stages\.2\.overview\.blocks\.(\d+)", None),
                (r"^stages\.2\.ctx_proj", (99999,)),
            ],
            focus=[
                (r"^stages\.(2)\.focus\.blocks\.(\d+)", None),
                (r"^stages\.(3)\.downsample", (0,)),
                (r"^stages\.(3)\.blocks\.(\d+)", None),
            ],
        )

    def reparameterize(self) -> "OverLoCK":
        """Merge the branches of every large convolution, in place, for inference; the outputs stay the same."""
        for module in self.modules():
            if isinstance(module, DilatedReparamConv):
                module.reparameterize()
        return self

    def _run(self, x: Tensor, count: int) -> Iterator[tuple[Tensor, Tensor | None]]:
        """The output of each of the first ``count`` stages, and the overview as soon as there is one."""
        x, prior, overview = self._apply_stem(x), None, None
        for stage in self.stages[:count]:
            if isinstance(stage, OverviewStage):
                x, prior, overview = stage(x)
            else:
                x = stage(x) if prior is None else stage(x, prior)
            yield x, overview

    def _outputs(self, x: Tensor, count: int) -> Iterator[Tensor]:
        for each, _ in self._run(x, count):
            yield each

    def forward_features(self, x: Tensor) -> Tensor:
        """[B, in_chans, H, W] → the last stage's map with its context, unpooled."""
        for output in self._outputs(x, len(self.stages)):
            last = output
        return self.norm(last)

    def forward_overview(self, x: Tensor) -> tuple[list[Tensor], Tensor]:
        """Image [B, in_chans, H, W] → the stages' maps, and the overview-net's map [B, C4, H/32, W/32]."""
        maps, overviews = zip(*self._run(x, len(self.stages)), strict=True)
        return list(maps), overviews[-1]

    def overview_output(self) -> OverviewOutput:
        """A new module that makes of the overview what :meth:`forward_dense` adds to the last map."""
        like = next(self.parameters())
        return OverviewOutput(self.overview_dim, self.num_features, device=like.device, dtype=like.dtype)

    def forward_dense(self, x: Tensor, norms: Sequence[nn.Module], output: nn.Module) -> list[Tensor]:
        """The four maps of the published dense models, each through one of ``norms``.

        As in their code the third stage reads the second map normed, the others read theirs as it is.
        """
        x = self.stages[0](self._apply_stem(x))
        second = norms[1](self.stages[1](x))
        third, prior, overview = self.stages[2](second)
        last = self.stages[3](third, prior)
        return [norms[0](x), second, norms[2](third), norms[3](last) + output(overview)]

    def forward(self, x: Tensor) -> Tensor | dict[str, Tensor]:
        """[B, in_chans, H, W] → logits [B, num_classes]; with ``aux_loss``, in training, those of both classifiers."""
        if not self.training or self.aux_head is None:
            return super().forward(x)
        if self.aux_loss:
            maps, overview = self.forward_overview(x)
            return {"main": self.forward_head(self.norm(maps[-1])), "aux": self.aux_head(overview)}
        # Zero gradients rather than none: distributed training waits for every parameter's.
        return super().forward(x) + self.aux_head.idle()


def _init_weights(module: nn.Module) -> None:
    init_weights(module)
    if isinstance(module, nn.Conv2d):
        trunc_normal_(module.weight, std=0.02)
        if module.bias is not None:
            nn.init.zeros_(module.bias)


def _create(variant: str, pretrained: bool = False, **kwargs: Any) -> OverLoCK:
    if (pretrained_tag(variant, kwargs) or "").endswith("_reparam"):
        kwargs.setdefault("deploy", True)
    return build_model(OverLoCK, variant, pretrained, **kwargs)


def _cfg(**kwargs: Any) -> dict[str, Any]:
    return cfg(first_conv="stem.conv1", classifier=("head", "aux_head.fc"), paper_ids="arXiv:2502.20087", **kwargs)


_CROPS = {"overlock_xt": 0.925, "overlock_tiny": 0.95, "overlock_small": 0.95, "overlock_base": 0.975}
default_cfgs = published_cfgs(
    {f"{name}.{tag}": _cfg(crop_pct=crop_pct) for name, crop_pct in _CROPS.items() for tag in ("in1k", "in1k_reparam")}
)


@register_model
def overlock_xt(pretrained: bool = False, **kwargs: Any) -> OverLoCK:
    """OverLoCK-XT: 17.3 M parameters, 16.8 M merged."""
    args = dict(embed_dims=(56, 112, 256, 336), depths=(2, 2, 3, 2), focus_depths=(6, 2), num_heads=(4, 6))
    return _create("overlock_xt", pretrained, **dict(args, **kwargs))


@register_model
def overlock_tiny(pretrained: bool = False, **kwargs: Any) -> OverLoCK:
    """OverLoCK-T: 35.0 M parameters, 34.0 M merged."""
    return _create("overlock_tiny", pretrained, **kwargs)


@register_model
def overlock_small(pretrained: bool = False, **kwargs: Any) -> OverLoCK:
    """OverLoCK-S: 58.3 M parameters, 56.7 M merged."""
    args = dict(embed_dims=(64, 128, 320, 512), depths=(6, 6, 8, 3), focus_depths=(16, 3), num_heads=(8, 16))
    return _create("overlock_small", pretrained, **dict(args, **kwargs))


@register_model
def overlock_base(pretrained: bool = False, **kwargs: Any) -> OverLoCK:
    """OverLoCK-B: 98.0 M parameters, 95.5 M merged."""
    args = dict(embed_dims=(80, 160, 384, 576), depths=(8, 8, 10, 4), focus_depths=(20, 4), num_heads=(6, 9))
    return _create("overlock_base", pretrained, **dict(args, **kwargs))
