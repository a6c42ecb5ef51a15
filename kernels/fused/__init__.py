"""Fused Triton kernels, one op a module; an op imports its module when it first runs there."""
