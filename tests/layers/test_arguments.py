"""Arguments that many layers take are refused with their name."""

import pytest

from attnzoo import layers


@pytest.mark.parametrize("name", ["BiLevelRoutingAttention", "CrossShapedWindowAttention", "LePEAttention"])
def test_an_even_lepe_kernel(name: str) -> None:
    with pytest.raises(ValueError, match="^lepe_kernel=4 is not odd$"):
        getattr(layers, name)(32, 2, lepe_kernel=4)


@pytest.mark.parametrize(
    ("argument", "value", "error", "message"),
    [
        ("dim", 0, ValueError, "dim=0 is below 1"),
        ("dim", None, TypeError, "dim=None is not an int"),
        ("num_heads", 2.0, TypeError, "num_heads=2.0 is not an int"),
        ("num_heads", (2,), TypeError, r"num_heads=\(2,\) is not an int"),
        ("lepe_kernel", -1, ValueError, "lepe_kernel=-1 is below 1"),
        ("lepe_kernel", (3, 3), TypeError, r"lepe_kernel=\(3, 3\) is not an int"),
        ("lepe_kernel", True, TypeError, "lepe_kernel=True is not an int"),
    ],
)
def test_what_is_wrong_is_named(argument: str, value: object, error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=f"^{message}$"):
        layers.BiLevelRoutingAttention(**{"dim": 32, "num_heads": 2, argument: value})
