"""Tables by size: made once, and never where a later call would trip over them."""

import pytest
import torch
from torch._subclasses import FakeTensorMode

from attnzoo.kernels import neighborhood_attention
from attnzoo.kernels._tables import by_size
from attnzoo.layers import MagnitudeAwareLinearAttention, RelPosAttention, ShiftedWindowAttention

LAYERS = {
    "mala": lambda: MagnitudeAwareLinearAttention(16, 2),
    "swin": lambda: ShiftedWindowAttention(16, 2, window_size=4, shift=True),
    "relpos": lambda: RelPosAttention(16, 2, (8, 12)),
}


@pytest.fixture
def table():
    made = []

    @by_size(maxsize=2)
    def table(length, device):
        made.append(length)
        return torch.arange(length, device=device)

    table.made = made
    return table


def test_a_table_is_made_once(table):
    like = torch.empty(1)
    assert table(3, like=like) is table(3, like=like) and table.made == [3]
    assert table(4, like=like).tolist() == [0, 1, 2, 3]
    table.cache_clear()
    table(3, like=like)
    assert table.made == [3, 4, 3]


def test_nothing_is_kept_without_values(table):
    assert table(3, like=torch.empty(1, device="meta")).device.type == "meta"
    with FakeTensorMode():
        table(3, like=torch.empty(1))
    torch.func.vmap(lambda x: x + table(3, like=x))(torch.zeros(2, 3))
    assert type(table(3, like=torch.empty(1))) is torch.Tensor
    assert table.made == [3] * 4


@pytest.mark.parametrize("layer", LAYERS)
def test_inference_first_and_gradients_after(layer):
    """With the same result: nobody writes into what is kept."""
    torch.manual_seed(0)
    module, x = LAYERS[layer](), torch.randn(1, 8, 12, 16)
    with torch.inference_mode():
        expected = module(x)
        assert torch.equal(module(x), expected)
    leaf = x.clone().requires_grad_()
    out = module(leaf)
    out.sum().backward()
    torch.testing.assert_close(out.detach(), expected.clone())
    assert leaf.grad.abs().max() > 0


def test_an_op_trains_after_inference_at_its_size():
    torch.manual_seed(0)
    tensors = [torch.randn(1, 15, 17, 2, 4, requires_grad=True) for _ in range(3)]
    with torch.inference_mode():
        neighborhood_attention(*tensors, 5)
    neighborhood_attention(*tensors, 5).sum().backward()
