"""Opens what ``--data`` names: folders, tars, timm's named data sets and the digits."""

import hashlib
import importlib.util
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from timm.data import ImageDataset, create_dataset
from timm.data.readers import img_extensions
from timm.data.readers.reader import Reader
from torch.utils.data import IterableDataset

from ..cli import UserError, did_you_mean
from .class_map import Classes, load_class_map, resolve_classes
from .images import EXTENSIONS
from .scan import Listing, scan_folder, scan_tar, split_folder

_NAMED = {"hfds": "datasets", "hfids": "datasets", "tfds": "tensorflow_datasets", "wds": "webdataset", "torch": None}


@dataclass
class Source:
    """Samples in a fixed order.

    ``read(i)`` gives (binary stream or PIL image, target); a stream of samples has ``iterable`` in its place.
    """

    total: int
    name: Callable[[int], str]
    digest: str
    """Of the samples' names and targets where they are known: two runs on the same data agree on it."""
    read: Callable[[int], tuple[Any, int]] | None = None
    iterable: IterableDataset | None = None
    classes: Classes | None = None
    skipped: dict[str, list[str]] = field(default_factory=dict)
    warnings: list[str] = field(default_factory=list)


class FolderReader(Reader):
    """timm's folder reader, over images that have been listed already."""

    def __init__(self, root: Path, samples: list[tuple[str, int]]) -> None:
        super().__init__()
        self.root = root
        self.samples = samples

    def __getitem__(self, index: int) -> tuple[Any, int]:
        path, target = self.samples[index]
        return (self.root / path).open("rb"), target

    def __len__(self) -> int:
        return len(self.samples)

    def _filename(self, index: int, basename: bool = False, absolute: bool = False) -> str:
        path = self.samples[index][0]
        return Path(path).name if basename else str(self.root / path) if absolute else path


def open_source(
    where: str,
    split: str,
    num_classes: int,
    *,
    class_map: str | None = None,
    subset: bool = False,
    data_dir: str | None = None,
    mode: str = "RGB",
) -> Source:
    """Opens a data set and settles which index each class has.

    Args:
        where: ``digits``, a folder, a ``.tar`` file, or one of timm's names (``hfds/…``, ``tfds/…``, ``torch/…``).
        split: The split, or the folder below ``where`` that holds it.
        num_classes: Of the model.
        class_map: File or name for ``load_class_map``.
        subset: Whether folders and classes may differ.
        data_dir: Root or cache of a named data set.
        mode: Colour mode the samples are wanted in, for the data sets that decode by themselves.

    Raises:
        UserError: No such data, a package is missing, no images, or classes that do not match the model's.
    """
    chosen = load_class_map(class_map) if class_map else None
    path, kind = _path(where), kind_of(where)
    if kind == "digits":
        return _digits(split, num_classes)
    if kind == "folder":
        return _folder(split_folder(path, split), num_classes, chosen, class_map or "", subset)
    if kind == "tar":
        return _tar(path, split, num_classes, chosen, class_map or "", subset)
    if chosen is not None:
        raise UserError(f"--class-map is for folders and tars; {where} numbers its classes itself")
    return _named(where, kind, split, num_classes, subset, data_dir, mode)


def kind_of(where: str) -> str:
    """What a data set is, by its name and what lies there: ``digits``, ``folder``, ``tar``, or timm's prefix.

    Raises:
        UserError: it is nothing of that.
    """
    prefix, path = where.partition("/")[0].lower(), _path(where)
    if where == "digits":
        return "digits"
    if path.is_dir():
        return "folder"
    if path.is_file() and path.suffix == ".tar":
        return "tar"
    if "/" in where and prefix in _NAMED:
        return prefix
    exists = path.exists()
    kind = "is neither a folder nor a .tar file" if exists else "does not exist"
    near = "" if exists else _near(path)
    raise UserError(
        f"data {where} {kind}{near or '; give a folder, a .tar, digits, hfds/NAME, tfds/NAME or torch/NAME'}"
    )


def _path(where: str) -> Path:
    try:
        path = Path(where).expanduser()
        path.exists()
    except RuntimeError as error:  # ~NAME of nobody
        raise UserError(f"data {where} does not exist: {error}") from None
    except OSError as error:
        raise UserError(f"data {where} cannot be read: {error.strerror}") from None
    return path


def _near(path: Path) -> str:
    try:
        return did_you_mean(path.name, [item.name for item in path.parent.iterdir()])
    except OSError:
        return ""


def _digits(split: str, num_classes: int) -> Source:
    from ..data.digits import digits_dataset

    dataset = digits_dataset(split)
    if num_classes != len(dataset.classes):
        raise UserError(f"digits has {len(dataset.classes)} classes but the model {num_classes}; try dinat_nano.digits")
    names = [dataset.filename(index) for index in range(len(dataset))]
    return Source(len(names), names.__getitem__, _digest(names), read=dataset.__getitem__)


def _folder(root: Path, num_classes: int, class_map: dict[str, int] | None, map_name: str, subset: bool) -> Source:
    listing = scan_folder(root)
    classes = resolve_classes(listing.labels, num_classes, class_map, map_name, subset)
    samples = [(path, classes.index[label]) for path, label in listing.images if label in classes.index]
    return _listed(ImageDataset(root, reader=FolderReader(root, samples)), samples, listing, classes)


def _tar(
    path: Path, split: str, num_classes: int, class_map: dict[str, int] | None, map_name: str, subset: bool
) -> Source:
    listing = scan_tar(path)
    classes = resolve_classes(listing.labels, num_classes, class_map, map_name, subset)
    with _more_extensions():
        dataset = create_dataset("", root=str(path), split=split, class_map=classes.index, cache_tarinfo=False)
    names = dataset.filenames()
    samples = [(name, int(target)) for name, target in zip(names, dataset.reader.targets, strict=True)]
    return _listed(dataset, samples, listing, classes)


def _listed(dataset: ImageDataset, samples: list[tuple[str, int]], listing: Listing, classes: Classes) -> Source:
    for path, label in listing.images:
        if label not in classes.index:
            listing.skip("its class is not in the class map", path)
    if not samples:
        raise UserError("no image is left: every one lies in a class folder that the class map leaves out")
    warnings = [*classes.warnings]
    if listing.empty:
        warnings.append(f"{len(listing.empty)} class folders hold no image: {', '.join(listing.empty[:5])}")
    if listing.skipped:
        counts = ", ".join(f"{len(paths)} {reason}" for reason, paths in sorted(listing.skipped.items()))
        warnings.append(f"files left out: {counts}")
    digest = _digest([f"{path}\t{target}" for path, target in samples])
    name = dataset.filename
    return Source(
        len(samples), name, digest, dataset.reader.__getitem__,
        classes=classes, skipped=listing.skipped, warnings=warnings,
    )  # fmt: skip


def _named(
    where: str,
    prefix: str,
    split: str,
    num_classes: int,
    subset: bool,
    data_dir: str | None,
    mode: str,
) -> Source:
    package = _NAMED[prefix]
    if package and importlib.util.find_spec(package) is None:
        raise UserError(f"data {where} needs the package {package}: pip install {package.replace('_', '-')}")
    try:
        dataset = create_dataset(where, root=data_dir, split=split, input_img_mode=mode)
    # Each of these libraries has errors of its own; what they say is all that is known.
    except Exception as error:
        raise UserError(f"cannot open {where} ({split}): {type(error).__name__}: {error}") from None
    source = _wrap(dataset, f"{where}/{split}")
    labels = getattr(getattr(dataset, "reader", None), "class_to_idx", None)
    if labels:
        source.classes = Classes(dict(labels), where)
        if len(labels) != num_classes and not subset:
            raise UserError(f"{where} has {len(labels)} classes but the model {num_classes}; --subset allows it")
    return source


def _wrap(dataset: Any, where: str) -> Source:
    total = len(dataset)
    if not total:
        raise UserError(f"{where} does not say how many samples it has, or has none")
    digest = _digest([where, str(total)])
    if isinstance(dataset, IterableDataset):
        return Source(total, lambda index: f"{where}/{index}", digest, iterable=dataset)
    if isinstance(dataset, ImageDataset):
        return Source(
            total, lambda index: dataset.filename(index) or f"{where}/{index}", digest, dataset.reader.__getitem__
        )
    return Source(total, lambda index: f"{where}/{index}", digest, dataset.__getitem__)


def _digest(lines: list[str]) -> str:
    # Bytes of a name that are no UTF-8 come as lone surrogates.
    return hashlib.sha256("\n".join(lines).encode("utf-8", "surrogatepass")).hexdigest()


@contextmanager
def _more_extensions() -> Iterator[None]:
    """timm's tar reader has no argument for file extensions, only this module-wide list."""
    before = img_extensions.get_img_extensions()
    img_extensions.set_img_extensions(EXTENSIONS)
    try:
        yield
    finally:
        img_extensions.set_img_extensions(before)
