"""pytest plugin: while timm's test module is imported, ``timm.list_models`` knows only attnzoo's models."""

import os

import timm

import attnzoo

_real = timm.list_models
_names = set(attnzoo.zoo.list_models(os.environ["ATTNZOO_SUITE_PATTERN"]))


def _is_map(name: str) -> bool:
    """Whether the final features are a map; timm keeps models with class tokens in a list of its own."""
    import torch

    with torch.device("meta"):
        return not getattr(timm.create_model(name), "num_prefix_tokens", 0)


_maps = {name for name in _names if _is_map(name)}


def _zoo_models(filter="", module="", exclude_filters="", **kwargs):
    """timm's parametrisation, ours in place of its names: filters that name timm's own models do not apply."""
    wanted = _names
    if isinstance(filter, list):
        wanted = _names - _maps
    elif "vit_*" in list(exclude_filters):
        wanted = _maps
    return [name for name in _real(**kwargs) if name.split(".")[0] in wanted]


timm.list_models = _zoo_models
