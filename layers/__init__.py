"""nn.Modules, named as their papers name them."""

from .neighborhood import NeighborhoodAttention
from .relpos import RelPosAttention
from .routing import BiLevelRoutingAttention, LePEAttention

__all__ = ["BiLevelRoutingAttention", "LePEAttention", "NeighborhoodAttention", "RelPosAttention"]
