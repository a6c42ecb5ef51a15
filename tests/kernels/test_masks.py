"""What PyTorch's fused attention is given on a GPU, whose kernels want masks of the queries' dtype."""

import pytest
import torch
import torch.nn.functional as F
from torch._subclasses import FakeTensorMode

from attnzoo.kernels import (
    agent_attention,
    bi_level_routing_attention,
    neighborhood_attention,
    sparse_attention,
    use_backend,
)


def _draw(*shape, dtype=torch.float16, learned=False):
    return torch.empty(shape, dtype=dtype, device="cuda", requires_grad=learned)


def _neighborhood(learned, *space):
    bias = _draw(2, *[5] * len(space), dtype=torch.float32, learned=learned)
    neighborhood_attention(*(_draw(1, *space, 2, 8) for _ in range(3)), 3, rel_pos_bias=bias)
    neighborhood_attention(*(_draw(1, *space, 2, 8) for _ in range(3)), 3)


def _agent(learned):
    bias = _draw(2, 5, 30, dtype=torch.float32, learned=learned)
    agent_attention(*(_draw(1, 30, 2, 8) for _ in range(3)), _draw(1, 5, 2, 8), agent_bias=bias)


def _routing(learned):
    bi_level_routing_attention(*(_draw(1, 14, 14, 2, 8) for _ in range(3)), 7, 16)


def _sparse(learned):
    mask = torch.empty(1, 2, 30, 30, dtype=torch.bool, device="cuda")
    bias = _draw(1, 2, 30, 30, learned=learned)
    for given in (None, bias):
        sparse_attention(*(_draw(1, 30, 2, 8) for _ in range(3)), mask, bias=given)


CALLS = {
    "1-D": lambda learned: _neighborhood(learned, 40),
    "2-D": lambda learned: _neighborhood(learned, 20, 20),
    "3-D": lambda learned: _neighborhood(learned, 7, 7, 7),
    "agent": _agent,
    "routing": _routing,
    "sparse": _sparse,
}


@pytest.mark.parametrize("learned", [False, True])
@pytest.mark.parametrize("name", CALLS)
def test_masks_have_the_queries_dtype(name, learned, monkeypatch):
    real, masks = F.scaled_dot_product_attention, []

    def watched(q, k, v, attn_mask=None, **options):
        if attn_mask is not None:
            masks.append(attn_mask)
            assert attn_mask.dtype in (q.dtype, torch.bool)
        return real(q, k, v, attn_mask, **options)

    monkeypatch.setattr(F, "scaled_dot_product_attention", watched)
    with FakeTensorMode(), use_backend("torch"), torch.set_grad_enabled(learned):
        CALLS[name](learned)
    assert masks
