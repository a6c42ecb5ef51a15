"""The models of the page: which can be chosen, and the few that are kept in memory."""

import threading
from collections import OrderedDict
from dataclasses import dataclass, field
from pathlib import Path

import timm
import torch
from timm.data import ImageNetInfo, infer_imagenet_subset

from ...weights import CheckpointError, cache, manifest, pretrained_file
from ...zoo import attention_maps, list_models
from ..cli import MOST_CLASSES, UserError
from ..data.digits import CLASSES as DIGITS
from ..evaluation.models import Subject, check_name, load_subject

KEPT = 4
SEED = 0
# Coarser maps say little of a photograph.
_ROWS = 10


@dataclass(frozen=True)
class Source:
    """A model and where its weights are from; two that are equal give the same numbers.

    Attributes:
        name: with a tag the weights are those of the tag, without one random ones of seed 0.
        checkpoint: file that the weights are read from instead.
        num_classes: classes of the checkpoint's classifier, the model's where None.
        stamp: size and time of the checkpoint, so that a file that was replaced is read again.
    """

    name: str
    checkpoint: str | None = None
    num_classes: int | None = None
    stamp: tuple[int, int] | None = None

    @classmethod
    def of(cls, name: str, checkpoint: str | None = None, num_classes: int | None = None) -> "Source":
        """The source, of a checkpoint as it is now.

        Raises:
            UserError: the name is unknown, or a number of classes is asked for without a checkpoint.
        """
        check_name(name)
        if num_classes is not None and not checkpoint:
            raise UserError(f"{num_classes} classes are asked for, but no checkpoint file is given that has them")
        if num_classes is not None and num_classes < 1:
            raise UserError(f"a checkpoint has at least 1 class, not {num_classes}")
        if num_classes is not None and num_classes > MOST_CLASSES:
            raise UserError(f"{MOST_CLASSES} classes are the most that a model is built with, not {num_classes}")
        stamp = None
        if checkpoint and Path(checkpoint).is_file():
            info = Path(checkpoint).stat()
            stamp = (info.st_size, info.st_mtime_ns)
        return cls(name, checkpoint or None, num_classes, stamp)


@dataclass
class Exhibit:
    """A loaded model.

    Attributes:
        subject: the model, on the CPU, in evaluation mode.
        layers: names of the layers that have attention maps, as the model computes them.
        layer: the one that is shown unless another is chosen.
        classes: a name for each output, or None where only the index is known.
        note: where the weights are from.
        trained: False for random weights.
        lock: held while the model runs: maps are taken through hooks on it.
    """

    subject: Subject
    layers: list[str]
    layer: str
    classes: list[str] | None
    note: str
    trained: bool
    lock: threading.Lock = field(default_factory=threading.Lock)


class Gallery:
    """Loads models, each once, and keeps those that were used last.

    Args:
        kept: how many at most.
    """

    def __init__(self, kept: int = KEPT) -> None:
        self.kept = kept
        self._exhibits: OrderedDict[Source, Exhibit] = OrderedDict()
        self._lock = threading.Lock()
        self._loading = threading.Lock()

    def __len__(self) -> int:
        return len(self._exhibits)

    def get(self, source: Source) -> Exhibit:
        """The model, loaded if it is not at hand.

        Raises:
            UserError: it cannot be built, or none of its layers has an attention map.
            CheckpointError: its weights cannot be read or do not fit.
        """
        if found := self._find(source):
            return found
        # One at a time: random weights are drawn from the process's one generator.
        with self._loading:
            if found := self._find(source):
                return found
            exhibit = _load(source)
            with self._lock:
                self._exhibits[source] = exhibit
                while len(self._exhibits) > self.kept:
                    self._exhibits.popitem(last=False)
            return exhibit

    def _find(self, source: Source) -> Exhibit | None:
        with self._lock:
            if source in self._exhibits:
                self._exhibits.move_to_end(source)
            return self._exhibits.get(source)


def names(published: bool = False) -> list[str]:
    """Names to choose from: first those with trained weights, then every model with random ones.

    Args:
        published: also list weights that would have to be downloaded first.
    """
    models = list_models()
    tagged = [name for model in models for name in timm.list_pretrained(f"{model}.*")]
    return [name for name in tagged if published or _at_hand(name)] + models


def _at_hand(name: str) -> bool:
    """Whether the weights are on this machine."""
    if pretrained_file(name):
        return True
    try:
        entry = manifest.find(name)
    except CheckpointError:
        return False
    return cache.cache_path(entry).is_file() or cache.converted_path(entry).is_file()


def _load(source: Source) -> Exhibit:
    trained = bool(source.checkpoint) or "." in source.name
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(SEED)
        subject = load_subject(
            source.name,
            checkpoint=source.checkpoint,
            random_weights=not trained,
            num_classes=source.num_classes,
            device=torch.device("cpu"),
        )
    subject.model.requires_grad_(False)
    try:
        maps = attention_maps(subject.model, torch.zeros(subject.model.pretrained_cfg["input_size"]))
    except ValueError as error:
        raise UserError(f"{source.name} cannot be shown: {error}") from None
    layers = list(maps)
    fine = [name for name in layers if maps[name].grid[0] >= _ROWS]
    classes = _classes(subject)
    return Exhibit(subject, layers, fine[-1] if fine else layers[0], classes, _note(source, subject), trained)


def _classes(subject: Subject) -> list[str] | None:
    """The digits' names by the tag, ImageNet's by the number of outputs; with the index, since two are cranes."""
    if subject.weights.get("tag") == "digits":
        return [f"digit {name}" for name in DIGITS]
    count = subject.model.num_classes
    subset = infer_imagenet_subset({"num_classes": count})
    if subset is None:
        return None
    info = ImageNetInfo(subset)
    return [f"{info.index_to_description(index).partition(',')[0]} ({index})" for index in range(count)]


def _note(source: Source, subject: Subject) -> str:
    if subject.weights["source"] == "random":
        return f"Random weights (seed {SEED}): nothing was learned, the classes mean nothing."
    if source.checkpoint:
        names = ""
        if subset := infer_imagenet_subset({"num_classes": subject.model.num_classes}):
            names = f" Its {subject.model.num_classes} classes are named as those of {subset}."
        return f"Weights: {Path(source.checkpoint).name}.{names}"
    return f"Weights: {subject.name}, {subject.weights['origin']}."
