"""A call of every op, for tests of what all of them do alike."""

import torch

from attnzoo import kernels


def draw(*shape, count=3):
    return [torch.randn(*shape, dtype=torch.float64) for _ in range(count)]


# Op, its tensors, its other arguments.
CASES = {
    "neighborhood": (kernels.neighborhood_attention, lambda: draw(2, 14, 14, 2, 4), {"kernel_size": 7}),
    "routing": (kernels.bi_level_routing_attention, lambda: draw(2, 8, 8, 2, 4), {"num_regions": 4, "topk": 2}),
    "linear": (kernels.linear_attention, lambda: [x.abs() for x in draw(2, 30, 2, 4)], {}),
    "mala": (kernels.magnitude_aware_linear_attention, lambda: draw(2, 30, 2, 4), {}),
    "flow": (kernels.flow_attention, lambda: draw(2, 30, 2, 4), {}),
    "causal flow": (kernels.flow_attention, lambda: draw(2, 30, 2, 4), {"causal": True}),
    "agent": (kernels.agent_attention, lambda: [*draw(2, 30, 2, 4), *draw(2, 5, 2, 4, count=1)], {}),
    "large kernel": (
        kernels.large_kernel_attention,
        lambda: [
            x for shape in ((2, 4, 14, 14), (4, 1, 5, 5), (4, 1, 7, 7), (4, 4, 1, 1)) for x in draw(*shape, count=1)
        ],
        {},
    ),
    "dynamic conv": (
        kernels.dynamic_depthwise_conv,
        lambda: [*draw(2, 14, 14, 2, 4, count=1), *draw(2, 14, 14, 2, 25, count=1)],
        {},
    ),
    "grouped": (
        kernels.grouped_query_attention,
        lambda: [*draw(2, 30, 4, 4, count=1), *draw(2, 30, 2, 4, count=2)],
        {},
    ),
    "strip": (kernels.strip_attention, lambda: draw(2, 30, 2, 4), {}),
    "sparse": (kernels.sparse_attention, lambda: draw(2, 9, 2, 4), {"mask": torch.rand(2, 2, 9, 9) > 0.3}),
    "sparse by columns": (
        kernels.sparse_attention,
        lambda: [*draw(2, 9, 2, 4, count=1), *draw(2, 60, 2, 4, count=2)],
        {"mask": torch.rand(2, 2, 9, 60).topk(9).indices},
    ),
}
