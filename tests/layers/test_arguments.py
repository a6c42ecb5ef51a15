"""Arguments that many layers take are refused with their name."""

import pytest

from attnzoo import layers


@pytest.mark.parametrize("name", ["BiLevelRoutingAttention", "CrossShapedWindowAttention", "LePEAttention"])
def test_an_even_lepe_kernel(name: str) -> None:
    with pytest.raises(ValueError, match="^lepe_kernel=4 is not odd$"):
        getattr(layers, name)(32, 2, lepe_kernel=4)
