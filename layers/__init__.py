"""nn.Modules, named as their papers name them."""

from timm.layers import register_notrace_module

from .contmix import ContMix, ContMixBlock
from .dilated_reparam import DilatedReparamConv
from .flow import FlowAttention
from .large_kernel import GatedLargeKernelAttention, LargeKernelAttention
from .linear_global import LinearGlobalAttention, LocalConcentrationModule, LocalWindowAttention
from .mala import GatedSoftmaxAttention, MagnitudeAwareLinearAttention
from .neighborhood import NeighborhoodAttention
from .relpos import RelPosAttention
from .routing import BiLevelRoutingAttention, LePEAttention

__all__ = [
    "BiLevelRoutingAttention",
    "ContMix",
    "ContMixBlock",
    "DilatedReparamConv",
    "FlowAttention",
    "GatedLargeKernelAttention",
    "GatedSoftmaxAttention",
    "LargeKernelAttention",
    "LePEAttention",
    "LinearGlobalAttention",
    "LocalConcentrationModule",
    "LocalWindowAttention",
    "MagnitudeAwareLinearAttention",
    "NeighborhoodAttention",
    "RelPosAttention",
]

# Their forward looks at sizes, which torch.fx cannot trace through: to it they are leaves.
for _name in __all__:
    register_notrace_module(globals()[_name])
