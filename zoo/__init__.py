"""Backbones: one family a file; importing this registers their names with timm."""

from . import biformer, nat, nat_isotropic
from ._builder import list_models

__all__ = ["biformer", "list_models", "nat", "nat_isotropic"]
