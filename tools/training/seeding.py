"""Randomness as a function of where the training stands, so that a resumed run needs no saved generators."""

import random

import numpy as np
import torch

# What a seed is for; it leads the place, since NumPy pads short places with zeros.
WEIGHTS, ORDER, SAMPLE, STEP = 1, 2, 3, 4


def derive(*where: int) -> int:
    """A 64-bit seed of a place such as (SAMPLE, seed, epoch, index), unrelated to the seeds of its neighbours."""
    return int(np.random.SeedSequence(where).generate_state(1, np.uint64)[0])


def seed_cpu(*where: int) -> None:
    """Seeds Python, NumPy and PyTorch's CPU generator; safe in a loader's worker."""
    seed = derive(*where)
    random.seed(seed)
    np.random.seed(seed & 0xFFFFFFFF)
    torch.default_generator.manual_seed(seed)


def seed_all(*where: int) -> None:
    """Seeds what :func:`seed_cpu` does and every accelerator."""
    seed_cpu(*where)
    torch.manual_seed(derive(*where))
