"""What many maps together say: how far the heads of each layer look, and how much the model needs each of them.

Distances: Dosovitskiy et al., "An Image is Worth 16x16 Words", arXiv:2010.11929, figure 7. Importance by pruning single
heads: Li et al., "How Does Attention Work in Vision Transformers? A Visual Analytics Attempt", arXiv:2303.13731.
"""

import csv
import io
from dataclasses import dataclass
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ...zoo.maps.base import AttentionMap
from ...zoo.maps.tap import HeadRemover
from ..cli import UserError
from ..files import write_atomic
from .panels import WARNING, new_figure, to_png

QUERIES = 4
# A receptive field costs a pass through the model and back.
FIELD_QUERIES = 2


@dataclass(frozen=True)
class Table:
    """A number for every head of every layer.

    Attributes:
        name: of the files.
        label: what the numbers are, for an axis.
        rows: by layer, one number a head.
    """

    name: str
    label: str
    rows: dict[str, list[float]]


def attention_distances(maps: list[dict[str, AttentionMap]]) -> Table:
    """Mean distance in pixels between a query and its keys, weighed as the head weighs them; mean of the images.

    Queries are the middles of 4x4 fields of each image (2x2 for receptive fields). Negative weights count as positive.
    """
    found = {layer: torch.stack([mean_distance(one[layer]) for one in maps]).mean(0).tolist() for layer in maps[0]}
    return Table("attention-distance", "mean attention distance (pixels)", found)


def mean_distance(one: AttentionMap) -> Tensor:
    """The same of one map, ``[heads]``; weights on a layer's padding, which is no part of the image, are left out."""
    count = FIELD_QUERIES if one.kind == "receptive_field" else QUERIES
    height, width = one.image_size
    rows, columns = (
        (torch.arange(keys, dtype=torch.float64) + 0.5) * cell
        for keys, cell in zip(one.key_grid, one.key_cell, strict=True)
    )
    moments, totals = [], []
    for i in range(count**2):
        x, y = (i % count + 0.5) * width / count, (i // count + 0.5) * height / count
        row, column = one.token((x, y))
        centre = ((row + 0.5) * one.cell[0], (column + 0.5) * one.cell[1])
        distance = torch.hypot(rows[:, None] - centre[0], columns[None] - centre[1])
        weights = one.weights((x, y)).double().cpu().abs() * one.on_image()
        moments.append((weights * distance).sum((1, 2)))
        totals.append(weights.sum((1, 2)))
    return torch.stack(moments).sum(0) / torch.stack(totals).sum(0).clamp(min=1e-30)


@torch.no_grad()
def head_importance(
    model: nn.Module, images: list[Tensor], maps: list[dict[str, AttentionMap]], target: int | None = None
) -> Table:
    """How much the loss of the target class grows when one head's output is zero; mean of the images.

    Args:
        model: a classifier.
        images: normalised images ``[in_chans, H, W]``.
        maps: their maps, which say what heads there are.
        target: the class; None is what the model says of each image.

    Raises:
        UserError: no layer has heads, or there is no such class.
    """
    heads = {layer: one.heads for layer, one in maps[0].items() if one.kind != "receptive_field"}
    if not heads:
        raise UserError("head-importance needs layers with heads; these have receptive fields of convolutions only")
    if target is not None and not 0 <= target < model.num_classes:
        raise UserError(f"--target {target} is no class; 0 to {model.num_classes - 1} work")
    device = next(model.parameters()).device
    batch = [image[None].to(device) for image in images]
    logits = [model(image) for image in batch]
    classes = [one.argmax(1) if target is None else torch.tensor([target], device=device) for one in logits]
    before = [F.cross_entropy(one, wanted) for one, wanted in zip(logits, classes, strict=True)]

    def growth(layer: str, head: int) -> float:
        losses = []
        for image, wanted in zip(batch, classes, strict=True):
            with HeadRemover(model, layer, head, heads[layer]).following():
                losses.append(F.cross_entropy(model(image), wanted))
        return (torch.stack(losses) - torch.stack(before)).mean().item()

    rows = {layer: [growth(layer, head) for head in range(count)] for layer, count in heads.items()}
    return Table("head-importance", "growth of the loss without the head", rows)


def write(table: Table, stem: Path, title: str, note: str, warning: str = "") -> list[Path]:
    """Writes STEM.ANALYSIS.png and STEM.ANALYSIS.csv.

    Raises:
        UserError: matplotlib is not installed, or a file cannot be written.
    """
    picture, numbers = (stem.with_name(f"{stem.name}.{table.name}.{kind}") for kind in ("png", "csv"))
    write_atomic(picture, _plot(table, title, note, warning))
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(("layer", "head", table.label))
    for layer, row in table.rows.items():
        writer.writerows((layer, head, f"{value:.9g}") for head, value in enumerate(row))
    write_atomic(numbers, text.getvalue().encode())
    return [picture, numbers]


def _plot(table: Table, title: str, note: str, warning: str) -> bytes:
    """A dot for each head, a bar for each layer's mean, layers from top to bottom."""
    names = list(table.rows)
    figure = new_figure((8, 1.4 + 0.26 * len(names)))
    axes = figure.subplots()
    means = [sum(row) / len(row) for row in table.rows.values()]
    axes.barh(range(len(names)), means, color="#c6dbef", height=0.7, label="mean of the heads")
    dots = [(value, place) for place, row in enumerate(table.rows.values()) for value in row]
    axes.plot(*zip(*dots, strict=True), ".", color="#2166ac", markersize=6, label="head")
    axes.set_yticks(range(len(names)), names, fontsize=7.5)
    axes.invert_yaxis()
    axes.axvline(0, color="#888888", linewidth=0.6)
    axes.set_xlabel(table.label)
    axes.set_title(title, fontsize=11)
    axes.spines[["top", "right"]].set_visible(False)
    axes.grid(axis="x", alpha=0.25)
    axes.legend(frameon=False, fontsize=8)
    figure.supxlabel(f"{warning}  {note}" if warning else note, fontsize=8, color=WARNING if warning else "#444444")
    return to_png(figure)
