"""How the zoo's models reach timm: registration, pretrained configurations and construction."""

import sys
import warnings
from collections.abc import Callable, Mapping
from typing import Any

import timm
from timm.data import IMAGENET_DEFAULT_MEAN, IMAGENET_DEFAULT_STD
from timm.models import PretrainedCfg, build_model_with_cfg, generate_default_cfgs
from timm.models import register_model as timm_register_model
from timm.models._builder import resolve_pretrained_cfg
from torch import Tensor, nn

from ..weights import (
    CheckpointError,
    convert_checkpoint,
    pretrained_file,
    pretrained_state_dict,
    read_checkpoint,
    unwrap,
)
from ..weights.manifest import entries
from ..weights.values import check_finite
from ._arguments import check_arguments

_PACKAGE = __name__.rsplit(".", 1)[0]
_ALIASES: dict[str, str] = {}


def register_model(entrypoint: Callable[..., nn.Module]) -> Callable[..., nn.Module]:
    """timm's decorator, except that a name which timm already has is kept and ours becomes ``attnzoo_NAME``."""
    name = entrypoint.__name__
    if timm.is_model(name) and timm.model_entrypoint(name).__module__ != entrypoint.__module__:
        alias = f"attnzoo_{name}"
        warnings.warn(f"timm has a model named {name}; attnzoo's is registered as {alias}", stacklevel=2)
        default_cfgs = sys.modules[entrypoint.__module__].default_cfgs
        default_cfgs[alias] = default_cfgs[name]
        entrypoint.__name__ = _ALIASES[name] = alias
    return timm_register_model(entrypoint)


def cfg(**kwargs: Any) -> dict[str, Any]:
    """A pretrained configuration: ImageNet at 224 pixels unless told otherwise."""
    return {
        "num_classes": 1000,
        "input_size": (3, 224, 224),
        "pool_size": (7, 7),
        "crop_pct": 0.9,
        "interpolation": "bicubic",
        "mean": IMAGENET_DEFAULT_MEAN,
        "std": IMAGENET_DEFAULT_STD,
        "classifier": "head",
        **kwargs,
    }


def published_cfgs(cfgs: dict[str, dict[str, Any]]) -> dict[str, Any]:
    """timm's ``default_cfgs`` table; addresses and licences come from the weights manifest, by tagged name."""
    published = {entry.model: entry for entry in entries() if entry.model}
    rows = {}
    for name, row in cfgs.items():
        entry = published.get(name)
        source = {}
        if (bundled := pretrained_file(name)) is not None:
            source = {"file": str(bundled)}
        elif entry is not None and entry.url:
            source = {"url": entry.url, "license": entry.license}
        rows[name] = {**source, **row}
    return generate_default_cfgs(rows)


def build_model(model_cls: type[nn.Module], variant: str, pretrained: bool = False, **kwargs: Any) -> nn.Module:
    """timm's ``build_model_with_cfg`` with attnzoo's way of getting weights: verified, never unpickled.

    Raises:
        CheckpointError: ``pretrained`` and the file cannot be had or is not what it should be.
        TypeError: an argument of the wrong form.
        ValueError: an argument out of its range.
    """
    check_arguments(model_cls, kwargs)
    variant = _ALIASES.get(variant, variant)
    feature_cfg = dict(out_indices=kwargs.pop("out_indices", (0, 1, 2, 3)), feature_cls="getter")
    if pretrained:
        _resolve_weights(variant, kwargs)
    model = build_model_with_cfg(
        model_cls, variant, pretrained, feature_cfg=feature_cfg, pretrained_filter_fn=convert_checkpoint, **kwargs
    )
    model.pretrained_cfg.pop("state_dict", None)
    return model


def pretrained_tag(variant: str, kwargs: Mapping[str, Any]) -> str | None:
    """The tag of the pretrained configuration that an entrypoint's arguments ask for, in any of timm's ways."""
    return _resolved(variant, kwargs).tag


def _resolved(variant: str, kwargs: Mapping[str, Any]) -> PretrainedCfg:
    overlay = dict(kwargs.get("pretrained_cfg_overlay") or {})
    return resolve_pretrained_cfg(_ALIASES.get(variant, variant), kwargs.get("pretrained_cfg"), overlay)


def _resolve_weights(variant: str, kwargs: dict[str, Any]) -> None:
    """Put the tensors that timm would fetch itself into the configuration, so that it fetches nothing."""
    resolved, overlay = _resolved(variant, kwargs), dict(kwargs.get("pretrained_cfg_overlay") or {})
    if resolved.state_dict or resolved.source or resolved.hf_hub_id:
        return
    if resolved.file:
        overlay["state_dict"] = _checked(resolved.file)
    elif resolved.tag:
        overlay["state_dict"] = pretrained_state_dict(f"{variant}.{resolved.tag}", kwargs.get("cache_dir"))
    kwargs["pretrained_cfg_overlay"] = overlay


def _checked(file: str) -> dict[str, Tensor]:
    try:
        state_dict, _ = unwrap(read_checkpoint(file))
        check_finite(state_dict)
    except CheckpointError as error:
        raise CheckpointError(error.problem, file) from None
    return state_dict


def list_models(pattern: str = "", **kwargs: Any) -> list[str]:
    """The zoo's model names, in timm's order; arguments as for ``timm.list_models``."""
    return [
        name
        for name in timm.list_models(pattern, **kwargs)
        if timm.model_entrypoint(name.split(".")[0]).__module__.startswith(_PACKAGE + ".")
    ]
