"""nn.Modules, named as their papers name them."""

from timm.layers import register_notrace_module

from .agent import AgentAttention
from .contmix import ContMix, ContMixBlock
from .cswin import CrossShapedWindowAttention
from .dilated_reparam import DilatedReparamConv
from .flow import FlowAttention
from .grouped import DynamicGQA, GroupedQueryAttention, KeyDistributedGQA, PerturbedGQA
from .large_kernel import GatedLargeKernelAttention, LargeKernelAttention
from .linear_global import LinearGlobalAttention, LocalConcentrationModule, LocalWindowAttention
from .mala import GatedSoftmaxAttention, MagnitudeAwareLinearAttention
from .neighborhood import NeighborhoodAttention
from .relpos import RelPosAttention
from .routing import BiLevelRoutingAttention, LePEAttention
from .sparsifiner import SparsifinerAttention
from .strip import HybridPerceptionBlock, LocalInteractionModule, StripSelfAttention
from .swin import ShiftedWindowAttention

__all__ = [
    "AgentAttention",
    "BiLevelRoutingAttention",
    "ContMix",
    "ContMixBlock",
    "CrossShapedWindowAttention",
    "DilatedReparamConv",
    "DynamicGQA",
    "FlowAttention",
    "GatedLargeKernelAttention",
    "GatedSoftmaxAttention",
    "GroupedQueryAttention",
    "HybridPerceptionBlock",
    "KeyDistributedGQA",
    "LargeKernelAttention",
    "LePEAttention",
    "LinearGlobalAttention",
    "LocalConcentrationModule",
    "LocalInteractionModule",
    "LocalWindowAttention",
    "MagnitudeAwareLinearAttention",
    "NeighborhoodAttention",
    "PerturbedGQA",
    "RelPosAttention",
    "ShiftedWindowAttention",
    "SparsifinerAttention",
    "StripSelfAttention",
]

# Their forward looks at sizes, which torch.fx cannot trace through: to it they are leaves.
for _name in __all__:
    register_notrace_module(globals()[_name])
