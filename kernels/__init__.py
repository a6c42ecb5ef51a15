"""Functional attention ops: each with its definition, a fast PyTorch form, and one place that chooses."""

from .dispatch import explain, get_backend, use_backend
from .neighborhood import neighborhood_attention
from .routing import bi_level_routing_attention

__all__ = [
    "bi_level_routing_attention",
    "explain",
    "get_backend",
    "neighborhood_attention",
    "use_backend",
]
