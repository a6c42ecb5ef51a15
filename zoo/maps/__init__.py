"""Attention maps: what each query of each layer looks at, for every kind of attention of the zoo."""

from .base import AttentionMap
from .collect import attention_maps

__all__ = ["AttentionMap", "attention_maps"]
