"""Per-sample scores: kept so that a run can go on after it was stopped, and add up to the same figures."""

import io
import zipfile
import zlib
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from ..cli import UserError

_FIELDS = {"index": np.int64, "top1": np.bool_, "top5": np.bool_, "loss": np.float32}


class Scores:
    """Index, top-1 and top-5 hit and loss of every evaluated sample, in the order of evaluation.

    A sample whose logits are not finite has neither hit and the loss NaN.
    """

    def __init__(self) -> None:
        self._chunks: dict[str, list[np.ndarray]] = {name: [] for name in _FIELDS}
        self._hits = np.zeros(3, dtype=np.int64)

    def __len__(self) -> int:
        return int(self._hits[2])

    def add(self, indices: list[int], logits: Tensor, targets: Tensor) -> None:
        """Adds a batch: logits [B, num_classes] of any floating dtype, targets [B] int64."""
        logits = logits.detach().to("cpu", torch.float32)
        finite = logits.isfinite().all(dim=1)
        top = logits.topk(min(5, logits.shape[1]), dim=1).indices == targets[:, None]
        # top-k of NaN returns the first indices: without this, weights of NaN would score.
        hits = top & finite[:, None]
        loss = F.cross_entropy(logits, targets, reduction="none").masked_fill(~finite, float("nan"))
        self._append(np.asarray(indices), hits[:, 0].numpy(), hits.any(dim=1).numpy(), loss.numpy())

    def _append(self, *columns: np.ndarray) -> None:
        for (name, dtype), column in zip(_FIELDS.items(), columns, strict=True):
            self._chunks[name].append(column.astype(dtype))
        self._hits += (columns[1].sum(), columns[2].sum(), len(columns[0]))

    def arrays(self) -> dict[str, np.ndarray]:
        return {
            name: np.concatenate(chunks) if chunks else np.empty(0, _FIELDS[name])
            for name, chunks in self._chunks.items()
        }

    def running(self) -> tuple[float, float]:
        """Top-1 and top-5 so far, in per cent."""
        top1, top5, count = self._hits.tolist()
        return (100 * top1 / count, 100 * top5 / count) if count else (0.0, 0.0)

    def summary(self) -> dict[str, Any]:
        """top1 and top5 in per cent of all evaluated, the mean loss of the finite ones; None where there are none."""
        arrays = self.arrays()
        loss = arrays["loss"].astype(np.float64)
        finite = np.isfinite(loss)
        count = len(loss)
        return {
            "top1": 100 * int(arrays["top1"].sum()) / count if count else None,
            "top5": 100 * int(arrays["top5"].sum()) / count if count else None,
            "loss": float(loss[finite].mean()) if finite.any() else None,
            "evaluated": count,
            "non_finite": int(count - finite.sum()),
            "non_finite_indices": arrays["index"][~finite][:100].tolist(),
        }

    def to_bytes(self, run_id: str) -> bytes:
        """An .npz file of the arrays, and of the run that they are of."""
        buffer = io.BytesIO()
        np.savez(buffer, **self.arrays(), run_id=np.asarray(run_id))
        return buffer.getvalue()

    @classmethod
    def load(cls, path: Path, run_id: str, indices: Sequence[int]) -> "Scores":
        """Reads the scores of the samples ``indices``; the file may be ahead of the results beside it.

        Raises:
            UserError: Missing, damaged, of another run, or not of these samples.
        """
        scores, count = cls(), len(indices)
        try:
            with np.load(path, allow_pickle=False) as file:
                written_by = str(file["run_id"])
                columns = [file[name][:count] for name in _FIELDS]
        # A text file is read as one array, which has no "with"; a single number has no beginning.
        except (OSError, ValueError, LookupError, TypeError, EOFError, zipfile.BadZipFile, zlib.error) as error:
            raise UserError(
                f"cannot resume: {path} is missing or damaged ({error}); --overwrite starts again"
            ) from None
        if written_by != run_id:
            raise UserError(f"cannot resume: {path} is of another run, {written_by}; --overwrite starts again")
        if any(column.shape != (count,) for column in columns):
            raise UserError(f"cannot resume: {path} holds fewer than {count} samples; --overwrite starts again")
        if columns[0].tolist() != list(indices):
            raise UserError(f"cannot resume: {path} is of other samples than the results; --overwrite starts again")
        if count:
            scores._append(*columns)
        return scores
