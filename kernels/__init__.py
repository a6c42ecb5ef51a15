"""Functional attention ops: each with its definition, a fast PyTorch form, and one place that chooses."""

# In the clone's root, transformers finds this folder when it asks for the Hub's package of the same name
# (is_kernels_available), and must find nothing in it.
if __name__ != "kernels":
    from .agent import agent_attention
    from .dispatch import explain, get_backend, observe_ops, use_backend
    from .dynamic_conv import dynamic_depthwise_conv
    from .flow import flow_attention
    from .grouped import grouped_query_attention
    from .large_kernel import large_kernel_attention
    from .linear import linear_attention, magnitude_aware_linear_attention
    from .neighborhood import neighborhood_attention
    from .routing import bi_level_routing_attention
    from .sparse import sparse_attention
    from .strip import strip_attention

__all__ = [
    "agent_attention",
    "bi_level_routing_attention",
    "dynamic_depthwise_conv",
    "explain",
    "flow_attention",
    "get_backend",
    "grouped_query_attention",
    "large_kernel_attention",
    "linear_attention",
    "magnitude_aware_linear_attention",
    "neighborhood_attention",
    "observe_ops",
    "sparse_attention",
    "strip_attention",
    "use_backend",
]
