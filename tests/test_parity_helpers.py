"""The helpers that the parity tests stand on."""

import pytest
import torch
import torch.nn.functional as F
from parity import fast_float64_depthwise, reference_tensor, relative_error

# The first two values of a tensor of each kind, as the fixtures' own recipe draws them.
_DRAWS = {
    ("rpb", (3, 13)): [-0.43665436559485776, 0.15327738843195424],
    ("norm.weight", (4,)): [1.0067958347618824, 1.1642957598518457],
    ("norm.running_var", (4,)): [0.9623779240017445, 1.3466731158524878],
    ("layer_scale_1", (4,)): [1.0231017833880212, 1.1087043516680444],
    ("fc.weight", (3, 5)): [1.2620977860360258, -0.6238058540656587],
    ("fc.bias", (3,)): [-0.055565342125799666, -0.08304381019126823],
}


@pytest.mark.parametrize("padding", [0, 2, (1, 3), "same", "valid"])
@pytest.mark.parametrize(("kernel", "dilation"), [((3, 3), 1), ((5, 3), (2, 1)), ((4, 7), 1)], ids=str)
def test_depthwise_by_position_is_the_convolution(padding, kernel, dilation):
    torch.manual_seed(0)
    x = torch.randn(2, 6, 13, 17, dtype=torch.float64, requires_grad=True)
    weight = torch.randn(6, 1, *kernel, dtype=torch.float64, requires_grad=True)
    bias = torch.randn(6, dtype=torch.float64, requires_grad=True)
    arguments = dict(padding=padding, dilation=dilation, groups=6)
    expected = F.conv2d(x, weight, bias, **arguments)
    own = F.conv2d
    with fast_float64_depthwise():
        assert F.conv2d is not own
        found = F.conv2d(x, weight, bias, **arguments)
    assert F.conv2d is own
    assert relative_error(found, expected) < 1e-14
    weights = torch.randn_like(expected)
    for a, b in zip(*(torch.autograd.grad(y, (x, weight, bias), weights) for y in (found, expected)), strict=True):
        assert relative_error(a, b) < 1e-14


def test_other_convolutions_are_left_alone():
    x = torch.randn(1, 6, 8, 8, dtype=torch.float64)
    for weight, arguments in (
        (torch.randn(6, 1, 3, 3, dtype=torch.float64), {"groups": 6, "stride": 2}),
        (torch.randn(4, 6, 3, 3, dtype=torch.float64), {}),
        (torch.randn(12, 1, 3, 3, dtype=torch.float64), {"groups": 6}),
    ):
        expected = F.conv2d(x, weight, **arguments)
        with fast_float64_depthwise():
            assert torch.equal(F.conv2d(x, weight, **arguments), expected)


@pytest.mark.parametrize(("key", "shape"), _DRAWS)
def test_draws_do_not_change(key, shape):
    found = reference_tensor(key, list(shape))
    assert tuple(found.shape) == shape
    assert found.flatten()[:2].tolist() == pytest.approx(_DRAWS[key, shape], rel=1e-14)


def test_relative_error_sees_what_is_not_finite():
    x = torch.ones(3)
    assert relative_error(x, x) == 0
    assert relative_error(torch.tensor([1.0, float("nan"), 1.0]), x) == float("inf")
    with pytest.raises(AssertionError, match="shape"):
        relative_error(x, torch.ones(3, 1))
