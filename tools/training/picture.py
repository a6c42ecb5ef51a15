"""The demo's picture: held-out digits with what two models say, and how one of them was trained."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import timm
import torch
from timm.data import create_transform, resolve_data_config

from ...weights import load_checkpoint
from ..data.digits import DigitsDataset, digits_dataset
from .curve import draw_accuracy, draw_loss, new_figure, save_figure
from .log import read_metrics

ROWS, COLUMNS = 4, 6
RIGHT, WRONG = "#333333", "#c00000"


@dataclass(frozen=True)
class Judged:
    """A model and what it says of the held-out digits."""

    name: str
    weights: str
    parameters: int
    predictions: list[int]
    targets: list[int]

    @property
    def total(self) -> int:
        return len(self.targets)

    @property
    def correct(self) -> int:
        return sum(p == t for p, t in zip(self.predictions, self.targets, strict=True))

    @property
    def top1(self) -> float:
        return 100 * self.correct / self.total


@torch.inference_mode()
def judge(name: str, checkpoint: Path | None, weights: str) -> Judged:
    """Asks a model for all 360 held-out digits.

    Args:
        name: timm name; with a tag its own weights are used.
        checkpoint: file to load instead.
        weights: where they come from, in words.

    Raises:
        CheckpointError: the weights cannot be had or do not fit.
    """
    model = timm.create_model(name, pretrained=checkpoint is None, num_classes=len(DigitsDataset.classes)).eval()
    if checkpoint is not None:
        load_checkpoint(model, checkpoint)
    data = digits_dataset("validation", create_transform(**resolve_data_config({}, model=model)))
    images = torch.stack([image for image, _ in data])
    predictions = torch.cat([model(part).argmax(1) for part in images.split(64)])
    parameters = sum(parameter.numel() for parameter in model.parameters())
    return Judged(name, weights, parameters, predictions.tolist(), data.targets)


def draw_demo(judged: list[Judged], metrics: Path, path: Path) -> None:
    """Writes the picture as PNG.

    Raises:
        UserError: matplotlib is not installed, or the file cannot be written.
    """
    figure = new_figure((12, 5.6))
    left, right = figure.subfigures(1, 2, width_ratios=(1.9, 1))
    accuracies = ", ".join(f"{one.name} {one.top1:.2f} %" for one in judged)
    left.suptitle(f"Held-out digits: {accuracies}", fontsize=11)
    data = digits_dataset("validation")
    axes = left.subplots(ROWS, COLUMNS).flat
    for place, index in zip(axes, choose_samples(judged, ROWS * COLUMNS), strict=True):
        _draw_sample(place, data[index][0], data.targets[index], {one.name: one.predictions[index] for one in judged})
    rows = read_metrics(metrics)
    right.suptitle(f"Training of {judged[0].name}", fontsize=11)
    upper, lower = right.subplots(2, 1)
    draw_loss(upper, rows)
    draw_accuracy(lower, rows)
    save_figure(figure, path)


def choose_samples(judged: list[Judged], count: int) -> list[int]:
    """Images to show: those that some model gets wrong, up to half, then others evenly spread over the split."""
    targets = judged[0].targets
    wrong = [i for i, target in enumerate(targets) if any(one.predictions[i] != target for one in judged)]
    wrong = wrong[: count // 2]
    rest = [i for i in range(len(targets)) if i not in wrong]
    others = count - len(wrong)
    return sorted([*wrong, *(rest[place * len(rest) // others] for place in range(others))])


def _draw_sample(axes: Any, image: Any, target: int, predictions: dict[str, int]) -> None:
    axes.imshow(image)
    axes.set_xticks([])
    axes.set_yticks([])
    missed = any(prediction != target for prediction in predictions.values())
    axes.spines[:].set_color(WRONG if missed else "#bbbbbb")
    axes.spines[:].set_linewidth(2.5 if missed else 0.8)
    for line, (name, prediction) in enumerate(predictions.items()):
        family = name.split("_")[0]
        said = f"{family}: {prediction}" if prediction == target else f"{family}: {prediction}, is {target}"
        axes.text(
            0.5, -0.06 - 0.15 * line, said, transform=axes.transAxes, ha="center", va="top", fontsize=8,
            color=RIGHT if prediction == target else WRONG,
            fontweight="normal" if prediction == target else "bold",
        )  # fmt: skip
