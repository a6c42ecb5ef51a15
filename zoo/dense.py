"""A zoo model as the backbone of a detector or segmenter."""

import re
from collections.abc import Sequence
from typing import Any

import timm
from timm.layers import LayerNorm2d
from torch import Tensor, nn

from ..weights import convert_checkpoint, load_checkpoint
from ._blocks import rename_keys

_NORM_KEY = re.compile(r"^(?:extra_norms?\.|norm)(\d)\.(?:norm\.)?(weight|bias)$")
# OverLoCK's own, see ``OverLoCK.forward_dense``.
_OVERVIEW = [
    (r"^extra_norm\.4\.", "overview.norm."),
    (r"^h_proj\.0\.", "overview.proj."),
    (r"^h_proj\.1\.weight$", "overview.ls.gamma"),
    (r"^h_proj\.1\.bias$", "overview.ls.beta"),
]


class Backbone(nn.Module):
    """The maps of chosen stages, each through a norm of its own, as the published dense models have them.

    Args:
        name: an attnzoo or timm model with stages.
        out_indices: the stages whose maps come out.
        pretrained: load the model's published classification weights.
        checkpoint: a file with weights, of the classifier or of a published dense model (without its heads).
        out_norm: put a channel LayerNorm on every output.
        frozen_stages: stages up to this one (and the stem) do not train; -1 is none, 0 the stem and first stage.
        norm_eval: keep BatchNorm's statistics as they are in training.
        **kwargs: arguments of the model, such as ``drop_path_rate``, ``dilations`` or ``num_regions``.

    Raises:
        ValueError: ``out_indices`` or ``frozen_stages`` names a stage that the model does not have.
        CheckpointError: the weights cannot be read or do not fit.
    """

    def __init__(
        self,
        name: str,
        out_indices: Sequence[int] = (0, 1, 2, 3),
        pretrained: bool = False,
        checkpoint: str | None = None,
        out_norm: bool = False,
        frozen_stages: int = -1,
        norm_eval: bool = False,
        **kwargs: Any,
    ) -> None:
        super().__init__()
        self.name = name
        self.body = timm.create_model(name, pretrained=pretrained, num_classes=0, **kwargs)
        info = self.body.feature_info
        if (
            not out_indices
            or not all(0 <= i < len(info) for i in out_indices)
            or sorted(out_indices) != list(out_indices)
        ):
            raise ValueError(
                f"out_indices={tuple(out_indices)}: {name} has stages 0 to {len(info) - 1}, in rising order"
            )
        if not -1 <= frozen_stages < len(info):
            raise ValueError(f"frozen_stages={frozen_stages}: {name} has stages 0 to {len(info) - 1}; -1 freezes none")
        self.out_indices = list(self.body.prune_intermediate_layers(list(out_indices), prune_norm=True))
        self.out_channels = [info[i]["num_chs"] for i in self.out_indices]
        self.out_strides = [info[i]["reduction"] for i in self.out_indices]
        eps = getattr(self.body, "out_norm_eps", 1e-6)
        self.norms = nn.ModuleList(
            LayerNorm2d(channels, eps=eps) if out_norm else nn.Identity() for channels in self.out_channels
        )
        # OverLoCK's published dense models are more than norms on its maps.
        whole = out_norm and self.out_indices == [0, 1, 2, 3] and hasattr(self.body, "forward_dense")
        self.overview = self.body.overview_output() if whole else None
        self.frozen_stages = frozen_stages
        self.norm_eval = norm_eval
        if checkpoint is not None:
            load_checkpoint(self, checkpoint, allow_missing=("norms.", "overview."))
        self._freeze()

    def forward(self, x: Tensor) -> list[Tensor]:
        """[B, in_chans, H, W] → maps [B, C_i, H_i, W_i], finest first."""
        if self.overview is not None:
            return self.body.forward_dense(x, self.norms, self.overview)
        maps = self.body.forward_intermediates(x, self.out_indices, intermediates_only=True)
        return [norm(each) for norm, each in zip(self.norms, maps, strict=True)]

    def train(self, mode: bool = True) -> "Backbone":
        super().train(mode)
        self._freeze()
        if mode and self.norm_eval:
            for module in self.modules():
                if isinstance(module, nn.modules.batchnorm._BatchNorm):
                    module.eval()
        return self

    def _freeze(self) -> None:
        if self.frozen_stages < 0:
            return
        for module in (self.body.stem, *self.body.stages[: self.frozen_stages + 1]):
            module.eval().requires_grad_(False)

    def load_state_dict(self, state_dict: dict, strict: bool = True, assign: bool = False):
        """As ``nn.Module``'s; published dense or classification checkpoints are converted on the way."""
        own = self.state_dict()
        if any(key not in own for key in state_dict):
            state_dict = convert_checkpoint(state_dict, self)
        return super().load_state_dict(state_dict, strict=strict, assign=assign)


def checkpoint_filter_fn(state_dict: dict[str, Tensor], model: Backbone) -> dict[str, Tensor]:
    """A published backbone's names → ``body.*`` and ``norms.*``; the classifier's norm and head are left out."""
    own = set(model.state_dict())
    if any(key.startswith("body.") for key in state_dict):
        return state_dict
    converted, rest = {}, {}
    if model.overview is not None:
        state_dict = rename_keys(state_dict, _OVERVIEW)
    for key, value in state_dict.items():
        if key.startswith("overview."):
            converted[key] = value.flatten() if key.endswith("gamma") else value
        elif match := _NORM_KEY.match(key):
            stage = int(match[1])
            if stage in model.out_indices:
                converted[f"norms.{model.out_indices.index(stage)}.{match[2]}"] = value
        else:
            rest[key] = value
    body = {f"body.{key}": value for key, value in convert_checkpoint(rest, model.body).items()}
    left = len(model.body.stages)
    return {**converted, **{key: value for key, value in body.items() if key in own or not _is_cut(key, left)}}


def _is_cut(key: str, stages: int) -> bool:
    """Whether a classifier's parameter belongs to what a backbone of so many stages does without."""
    stage = re.match(r"^body\.stages\.(\d+)\.", key)
    return int(stage[1]) >= stages if stage else re.match(r"^body\.(norm|head|head_proj|aux_head)\.", key) is not None
