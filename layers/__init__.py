"""nn.Modules, named as their papers name them."""

from timm.layers import register_notrace_module

from .neighborhood import NeighborhoodAttention
from .relpos import RelPosAttention
from .routing import BiLevelRoutingAttention, LePEAttention

__all__ = ["BiLevelRoutingAttention", "LePEAttention", "NeighborhoodAttention", "RelPosAttention"]

# Their forward looks at sizes, which torch.fx cannot trace through: to it they are leaves.
for _name in __all__:
    register_notrace_module(globals()[_name])
