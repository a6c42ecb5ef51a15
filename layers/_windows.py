"""Windows of a map, as batches of heads for scaled-dot-product attention."""

import torch
import torch.nn.functional as F
from torch import Tensor


def pad_to_windows(x: Tensor, window: tuple[int, int]) -> Tensor:
    """[B, H, W, ...] with zeros at the bottom and right, so that both sides are multiples of ``window``."""
    bottom, right = -x.shape[1] % window[0], -x.shape[2] % window[1]
    if not (bottom or right):
        return x
    return F.pad(x, [0, 0] * (x.ndim - 3) + [0, right, 0, bottom])


def split_windows(x: Tensor, window: tuple[int, int]) -> Tensor:
    """[B, H, W, heads, D] → [B, windows * heads, tokens of a window, D]; sides are multiples of ``window``."""
    x = x.unflatten(2, (-1, window[1])).unflatten(1, (-1, window[0]))
    return x.permute(0, 1, 3, 5, 2, 4, 6).flatten(4, 5).flatten(1, 3)


def join_windows(x: Tensor, window: tuple[int, int], size: tuple[int, int], heads: int) -> Tensor:
    """Undoes :func:`split_windows` for a map of ``size`` (H, W), heads joined: → [B, H, W, heads * D]."""
    x = x.unflatten(2, window).unflatten(1, (size[0] // window[0], size[1] // window[1], heads))
    return x.permute(0, 1, 4, 2, 5, 3, 6).flatten(5, 6).flatten(3, 4).flatten(1, 2)


def window_attention(q: Tensor, k: Tensor, v: Tensor, window: tuple[int, int], mask: Tensor | None = None) -> Tensor:
    """Softmax attention inside each window of maps [B, H, W, heads, D], heads joined: → [B, H, W, heads * D].

    Args:
        q: queries; k and v likewise; sides are multiples of ``window``.
        window: height and width of a window.
        mask: broadcasts to [windows, heads, tokens, tokens]; added to the scores, or False where there is nothing.
    """
    heads, size = q.shape[3], (q.shape[1], q.shape[2])
    if mask is not None:
        windows = (size[0] // window[0]) * (size[1] // window[1])
        mask = mask.expand(windows, heads, -1, -1).flatten(0, 1)[None]
        mask = mask if mask.dtype == torch.bool else mask.to(q.dtype)
    q, k, v = (split_windows(x, window) for x in (q, k, v))
    return join_windows(F.scaled_dot_product_attention(q, k, v, mask), window, size, heads)
