"""Whether a written file computes the model: compared with it on other images, batches and sizes than the traced."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from .formats import Run, run_model
from .program import example

# Largest norm of a difference relative to the norm of what the model gives.
TOLERANCE = 1e-4


@dataclass(frozen=True)
class Comparison:
    """One comparison: of which images, and the largest relative difference among the outputs."""

    batch: int
    img_size: tuple[int, int]
    error: float

    @property
    def good(self) -> bool:
        return self.error <= TOLERANCE

    def __str__(self) -> str:
        height, width = self.img_size
        return f"batch {self.batch}, {height}×{width}: {self.error:.1e}"


def compare(
    run: Run, model: nn.Module, channels: int, cases: Sequence[tuple[int, tuple[int, int]]]
) -> list[Comparison]:
    """Runs file and model on noise for each case (batch, image size); a file that fails to run differs infinitely."""
    found = []
    for seed, (batch, img_size) in enumerate(cases, start=1):
        images = example(batch, img_size, channels, seed)
        truth = run_model(model, images)
        try:
            error = difference(run(images), truth)
        except Exception:  # of the runtime's own classes
            error = float("inf")
        found.append(Comparison(batch, img_size, error))
    return found


def difference(found: Sequence[Tensor], truth: Sequence[Tensor]) -> float:
    """The largest relative difference of the outputs; infinite where their number or a shape differs, or for a NaN."""
    if [x.shape for x in found] != [x.shape for x in truth]:
        return float("inf")
    errors = [float((x.double() - y.double()).norm() / y.double().norm()) for x, y in zip(found, truth, strict=True)]
    # max() would pass over a NaN.
    return float(torch.tensor(errors).nan_to_num(nan=float("inf")).max())
