"""Where a run stands, and the ways in which it ends early."""

import math
from dataclasses import dataclass


class NonFinite(Exception):
    """The loss, the gradient or a weight is NaN or infinite; nothing was saved since the last good checkpoint."""


class Interrupted(Exception):
    """The run was asked to stop; its state is saved."""


@dataclass
class Progress:
    """All of a run's state but weights and optimizer.

    ``epoch`` epochs are finished and ``update`` updates of the next one are done; ``updates`` counts them all.
    ``batch_size`` and ``grad_accum`` are those in use, which differ from the recipe's after running out of memory.
    """

    batch_size: int
    grad_accum: int
    epoch: int = 0
    update: int = 0
    updates: int = 0
    loss_sum: float = 0.0
    lr: float = 0.0
    best_top1: float = -1.0
    best_loss: float = math.inf
    best_epoch: int = 0
