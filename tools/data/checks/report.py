"""What a check found: defects by kind, counted, the first few named."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from PIL import Image

from ...evaluation.images import open_image

NAMED = 5
# Reading all of COCO takes minutes; so many files, evenly spread, show whether a set was unpacked well.
OPENED = 2000


@dataclass
class Report:
    """Defects of one set of annotations.

    Args:
        subject: the file or folder that was looked through.
        images: how many images it lists.
        annotations: how many objects or label maps.
        opened: how many files were opened, all or evenly spread ones.
    """

    subject: str
    images: int = 0
    annotations: int = 0
    opened: int = 0
    defects: dict[str, list[str]] = field(default_factory=dict)

    def add(self, kind: str, name: object) -> None:
        self.defects.setdefault(kind, []).append(str(name))

    def count(self, kind: str) -> int:
        return len(self.defects.get(kind, ()))

    @property
    def clean(self) -> bool:
        return not self.defects

    def lines(self) -> Iterator[str]:
        """One line of totals, then one line a kind of defect with the first five names."""
        opened = f" ({self.opened} opened)" if self.opened < self.images else ""
        state = "no defects" if self.clean else "defects:"
        yield f"{self.subject}: {self.images} images{opened}, {self.annotations} annotations, {state}"
        for kind, names in self.defects.items():
            more = ", ..." if len(names) > NAMED else ""
            yield f"  {len(names)} {kind}: {', '.join(names[:NAMED])}{more}"


def spread(items: Sequence, most: int = OPENED) -> list:
    """At most so many of the items, evenly spread."""
    if len(items) <= most:
        return list(items)
    return [items[place * len(items) // most] for place in range(most)]


def present(folder: Path, names: Sequence[str]) -> set[str]:
    """Which of the relative names exist; every folder is listed once, which is fast where asking for files is slow."""
    parents = {str(Path(name).parent) for name in names}
    found: set[str] = set()
    for parent in parents:
        if (folder / parent).is_dir():
            found |= {str(Path(parent) / entry.name) for entry in (folder / parent).iterdir()}
    return {name for name in names if str(Path(name)) in found}


def image_size(path: Path) -> tuple[int, int] | None:
    """Height and width of an image that decodes to its end, None if it does not."""
    try:
        with open_image(path) as image:
            image.load()
            return image.height, image.width
    except (OSError, ValueError, SyntaxError, Image.DecompressionBombError):
        return None
