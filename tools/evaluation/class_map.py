"""Which index each class folder has in a model's output, refusing whatever would be a guess."""

import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from timm.data import ImageNetInfo, infer_imagenet_subset
from timm.utils.misc import natural_key

from ..cli import UserError, did_you_mean

NAMED = ("imagenet-1k", "imagenet-12k", "imagenet-22k", "imagenet-22k-ms", "imagenet-21k-goog", "imagenet-21k-miil")

_SYNSET = re.compile(r"n\d{8}")


@dataclass
class Classes:
    """Label to index, where that came from, and what should be said about it."""

    index: dict[str, int]
    source: str
    dropped: list[str] = field(default_factory=list)
    warnings: list[str] = field(default_factory=list)


def load_class_map(name: str) -> dict[str, int]:
    """Reads a class map: ``imagenet-1k`` and the like, a text file or a JSON file.

    A text file has one class a line, in the order of the model's outputs, or ``NAME INDEX`` on each line;
    lines that start with a WordNet synset may go on with a description. JSON is a list of names or an object
    of name to index.

    Raises:
        UserError: The file is missing, of another kind, or names a class twice.
    """
    if name in NAMED:
        return {label: index for index, label in enumerate(ImageNetInfo(name).label_names())}
    path = Path(name)
    if path.suffix not in (".txt", ".json"):
        raise UserError(f"class map {name} is neither a .txt or .json file nor one of {', '.join(NAMED)}")
    try:
        text = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"cannot read the class map {name}: {error}") from None
    return _from_json(name, text) if path.suffix == ".json" else _from_lines(name, text)


def _from_json(name: str, text: str) -> dict[str, int]:
    try:
        content: Any = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise UserError(f"class map {name} is no valid JSON: {error}") from None
    if isinstance(content, list):
        return _numbered(name, content)
    if not isinstance(content, dict) or not content or any(type(value) is not int for value in content.values()):
        raise UserError(f"class map {name} must be a JSON list of names or an object of name to index")
    return content


def _from_lines(name: str, text: str) -> dict[str, int]:
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    pairs = [re.fullmatch(r"(\S+)[\s,]+(\d+)", line) for line in lines]
    if lines and all(pairs):
        result = {pair[1].rstrip(","): int(pair[2]) for pair in pairs}
        if len(result) != len(lines):
            raise UserError(f"class map {name} names a class twice")
        return result
    if lines and all(_SYNSET.match(line) for line in lines):
        lines = [line[:9] for line in lines]
    return _numbered(name, lines)


def _numbered(name: str, labels: Sequence[Any]) -> dict[str, int]:
    result = {str(label): index for index, label in enumerate(labels)}
    if not result or len(result) != len(labels):
        raise UserError(f"class map {name} " + ("names a class twice" if labels else "is empty"))
    return result


def resolve_classes(
    labels: Sequence[str], num_classes: int, class_map: Mapping[str, int] | None, source: str, subset: bool
) -> Classes:
    """Gives each class folder its index.

    Args:
        labels: The folders' names in natural order.
        num_classes: Of the model.
        class_map: What ``--class-map`` says, or None.
        source: Its name, for messages.
        subset: Whether folders and classes may differ.

    Raises:
        UserError: Folders and classes do not match and nothing says how they should.
    """
    if class_map is not None:
        return _by_map(labels, num_classes, class_map, source, subset)
    named = infer_imagenet_subset({"num_classes": num_classes})
    if named and all(_SYNSET.fullmatch(label) for label in labels):
        classes = _by_map(labels, num_classes, load_class_map(named), named, subset)
        if len(classes.index) < num_classes and not subset:
            raise UserError(
                f"{len(labels)} of the {num_classes} classes of {named} have a folder; add --subset to evaluate these"
            )
        return classes
    if len(labels) == num_classes:
        return _in_order(labels)
    if subset and all(label.isdecimal() for label in labels):
        return _by_map(labels, num_classes, {label: int(label) for label in labels}, "the folders' numbers", False)
    raise UserError(
        f"the data has {len(labels)} class folders ({_some(labels)}) but the model {num_classes} classes; "
        "say which is which with --class-map FILE (one class a line in the order of the model's outputs)"
    )


def _in_order(labels: Sequence[str]) -> Classes:
    classes = Classes({label: index for index, label in enumerate(labels)}, "the folders in natural order")
    if sorted(labels) != sorted(labels, key=natural_key):
        classes.warnings.append(
            "class folders are numbered in natural order (2 before 10), as timm does; torchvision sorts 10 before 2: "
            "if the model was trained that way give --class-map"
        )
    return classes


def _by_map(
    labels: Sequence[str], num_classes: int, class_map: Mapping[str, int], source: str, subset: bool
) -> Classes:
    outside = sorted({index for index in class_map.values() if not 0 <= index < num_classes})
    if outside:
        raise UserError(f"class map {source} has the index {outside[-1]} but the model has {num_classes} classes")
    unknown = [label for label in labels if label not in class_map]
    if len(unknown) == len(labels):
        raise UserError(f"class map {source} names none of the class folders ({_some(labels)})")
    if unknown and not subset:
        raise UserError(
            f"class map {source} does not name {len(unknown)} of the {len(labels)} class folders ({_some(unknown)})"
            f"{did_you_mean(unknown[0], class_map)}; add --subset to leave them out"
        )
    classes = Classes({label: class_map[label] for label in labels if label in class_map}, source, dropped=unknown)
    if len(set(classes.index.values())) < num_classes:
        classes.warnings.append(
            f"{len(set(classes.index.values()))} of the model's {num_classes} classes have a folder"
        )
    return classes


def _some(names: Sequence[str], count: int = 3) -> str:
    return ", ".join(names[:count]) + (", …" if len(names) > count else "")
