"""The loss that segmenters train with."""

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

_AUXILIARY_WEIGHT = 0.4


def segmentation_loss(
    logits: Tensor | tuple[Tensor, Tensor],
    target: Tensor,
    ignore_index: int = 255,
    weight: Tensor | None = None,
    auxiliary_weight: float = _AUXILIARY_WEIGHT,
) -> Tensor:
    """Mean cross-entropy of the labelled pixels; 0, with gradients of 0, where a batch has none.

    Args:
        logits: [B, num_classes, H, W], or that and an auxiliary head's, as a segmenter with one returns in training.
        target: [B, H, W] int64 (or uint8), classes 0 to ``num_classes - 1`` or ``ignore_index``.
        ignore_index: pixels of this value do not count.
        weight: [num_classes], of classes.
        auxiliary_weight: of the auxiliary head's loss (Zhao et al. 2017, arXiv 1612.01105, section 4).

    Raises:
        ValueError: the sizes of logits and target differ.
    """
    heads: Sequence[Tensor] = (logits,) if isinstance(logits, Tensor) else logits
    target = target.long()
    if any(head.shape[:1] + head.shape[2:] != target.shape for head in heads):
        raise ValueError(f"logits {tuple(heads[0].shape)} need a target [B, H, W], got {tuple(target.shape)}")
    labelled = target[target != ignore_index]
    # A batch without labelled pixels has a sum of 0, which divided by anything stays one.
    counted = max(labelled.numel(), 1) if weight is None else weight[labelled].sum().clamp(min=1e-12)
    losses = []
    for head in heads:
        head = head.to(torch.promote_types(head.dtype, torch.float32))
        losses.append(F.cross_entropy(head, target, weight, ignore_index=ignore_index, reduction="sum") / counted)
    return losses[0] + auxiliary_weight * sum(losses[1:])
