"""Backbones: one family a file; importing this registers their names with timm."""

from . import (
    agent_cswin,
    agent_deit,
    agent_pvt,
    agent_swin,
    biformer,
    flowformer,
    l2vit,
    mavit,
    nat,
    nat_isotropic,
    overlock,
    s2aformer,
    sparsifiner,
    van,
    vit_gqa,
)
from ._builder import list_models
from ._plain import Plain
from ._pyramid import Pyramid
from .dense import Backbone
from .detection import create_detector
from .maps import AttentionMap, attention_maps
from .segmentation import create_segmenter

__all__ = [
    "AttentionMap",
    "Backbone",
    "Plain",
    "Pyramid",
    "agent_cswin",
    "agent_deit",
    "agent_pvt",
    "agent_swin",
    "attention_maps",
    "biformer",
    "create_detector",
    "create_segmenter",
    "flowformer",
    "l2vit",
    "list_models",
    "mavit",
    "nat",
    "nat_isotropic",
    "overlock",
    "s2aformer",
    "sparsifiner",
    "van",
    "vit_gqa",
]
