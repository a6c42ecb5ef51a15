"""Programs find their place by multiplications, and by divisions where those would not be exact."""

import functools
import importlib

import pytest
import torch
from interp import cases

from attnzoo.kernels import bi_level_routing_attention, dynamic_depthwise_conv, neighborhood_attention


def draw_dynamic_conv():
    return [cases.draw(2, 9, 10, 3, 16), cases.draw(2, 9, 10, 3, 9)]


PROBLEMS = {
    "neighborhood": (
        functools.partial(neighborhood_attention, kernel_size=3, dilation=2),
        lambda: cases.draw_packed(2, (11, 18), 3, 16, torch.float32),
    ),
    "routing": (
        functools.partial(bi_level_routing_attention, num_regions=(3, 2), topk=2),
        lambda: cases.draw_packed(2, (9, 10), 3, 16, torch.float32),
    ),
    "dynamic_conv": (functools.partial(dynamic_depthwise_conv, kernel_size=(3, 3)), draw_dynamic_conv),
}


@pytest.mark.parametrize("exact", [True, False])
@pytest.mark.parametrize("module", PROBLEMS)
def test_many_programs_along_every_axis(module, exact, monkeypatch):
    torch.manual_seed(0)
    fused = importlib.import_module(f"attnzoo.kernels.fused.{module}")
    given = []

    def watched(divisors, most, real=fused.factors_of):
        given.append(real(divisors, most) if exact else None)
        return given[-1]

    monkeypatch.setattr(fused, "factors_of", watched)
    op, draw = PROBLEMS[module]
    cases.check(op, draw())
    assert given and all((each is not None) == exact for each in given)
