"""The table in configs/README.md: which detector or segmenter is configured on which model, and what was published."""

import ast
from pathlib import Path
from typing import Any

from ..cli import UserError
from .config import CONFIGS, shipped_configs

_BEGIN = "<!-- configs: written by `attnzoo table --configs configs/README.md` -->"
_END = "<!-- end of configs -->"
# Heads as file names begin and how long they train, in the table's order.
_COLUMNS = {
    ("retinanet", "1x"): "RetinaNet 1x",
    ("mask-rcnn", "1x"): "Mask R-CNN 1x",
    ("mask-rcnn", "3x"): "Mask R-CNN 3x",
    ("cascade-mask-rcnn", "1x"): "Cascade 1x",
    ("cascade-mask-rcnn", "3x"): "Cascade 3x",
    ("fpn", None): "Semantic FPN",
    ("upernet", None): "UPerNet",
    ("mask2former", None): "Mask2Former",
}


def with_configs(readme: str) -> str:
    """A README's text with the table of configs between its two markers renewed.

    Raises:
        UserError: the markers are not there, or a config does not say what it is.
    """
    before, found, rest = readme.partition(_BEGIN)
    _, closed, after = rest.partition(_END)
    if not found or not closed:
        raise UserError(f"the README lacks the lines {_BEGIN!r} and {_END!r}")
    return f"{before}{_BEGIN}\n{_table()}\n{_END}{after}"


def read_metadata(path: Path) -> dict[str, Any]:
    """A config's ``metadata``, read without running the file: origin, paper, entry in the manifest, and figures.

    Raises:
        UserError: the file has none, or it is more than plain values.
    """
    for node in ast.parse(path.read_text(encoding="utf-8")).body:
        if isinstance(node, ast.Assign) and [ast.unparse(target) for target in node.targets] == ["metadata"]:
            try:
                return {word.arg: ast.literal_eval(word.value) for word in node.value.keywords}
            except (AttributeError, ValueError):
                break
    raise UserError(f"{path} has no 'metadata = dict(...)' of plain values")


def _table() -> str:
    rows: dict[tuple[str, str], dict[str, str]] = {}
    for name, path in shipped_configs().items():
        _, family, stem = name.split("/")
        head, model, *rest = stem.split("_")
        if family == "toy":
            continue
        plan = next((plan for plan in ("1x", "3x") if rest[-2].endswith(plan)), None)
        cell = f"[{_text(read_metadata(path))}]({path.relative_to(CONFIGS).as_posix()})"
        rows.setdefault((family, model), {})[_COLUMNS[head, plan]] = cell
    columns = list(_COLUMNS.values())
    lines = [f"| model | {' | '.join(columns)} |", "|---" * (len(columns) + 1) + "|"]
    for (_, model), cells in rows.items():
        lines.append(f"| {model} | {' | '.join(cells.get(column, '–') for column in columns)} |")
    return "\n".join(lines)


def _text(metadata: dict[str, Any]) -> str:
    """What stands in a cell: the published figures, or whose settings they are."""
    if "box_ap" in metadata:
        return " / ".join(f"{metadata[key]:.1f}" for key in ("box_ap", "mask_ap") if key in metadata)
    if "miou" in metadata:
        return f"{metadata['miou']:.1f}"
    if "miou_ms" in metadata:
        return f"{metadata['miou_ms']:.1f} ms"
    return metadata["origin"]
