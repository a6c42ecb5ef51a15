"""Images whose right answer is known, and a model that gives it, for the tests of ``attnzoo eval``."""

import os
import signal
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from timm.models import register_model
from torch import nn

CLASSES = 5
SIZE = 16

signals: dict[int, int] = {}
"""Forward pass to the signal that the process sends itself in it."""


class Probe(nn.Module):
    """Tells the class of an image of one colour: class c is the grey level 255 c / (num_classes - 1).

    Args:
        num_classes: How many levels it tells apart.
        no_memory_above: Batch size beyond which it asks the CPU for more memory than there is.
        nan_class: The class that it sees as NaN.
        only_size: The one image side that it takes.
    """

    def __init__(self, num_classes=CLASSES, no_memory_above=0, nan_class=-1, only_size=0, in_chans=3, **kwargs):
        super().__init__()
        if not in_chans:
            raise ValueError("no channels")
        if "a" in kwargs:
            raise TypeError("a is not known")
        self.num_classes, self.no_memory_above = num_classes, no_memory_above
        self.nan_class, self.only_size = nan_class, only_size
        self.levels = nn.Parameter(torch.linspace(0, 1, num_classes))
        self.pretrained_cfg = dict(
            input_size=(3, SIZE, SIZE), crop_pct=1.0, mean=(0.0,) * 3, std=(1.0,) * 3, num_classes=num_classes
        )
        self.calls = -1  # the first one is the check of the image size

    def forward(self, x):
        if self.only_size and x.shape[-1] != self.only_size:
            raise ValueError(f"side {x.shape[-1]} is not {self.only_size}")
        if self.no_memory_above and len(x) > self.no_memory_above:
            torch.empty(1 << 60, dtype=torch.uint8)
        if self.calls in signals:
            os.kill(os.getpid(), signals.pop(self.calls))
        self.calls += 1
        logits = -((x.mean((1, 2, 3))[:, None] - self.levels) ** 2)
        return logits.masked_fill((logits.argmax(1) == self.nan_class)[:, None], float("nan"))


@register_model
def test_probe(pretrained=False, **kwargs):
    kwargs = {k: v for k, v in kwargs.items() if k not in ("pretrained_cfg", "pretrained_cfg_overlay", "cache_dir")}
    return Probe(**kwargs)


test_probe.__test__ = False


def grey(label: int, classes: int = CLASSES, size: tuple[int, int] = (20, 20)) -> Image.Image:
    """An image that the probe takes for ``label``."""
    return Image.new("RGB", size, (round(255 * label / (classes - 1)),) * 3)


def make_folder(root: Path, per_class: int = 4, classes: int = CLASSES, wrong: int = 1) -> Path:
    """``per_class`` images in each of the folders a, b, …; ``wrong`` of them are of another class."""
    for label in range(classes):
        folder = root / "abcdefghij"[label]
        folder.mkdir(parents=True)
        for number in range(per_class):
            shown = (label + 1) % classes if number < wrong else label
            grey(shown, classes).save(folder / f"{number}.png")
    return root


def arguments(data: Path | str, *more: object) -> list[str]:
    """Of ``attnzoo eval`` with the probe; a small batch and no worker processes."""
    fixed = ("eval", "test_probe", "--random-weights", "--data", data, "--batch-size", 4, "--workers", 0)
    return [str(word) for word in (*fixed, "--device", "cpu", *more)]


def evaluate(data: Path | str, file: Path, *more: object) -> int:
    """The exit status of an evaluation whose results are written after every batch."""
    from attnzoo.tools.main import main

    return main(arguments(data, "--results", file, "--save-every", 1, *more))


def run_until_killed(words: list[str], call: int | None, write: int | None) -> None:
    """In a process of its own: the command, with SIGKILL in a forward pass or as it syncs its n-th file."""
    from attnzoo.tools.main import main

    if call is not None:
        at(call)
    fsync, count = os.fsync, 0

    def deadly(descriptor: int) -> None:
        nonlocal count
        count += 1
        if count == write:
            os.kill(os.getpid(), signal.SIGKILL)
        fsync(descriptor)

    os.fsync = deadly
    main(words)


def noise(size: tuple[int, int]) -> Image.Image:
    return Image.fromarray(np.random.default_rng(0).integers(0, 256, (*size, 3), dtype=np.uint8))


def at(call: int, number: int = signal.SIGKILL) -> None:
    """Makes the probe's process get a signal in a forward pass, the first batch being call 0."""
    signals.clear()
    signals[call] = number
