"""Data sets, augmentation and batches whose content depends only on (seed, epoch, place in the epoch)."""

import logging
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from PIL import Image
from timm.data import ImageDataset, Mixup, create_dataset, create_transform, resolve_data_config
from torch import nn
from torch.utils.data import DataLoader, Dataset, IterableDataset, Subset
from torchvision import transforms

from ..cli import UserError
from ..data.digits import digits_dataset
from ..evaluation.images import open_image
from . import schema
from .seeding import ORDER, SAMPLE, derive, seed_cpu

Key = tuple[int, int, int]

# The target of a validation image that cannot be read.
UNREADABLE = -1

_logger = logging.getLogger(__name__)


class SeededSamples(Dataset):
    """A data set asked for ``(epoch, index, copy)``; the augmentation of each such sample is always the same."""

    def __init__(self, dataset: Dataset, seed: int) -> None:
        self.dataset = dataset
        self.seed = seed

    def __len__(self) -> int:
        return len(self.dataset)

    def __getitem__(self, sample: Key) -> Any:
        seed_cpu(SAMPLE, self.seed, *sample)
        return self.dataset[sample[1]]


class WithoutSubstitutes(Dataset):
    """timm's images, but one that cannot be read is not replaced by its neighbour: its target is UNREADABLE."""

    def __init__(self, dataset: ImageDataset) -> None:
        self.dataset, self.reader = dataset, dataset.reader

    def __len__(self) -> int:
        return len(self.dataset)

    def __getitem__(self, index: int) -> tuple[torch.Tensor, int]:
        try:
            file, target = self.reader[index][:2]
            with file, open_image(file) as opened:
                image = opened.convert("RGB")
        except (OSError, ValueError, SyntaxError, Image.DecompressionBombError) as error:
            name = self.reader.filename(index)
            _logger.warning("validation image %s cannot be read and is left out: %s", name, error)
            image, target = Image.new("RGB", (8, 8)), UNREADABLE
        return self.dataset.transform(image), target


class EpochBatches:
    """The batches of one process in one epoch, as lists of sample keys, beginning with update ``start``.

    The samples of an update do not depend on how it is cut into processes and forwards: a run that halves its
    batch and doubles ``grad_accum`` goes on with the same images. Samples short of a whole update are left out.
    """

    def __init__(
        self, size: int, recipe: schema.Recipe, epoch: int, start: int, *, batch_size: int, grad_accum: int,
        rank: int, world: int,
    ) -> None:  # fmt: skip
        self.batch_size, self.grad_accum, self.rank, self.world = batch_size, grad_accum, rank, world
        self.start, self.updates = start, size // (batch_size * grad_accum * world)
        generator = torch.Generator().manual_seed(derive(ORDER, recipe.seed, epoch) >> 1)
        order = torch.randperm(size, generator=generator).tolist()
        repeats = recipe.data.aug_repeats
        self.keys: list[Key] = [(epoch, order[place // repeats], place % repeats) for place in range(size)]

    def __len__(self) -> int:
        return (self.updates - self.start) * self.grad_accum

    def __iter__(self) -> Iterator[list[Key]]:
        stride = self.batch_size * self.world
        for forward in range(self.start * self.grad_accum, self.updates * self.grad_accum):
            first = forward * stride + self.rank * self.batch_size
            yield self.keys[first : first + self.batch_size]


def build_datasets(data: schema.Data, model: nn.Module, num_classes: int) -> tuple[Dataset, Dataset]:
    """The training and the validation data set, transforms included.

    Raises:
        UserError: the data cannot be found or read, or has more classes than the model.
    """
    train_transform, val_transform = build_transforms(data, model)
    train = _open(data, data.train_split, train_transform)
    val = _open(data, data.val_split, val_transform)
    if isinstance(val, ImageDataset):
        val = WithoutSubstitutes(val)
    return tuple(_limited(_checked(d, num_classes, data.source), data.limit) for d in (train, val))


def build_transforms(data: schema.Data, model: nn.Module) -> tuple[Any, Any]:
    """timm's training and evaluation transforms; a random rotation and shift go before the former.

    Raises:
        UserError: no such policy of augmentation.
    """
    height, width = (data.img_size,) * 2 if isinstance(data.img_size, int) else data.img_size
    size = (3, height, width)
    given = {"input_size": size, "mean": data.mean, "std": data.std, "crop_pct": data.crop_pct}
    config = resolve_data_config({name: value for name, value in given.items() if value is not None}, model=model)
    shared = {"input_size": size, "mean": config["mean"], "std": config["std"]}
    try:
        train = create_transform(
            **shared, is_training=True, scale=data.scale, ratio=data.ratio, hflip=data.hflip, vflip=data.vflip,
            color_jitter=data.color_jitter or None, auto_augment=data.aa, interpolation=data.interpolation,
            re_prob=data.re_prob, re_mode=data.re_mode, re_count=data.re_count,
        )  # fmt: skip
    except (AssertionError, ValueError, LookupError) as error:
        if data.aa is None:
            raise
        raise UserError(f"data.aa: {data.aa!r} is no policy, as rand-m9-mstd0.5-inc1 ({error})") from error
    if data.degrees or data.translate:
        shift = (data.translate, data.translate)
        bilinear = transforms.InterpolationMode.BILINEAR
        train = transforms.Compose([transforms.RandomAffine(data.degrees, shift, interpolation=bilinear), train])
    fixed = "bicubic" if data.interpolation == "random" else data.interpolation
    val = create_transform(**shared, interpolation=fixed, crop_pct=config["crop_pct"])
    return train, val


def build_loader(dataset: Dataset, batches: Any, workers: int, pin_memory: bool) -> DataLoader:
    """A loader over lists of keys or indices."""
    return DataLoader(dataset, batch_sampler=batches, num_workers=workers, pin_memory=pin_memory)


def build_mixup(data: schema.Data, label_smoothing: float, num_classes: int) -> Mixup | None:
    """timm's Mixup, or None where the recipe mixes nothing."""
    if not (data.mixup or data.cutmix):
        return None
    return Mixup(
        mixup_alpha=data.mixup, cutmix_alpha=data.cutmix, prob=data.mixup_prob, switch_prob=data.mixup_switch_prob,
        mode=data.mixup_mode, label_smoothing=label_smoothing, num_classes=num_classes,
    )  # fmt: skip


def _open(data: schema.Data, split: str, transform: Any) -> Dataset:
    if data.source == "digits":
        return digits_dataset(split, transform)
    prefix = data.source.partition("/")[0]
    is_folder = prefix not in ("torch", "hfds", "hfids", "tfds", "wds")
    if is_folder and not Path(data.source).exists():
        raise UserError(f"data.source: {data.source!r} is neither digits, nor a file or folder, nor a timm data set")
    if prefix == "torch" and data.root is None:
        raise UserError(f"data.root: {data.source} needs the folder that holds its files, or is to hold them")
    name, root = ("", data.source) if is_folder else (data.source, data.root)
    try:
        dataset = create_dataset(name, root=root, split=split)
    except (RuntimeError, ValueError, OSError, ImportError, AssertionError) as error:
        raise UserError(f"data.source: cannot open {data.source!r}, split {split!r}: {error}") from error
    if isinstance(dataset, IterableDataset):
        raise UserError(f"data.source: {data.source!r} is a stream; resuming exactly needs a data set with an index")
    dataset.transform = transform
    return dataset


def _checked(dataset: Dataset, num_classes: int, source: str) -> Dataset:
    if not len(dataset):
        raise UserError(f"data.source: no images in {source!r}")
    class_to_idx = getattr(getattr(dataset, "reader", dataset), "class_to_idx", None)
    classes = class_to_idx or getattr(dataset, "classes", None) or ()
    if len(classes) > num_classes:
        raise UserError(f"{source!r} has {len(classes)} classes, model.num_classes is {num_classes}")
    return dataset


def _limited(dataset: Dataset, limit: int | None) -> Dataset:
    if limit is None or limit >= len(dataset):
        return dataset
    return Subset(dataset, [place * len(dataset) // limit for place in range(limit)])
