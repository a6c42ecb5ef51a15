"""Feeds a source to timm's loader, so that what cannot be decoded is reported and not replaced."""

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import islice
from typing import Any

import numpy as np
import torch
from timm.data import create_loader
from torch import Tensor
from torch.utils.data import Dataset, IterableDataset

from .images import UnreadableImage, decode
from .sources import Source


@dataclass
class Sample:
    """One sample on its way to a batch; ``pixels`` is None where ``reason`` says why."""

    index: int
    target: int
    pixels: np.ndarray | Tensor | None
    notes: Sequence[str] = ()
    reason: str = ""


@dataclass
class Labels:
    """What accompanies a batch's images: ``targets`` [B] int64 and ``indices`` of the readable ones, and the rest."""

    targets: Tensor
    indices: list[int]
    excluded: list[tuple[int, str]]
    notes: list[tuple[int, str]]

    @property
    def seen(self) -> int:
        return len(self.indices) + len(self.excluded)

    def to(self, *args: Any, **kwargs: Any) -> "Labels":
        """timm's prefetcher moves targets as it moves images; these stay, since they are compared on the CPU."""
        return self


class SampleDataset(Dataset):
    """The samples of a source at the given positions; ``transform`` is set by timm's ``create_loader``."""

    transform: Any = None

    def __init__(self, read: Callable[[int], tuple[Any, int]], order: Sequence[int], mode: str, exif: bool) -> None:
        self.read, self.order, self.mode, self.exif = read, order, mode, exif

    def __len__(self) -> int:
        return len(self.order)

    def __getitem__(self, position: int) -> Sample:
        index = self.order[position]
        try:
            image, target = self.read(index)
        except (OSError, EOFError) as error:
            return Sample(index, -1, None, reason=f"cannot be read: {getattr(error, 'strerror', None) or error}")
        try:
            return _sample(index, image, target, self)
        finally:
            if hasattr(image, "close"):
                image.close()


class SampleStream(IterableDataset):
    """As ``SampleDataset``, for sources that only go forward: what cannot be read ends them."""

    transform: Any = None

    def __init__(self, samples: Iterable[tuple[Any, int]], start: int, stop: int, mode: str, exif: bool) -> None:
        self.samples, self.start, self.stop, self.mode, self.exif = samples, start, stop, mode, exif

    def __len__(self) -> int:
        return self.stop - self.start

    def __iter__(self) -> Iterator[Sample]:
        index = self.start
        try:
            for image, target in islice(self.samples, self.start, self.stop):
                yield _sample(index, image, target, self)
                index += 1
        # Readers of streams decode inside and raise what their libraries raise.
        except Exception as error:
            yield Sample(index, -1, None, reason=f"the stream breaks here: {type(error).__name__}: {error}")


def _sample(index: int, image: Any, target: int, dataset: SampleDataset | SampleStream) -> Sample:
    try:
        decoded, notes = decode(image, dataset.mode, dataset.exif)
        return Sample(index, int(target), dataset.transform(decoded), notes)
    except UnreadableImage as error:
        return Sample(index, int(target), None, reason=str(error))
    # A strip of one pixel by a hundred thousand asks for gigabytes when its short side is resized.
    except (MemoryError, OSError, RuntimeError, ValueError) as error:
        return Sample(index, int(target), None, reason=f"cannot be resized: {str(error) or type(error).__name__}")


def collate(samples: Sequence[Sample], channels: int) -> tuple[Tensor, Labels]:
    """Stacks the readable images, [B, C, H, W] uint8; B may be 0."""
    good = [sample for sample in samples if sample.pixels is not None]
    images = torch.stack([torch.as_tensor(s.pixels) for s in good]) if good else torch.empty(0, channels, 1, 1)
    labels = Labels(
        torch.tensor([sample.target for sample in good], dtype=torch.int64),
        [sample.index for sample in good],
        [(sample.index, sample.reason) for sample in samples if sample.pixels is None],
        [(sample.index, note) for sample in good for note in sample.notes],
    )
    return images, labels


@dataclass(frozen=True)
class LoaderOptions:
    """How to load: timm's ``data_config``, and what ``create_loader`` wants besides."""

    data_config: dict[str, Any]
    device: torch.device
    exif: bool = False


def sample_order(source: Source, limit: int | None, seed: int) -> Sequence[int]:
    """All samples, or ``limit`` of them drawn by ``seed`` (the first ones of a stream), in the source's order."""
    if limit is None or limit >= source.total:
        return range(source.total)
    if source.iterable is not None:
        return range(limit)
    return np.sort(np.random.default_rng(seed).choice(source.total, limit, replace=False)).tolist()


def build_loader(
    source: Source, order: Sequence[int], start: int, batch_size: int, workers: int, options: LoaderOptions
) -> Any:
    """timm's loader over ``order[start:]``: (images [B, C, H, W] normalised on the device, Labels)."""
    config = options.data_config
    channels = config["input_size"][0]
    mode = "RGB" if channels == 3 else "L"
    if source.iterable is not None:
        dataset = SampleStream(source.iterable, start, len(order), mode, options.exif)
        workers = min(workers, 1)  # more would interleave, and no resumed run could follow
    else:
        dataset = SampleDataset(source.read, order[start:], mode, options.exif)
    return create_loader(
        dataset,
        input_size=config["input_size"],
        batch_size=batch_size,
        interpolation=config["interpolation"],
        mean=config["mean"],
        std=config["std"],
        crop_pct=config["crop_pct"],
        crop_mode=config["crop_mode"],
        num_workers=workers,
        collate_fn=partial(collate, channels=channels),
        pin_memory=options.device.type == "cuda",
        device=options.device,
        persistent_workers=False,
    )
