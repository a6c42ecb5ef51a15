"""Loss and accuracy on the validation split, over all processes."""

import math
from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import nn
from torch.utils.data import Dataset

from ..cli import UserError
from .data import UNREADABLE, build_loader
from .progress import Interrupted, NonFinite


@torch.inference_mode()
def evaluate(
    model: nn.Module, dataset: Dataset, accelerator: Any, *, batch_size: int, workers: int,
    should_stop: Callable[[], bool] = lambda: False,
) -> tuple[float, float, float]:  # fmt: skip
    """Mean cross-entropy, top-1 and top-5 in percent of the readable images; each process takes every n-th.

    Raises:
        UserError: no image can be read.
        Interrupted: ``should_stop()`` became true.
        NonFinite: the loss is not a number.
    """
    rank, world, device = accelerator.process_index, accelerator.num_processes, accelerator.device
    own = range(rank, len(dataset), world)
    batches = [own[first : first + batch_size] for first in range(0, len(own), batch_size)]
    if world > 1:
        _share_buffers(model)
    model.eval()
    totals = torch.zeros(4, dtype=torch.float64, device=device)
    for images, targets in build_loader(dataset, batches, workers, device.type == "cuda"):
        if should_stop():
            raise Interrupted
        images, targets = images.to(device), targets.to(device)
        with accelerator.autocast():
            logits = model(images)
        readable = targets != UNREADABLE
        totals += _batch_totals(logits[readable].float(), targets[readable])
    if world > 1:
        totals = accelerator.reduce(totals, reduction="sum")
    loss, top1, top5, count = totals.tolist()
    if not count:
        raise UserError("data.source: no image of the validation split can be read")
    if not math.isfinite(loss):
        raise NonFinite(f"the validation loss is {loss}")
    return loss / count, 100 * top1 / count, 100 * top5 / count


def _batch_totals(logits: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
    """Sums over a batch of loss, top-1 hits, top-5 hits and images ``[4]``, float64."""
    hits = logits.topk(min(5, logits.shape[1])).indices == targets[:, None]
    loss = F.cross_entropy(logits, targets, reduction="sum")
    return torch.stack(
        [loss.double(), hits[:, 0].sum().double(), hits.sum().double(), loss.new_tensor(len(targets)).double()]
    )


def _share_buffers(model: nn.Module) -> None:
    """Gives all processes the first one's running statistics, which are the ones that are saved."""
    for buffer in model.buffers():
        torch.distributed.broadcast(buffer, src=0)
