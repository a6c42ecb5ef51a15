"""Tensors that depend on sizes alone: made once for each device."""

from __future__ import annotations

from collections.abc import Callable
from functools import lru_cache, wraps
from typing import Any

import torch

from ._checks import is_traced, is_transformed


def by_size(maxsize: int) -> Callable[[Callable[..., Any]], Callable[..., Any]]:
    """Keeps what ``make(*sizes, device)`` returned for the last ``maxsize`` sizes and devices.

    The function made of it is called with ``like=``, a tensor on the device. Nothing is kept where a program is
    recorded from that tensor, or it has no values: what is made under a fake mode would poison later calls. What is
    kept serves gradients, also where it was first needed in inference mode. Nobody may write into it.
    """

    def decorate(make: Callable[..., Any]) -> Callable[..., Any]:
        @lru_cache(maxsize)
        def kept(*sizes_and_device: Any) -> Any:
            with torch.inference_mode(False):
                return make(*sizes_and_device)

        @wraps(make)
        def get(*sizes: Any, like: torch.Tensor) -> Any:
            if is_traced(like) or is_transformed() or like.device.type == "meta":
                return make(*sizes, like.device)
            return kept(*sizes, like.device)

        get.cache_clear = kept.cache_clear
        return get

    return decorate
