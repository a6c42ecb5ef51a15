"""A zoo model, or any other of timm's that has stages, as the backbone of a detector or segmenter."""

import difflib
import re
from collections.abc import Iterator, Sequence
from typing import Any

import timm
from timm.layers import LayerNorm2d
from torch import Tensor, nn

from ..weights import convert_checkpoint, load_checkpoint
from ._blocks import rename_keys
from ._pyramid import Backbone as ImageBackbone

_BODY = "body."
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
        out_indices: the stages whose maps come out; timm's ResNets and MobileNets count their stem, of stride 2, as 0.
        pretrained: load the model's published classification weights.
        checkpoint: a file with weights, of the classifier or of a published dense model (without its heads).
        out_norm: put a channel LayerNorm on every output.
        frozen_stages: stages up to this one (and the stem) do not train; -1 is none, 0 the stem and first stage.
        norm_eval: keep BatchNorm's statistics as they are in training.
        **kwargs: arguments of the model, such as ``drop_path_rate``, ``dilations`` or ``num_regions``. timm's models
            of one image size take any size, unless ``strict_img_size`` or ``dynamic_img_size`` is among them.

    Raises:
        ValueError: there is no model ``name``, or it has no stages, or none that ``out_indices`` or ``frozen_stages``
            names.
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
        self.body = _create(name, pretrained=pretrained, num_classes=0, **kwargs)
        info = _stages(self.body, name, out_indices, frozen_stages)
        whole = set(self.body.state_dict())
        self.out_indices = list(self.body.prune_intermediate_layers(list(out_indices), prune_norm=True))
        # timm 1.0.26 leaves ConvNeXt's last norm there, which no map goes through: a parameter without a gradient.
        if any(True for _ in getattr(self.body, "head", nn.Identity()).parameters()):
            self.body.head = nn.Identity()
        self._pruned = whole - set(self.body.state_dict())
        self.out_channels = [info[i]["num_chs"] for i in self.out_indices]
        self.out_strides = [info[i]["reduction"] for i in self.out_indices]
        eps = getattr(self.body, "out_norm_eps", 1e-6)
        self.norms = nn.ModuleList(
            LayerNorm2d(channels, eps=eps) if out_norm else nn.Identity() for channels in self.out_channels
        )
        # OverLoCK's published dense models are more than norms on its maps.
        overview = out_norm and self.out_indices == [0, 1, 2, 3] and hasattr(self.body, "forward_dense")
        self.overview = self.body.overview_output() if overview else None
        self.out_norm = out_norm
        self.frozen_stages = frozen_stages
        self.norm_eval = norm_eval
        if checkpoint is not None:
            load_checkpoint(self, checkpoint, allow_missing=("norms.*", "overview.*"))
        self._freeze()

    def forward(self, x: Tensor) -> list[Tensor]:
        """[B, in_chans, H, W] → maps [B, C_i, H_i, W_i], finest first."""
        if self.overview is not None:
            return self.body.forward_dense(x, self.norms, self.overview)
        maps = self.body.forward_intermediates(x, indices=self.out_indices, intermediates_only=True)
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
        for part in _until(self.body, self.body.feature_info[self.frozen_stages]["module"].split(".")):
            part.requires_grad_(False)
            if isinstance(part, nn.Module):
                part.eval()

    def _load_from_state_dict(self, state_dict: dict[str, Any], prefix: str, *args: Any) -> None:
        """As ``nn.Module``'s, which ``load_state_dict`` calls, alone or inside a detector; dense or classification
        checkpoints under published names, or for another image size, are converted on the way."""
        given = {key.removeprefix(prefix): value for key, value in state_dict.items() if key.startswith(prefix)}
        own = {key: getattr(value, "shape", None) for key, value in self.state_dict().items()}
        if any(key not in own or getattr(value, "shape", None) != own[key] for key, value in given.items()):
            converted = convert_checkpoint(given, self)
            for key in given:
                del state_dict[prefix + key]
            state_dict.update({prefix + key: value for key, value in converted.items()})
        super()._load_from_state_dict(state_dict, prefix, *args)


def checkpoint_filter_fn(state_dict: dict[str, Tensor], model: Backbone) -> dict[str, Tensor]:
    """A published backbone's names → ``body.*`` and ``norms.*``; the classifier's norm and head are left out."""
    own = set(model.state_dict())
    if body := {key.removeprefix(_BODY): value for key, value in state_dict.items() if key.startswith(_BODY)}:
        # Of timm's own models the names alone are known.
        if isinstance(model.body, ImageBackbone):
            body = convert_checkpoint(body, model.body)
        rest = {key: value for key, value in state_dict.items() if not key.startswith(_BODY)}
        return {**{_BODY + key: value for key, value in body.items()}, **rest}
    converted, rest = {}, {}
    if model.overview is not None:
        state_dict = rename_keys(state_dict, _OVERVIEW)
    for key, value in state_dict.items():
        if key.startswith("overview."):
            converted[key] = value.flatten() if key.endswith("gamma") else value
        elif model.out_norm and (match := _NORM_KEY.match(key)):
            stage = int(match[1])
            if stage in model.out_indices:
                converted[f"norms.{model.out_indices.index(stage)}.{match[2]}"] = value
        else:
            rest[key] = value
    body = {_BODY + key: value for key, value in convert_checkpoint(rest, model.body).items()}
    return {**converted, **{key: value for key, value in body.items() if key in own or not _is_cut(key, model)}}


def _is_cut(key: str, model: Backbone) -> bool:
    """Whether this is a parameter of the classifier that the backbone does without."""
    name = key.removeprefix(_BODY)
    heads = model.body.pretrained_cfg.get("classifier") or ()
    heads = {heads} if isinstance(heads, str) else set(heads)
    # A zoo checkpoint's projections and auxiliary heads are not timm's "classifier".
    heads |= {"norm", "head", "head_proj", "aux_head"}
    return name in model._pruned or any(name.startswith(f"{head}.") for head in heads)


def _create(name: str, **kwargs: Any) -> nn.Module:
    """``timm.create_model``, of any image size where the model can have it."""
    if ":" not in name and "/" not in name and not timm.is_model(name):
        near = difflib.get_close_matches(name, timm.list_models(), cutoff=0.5)
        raise ValueError(f"there is no model {name!r}" + (f"; did you mean {', '.join(near)}?" if near else ""))
    cfg = timm.get_pretrained_cfg(name)
    if cfg is not None and cfg.fixed_input_size:
        for option, value in (("strict_img_size", False), ("dynamic_img_size", True)):
            if option in kwargs:
                break
            try:
                return timm.create_model(name, **{option: value}, **kwargs)
            except TypeError as error:
                if option not in str(error):
                    raise
    return timm.create_model(name, **kwargs)


def _stages(body: nn.Module, name: str, out_indices: Sequence[int], frozen_stages: int) -> list[dict[str, Any]]:
    """timm's ``feature_info`` of a model that has the stages asked for."""
    info = getattr(body, "feature_info", None)
    if not info or not hasattr(body, "forward_intermediates"):
        raise ValueError(f"{name} has no stages to take maps from; a hierarchical model such as pvt_v2_b0 has")
    last = len(info) - 1
    if not out_indices or list(out_indices) != [i for i in sorted(out_indices) if 0 <= i <= last]:
        raise ValueError(f"out_indices={tuple(out_indices)}: {name} has stages 0 to {last}, in rising order")
    if not -1 <= frozen_stages <= last:
        raise ValueError(f"frozen_stages={frozen_stages}: {name} has stages 0 to {last}; -1 freezes none")
    if frozen_stages >= 0 and info[frozen_stages]["module"] not in dict(body.named_modules()):
        raise ValueError(f"frozen_stages={frozen_stages}: {name} has no module of this stage; only -1 works")
    return info


def _until(parent: nn.Module, path: list[str]) -> Iterator[nn.Module | nn.Parameter]:
    """What comes before and at the submodule ``path``, in the order in which models define and run their parts."""
    yield from parent.parameters(recurse=False)
    for name, child in parent.named_children():
        if name != path[0]:
            yield child
        elif len(path) > 1:
            yield from _until(child, path[1:])
            return
        else:
            yield child
            return
