"""The arithmetic that a model needs."""

import torch
from torch import nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from ..kernels import use_backend


def fewest_multiply_adds(model: nn.Module, images: torch.Tensor) -> tuple[float, str]:
    """Multiply-adds of all matrix products and convolutions of a forward pass, attention included.

    Args:
        model: on the meta device it takes no memory and no time; its parameters should need no gradient, or the
            counter hooks them.
        images: of the model's device.

    Returns:
        The fewer of two implementations, and which: a reference may spell out a product that the ``torch`` form avoids,
        and that one may compute more than it keeps.

    Raises:
        ValueError, AssertionError, RuntimeError: the model does not take the images.
    """
    counts = {backend: _multiply_adds(model, images, backend) for backend in ("reference", "torch")}
    backend = min(counts, key=counts.__getitem__)
    return counts[backend], backend


def _multiply_adds(model: nn.Module, images: torch.Tensor, backend: str) -> float:
    counter = FlopCounterMode(display=False)
    # The mathematical form of scaled-dot-product attention is made of matrix products, which are counted.
    with use_backend(backend), sdpa_kernel(SDPBackend.MATH), torch.no_grad(), counter:
        model(images)
    return counter.get_total_flops() / 2
