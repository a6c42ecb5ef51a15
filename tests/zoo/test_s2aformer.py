"""S2AFormer's reconstruction against the published sizes: all that there is to compare with."""

import pytest
import timm
import torch
from torch import nn

# Parameters in millions, multiply-adds in billions at 224 and 256 pixels.
PUBLISHED = {
    "s2aformer_mini": (5.02, 0.43, 0.56),
    "s2aformer_tiny": (5.80, 0.655, 0.855),
    "s2aformer_xs": (6.54, 0.786, 1.03),
    "s2aformer_small": (10.69, 1.38, 1.80),
    "s2aformer_medium": (24.87, 4.12, 5.38),
}


def multiply_adds(model, side):
    """Of convolutions and linear layers, as the paper counts."""
    total = 0

    def count(module, inputs, output):
        nonlocal total
        total += output.numel() * module.weight[0].numel()

    layers = [module for module in model.modules() if isinstance(module, (nn.Conv2d, nn.Linear))]
    hooks = [layer.register_forward_hook(count) for layer in layers]
    model(torch.empty(1, 3, side, side, device="meta"))
    for hook in hooks:
        hook.remove()
    return total / 1e9


@pytest.mark.parametrize("name", PUBLISHED)
def test_sizes_are_the_published_ones_within_a_percent(name):
    with torch.device("meta"):
        model = timm.create_model(name).eval()
    found = (
        sum(p.numel() for p in model.parameters()) / 1e6,
        multiply_adds(model, 224),
        multiply_adds(model, 256),
    )
    assert found == pytest.approx(PUBLISHED[name], rel=0.01)


def test_every_name_says_that_it_is_a_reconstruction():
    for name in PUBLISHED:
        assert "reconstruction" in timm.model_entrypoint(name).__doc__
        assert timm.get_pretrained_cfg(name).tag == "untrained"


def test_arguments_that_do_not_fit():
    with pytest.raises(ValueError, match=r"depths=\(1, 1, 1\)"):
        timm.create_model("s2aformer_mini", depths=(1, 1, 1))
