"""The picture of a run: loss and accuracy over the epochs."""

import io
from pathlib import Path
from typing import Any

from ..data.extras import import_extra
from .checkpoint import replace_synced
from .log import read_metrics

TRAIN, HELD_OUT = "#b35806", "#2166ac"


def draw_loss(axes: Any, rows: list[dict[str, float]]) -> None:
    """Training and validation loss per epoch, on matplotlib axes."""
    epochs = [row["epoch"] for row in rows]
    axes.plot(epochs, [row["train_loss"] for row in rows], color=TRAIN, label="training", marker=_marker(rows))
    axes.plot(epochs, [row["val_loss"] for row in rows], color=HELD_OUT, label="validation", marker=_marker(rows))
    _finish(axes, "loss")
    axes.legend(frameon=False)


def draw_accuracy(axes: Any, rows: list[dict[str, float]]) -> None:
    """Validation top-1 accuracy per epoch in percent, its best epoch named, on matplotlib axes."""
    epochs = [row["epoch"] for row in rows]
    best = max(rows, key=lambda row: row["val_top1"])
    axes.plot(epochs, [row["val_top1"] for row in rows], color=HELD_OUT, marker=_marker(rows))
    axes.plot(best["epoch"], best["val_top1"], "o", color=HELD_OUT)
    _finish(axes, "validation top-1 (%)")
    axes.set_title(f"best {best['val_top1']:.2f} % in epoch {best['epoch']:.0f}", fontsize=10)


def write_curve(output: Path) -> None:
    """Writes curve.png of a run folder from its metrics.csv; nothing where no epoch was finished.

    Raises:
        UserError: matplotlib is not installed, or the file cannot be written.
    """
    rows = read_metrics(output / "metrics.csv")
    if not rows:
        return
    figure = new_figure((9, 3.6))
    left, right = figure.subplots(1, 2)
    draw_loss(left, rows)
    draw_accuracy(right, rows)
    save_figure(figure, output / "curve.png")


def new_figure(size: tuple[float, float]) -> Any:
    """An empty figure of that size in inches, drawn without a display."""
    import_extra("matplotlib")
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=size, layout="constrained")
    FigureCanvasAgg(figure)
    return figure


def save_figure(figure: Any, path: Path) -> None:
    """Writes the figure as PNG, as a whole or not at all."""
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=130)
    replace_synced(path, buffer.getvalue())


def _marker(rows: list[dict[str, float]]) -> str:
    return "." if len(rows) < 20 else ""


def _finish(axes: Any, label: str) -> None:
    from matplotlib.ticker import MaxNLocator

    axes.set_xlabel("epoch")
    axes.set_ylabel(label)
    axes.xaxis.set_major_locator(MaxNLocator(integer=True, min_n_ticks=1))
    axes.spines[["top", "right"]].set_visible(False)
    axes.grid(alpha=0.25)
